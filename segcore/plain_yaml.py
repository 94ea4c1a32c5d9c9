"""YAML of others as plain values: bounded, and everything that is wrong is one kind of error.

PyYAML itself raises whatever Python does on a date without such a day or on a number of 5,000
digits, repeats what an alias names as often as it is named, and takes minutes for numbers that are
written in sixties (``1:00:00:...``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from segcore.errors import UsageError

MAX_CHARACTERS = 1 << 20
_MAX_NUMBER_CHARACTERS = 4000  # Python refuses to read longer ones, too
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class PlainLoader(yaml.SafeLoader):
    """SafeLoader that refuses aliases, and raises YAMLError alone (and RecursionError)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases."""
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", mark)
        return super().compose_node(parent, index)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """A value, or what is wrong with it and where."""
        if node.tag in _NUMBERS and len(node.value) > _MAX_NUMBER_CHARACTERS:
            raise _wrong(f"a number of {len(node.value):,} characters", node)
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
            raise _wrong(f"not a value of the kind {node.tag.rpartition(':')[2]}", node) from None


def _wrong(problem: str, node: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


@contextmanager
def plain_loader(text: str, name: str) -> Iterator[PlainLoader]:
    """A loader of a text.

    Raises:
        UsageError: It is too long; or, in the block: it is no YAML, is nested too deeply, or has
            what is not plain.
    """
    if len(text) > MAX_CHARACTERS:
        raise UsageError(f"{name} is too long: the limit is {MAX_CHARACTERS:,} characters.")
    try:
        loader = PlainLoader(text)
        try:
            yield loader
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise UsageError(_describe_yaml_error(error, name)) from None
    except RecursionError:
        raise UsageError(f"{name} is nested too deeply.") from None


def parse_yaml(text: str, name: str) -> Any:
    """The one document of a text, as plain values; None where it is empty.

    Raises:
        UsageError: See `plain_loader`.
    """
    with plain_loader(text, name) as loader:
        return loader.get_single_data()


def _describe_yaml_error(error: yaml.YAMLError, name: str) -> str:
    """What is wrong, with the line where that is known."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    place = f"{name} line {mark.line + 1}" if mark is not None else name
    return f"{place}: not valid YAML: {problem}."
