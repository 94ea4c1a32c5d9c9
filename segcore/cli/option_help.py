"""Help for flags that set an option of the configuration: the text of that option."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typer.core import TyperCommand


def command_class(keys: Mapping[str, str]) -> type[TyperCommand]:
    """A command some of whose parameters set options of a segment job.

    Args:
        keys: Name of the parameter in Python -> dotted key of the option. The text is looked up
            only when the help is shown, because importing the schema takes a second.
    """

    class CommandOfOptions(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            from segcore.config.reference import option_text
            from segcore.config.schema import Config

            parameters: list[Any] = self.get_params(ctx)
            for parameter in parameters:
                if parameter.name in keys:
                    parameter.help = option_text(Config, keys[parameter.name])
            super().format_help(ctx, formatter)

    return CommandOfOptions
