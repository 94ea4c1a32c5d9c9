"""Help for flags that set an option of the configuration: the text of that option."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

if TYPE_CHECKING:
    from pydantic import BaseModel


def command_class(
    keys: Mapping[str, str], schema: Callable[[], type[BaseModel]] | None = None
) -> type[TyperCommand]:
    """A command some of whose parameters set options of a job.

    Args:
        keys: Name of the parameter in Python -> dotted key of the option. The text is looked up
            only when the help is shown, because importing the schema takes a second.
        schema: Gives the schema of the job; that of a segment job by default.
    """

    class CommandOfOptions(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            from segcore.config.reference import option_text
            from segcore.config.schema import Config

            options = schema() if schema else Config
            parameters: list[Any] = self.get_params(ctx)
            for parameter in parameters:
                if parameter.name in keys:
                    parameter.help = option_text(options, keys[parameter.name])
            super().format_help(ctx, formatter)

    return CommandOfOptions
