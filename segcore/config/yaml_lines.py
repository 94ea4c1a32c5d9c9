"""YAML documents together with the line of each key."""

from __future__ import annotations

from typing import Any

import yaml

from segcore.errors import UsageError
from segcore.text import redact

MAX_CHARACTERS = 1 << 20
MAX_DEPTH = 20


class _LoaderWithoutAliases(yaml.SafeLoader):
    """SafeLoader that refuses aliases: a configuration needs none, and they can explode."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", mark)
        return super().compose_node(parent, index)


def load_yaml(text: str, name: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Parse one YAML document whose top level is a mapping.

    Args:
        text: The document; at most `MAX_CHARACTERS`.
        name: File name for error messages.

    Returns:
        The values, and the line (from 1) of each key by its dotted path, e.g. ``model.conf``.

    Raises:
        UsageError: Not YAML, a duplicate key, an alias, an unsafe tag, too large or too deep.
    """
    if len(text) > MAX_CHARACTERS:
        raise UsageError(f"{name} is too long: the limit is {MAX_CHARACTERS:,} characters.")
    loader = _LoaderWithoutAliases(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return {}, {}
        if not isinstance(root, yaml.MappingNode):
            raise UsageError(f"{name} line {_line(root)}: expected `key: value` lines at the top.")
        lines: dict[str, int] = {}
        _record_lines(root, "", lines, name)
        return loader.construct_document(root), lines
    except yaml.YAMLError as error:
        raise UsageError(_describe_yaml_error(error, name)) from None
    except RecursionError:
        raise UsageError(f"{name} is nested too deeply.") from None
    finally:
        loader.dispose()


def parse_scalar(text: str, name: str) -> Any:
    """One value with the type that YAML gives it: ``3``, ``0.5``, ``true``, ``[a, b]``, ``null``.

    Raises:
        UsageError: It is not YAML; `name` is the beginning of the message.
    """
    loader = _LoaderWithoutAliases(text)
    try:
        return loader.get_single_data()
    except (yaml.YAMLError, RecursionError):
        raise UsageError(f"{name}: `{redact(text)}` is not a YAML value.") from None
    finally:
        loader.dispose()


def _record_lines(node: yaml.Node, path: str, lines: dict[str, int], name: str) -> None:
    """Record the line of every key below `node`, whose own dotted path is `path`.

    Raises:
        UsageError: A key occurs twice, or the nesting is too deep.
    """
    if path.count(".") >= MAX_DEPTH:
        raise UsageError(f"{name} line {_line(node)}: nested too deeply.")
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            _record_lines(item, f"{path}.{i}", lines, name)
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        key_path = f"{path}.{key_node.value}" if path else str(key_node.value)
        line = _line(key_node)
        if key_path in lines:
            raise UsageError(
                f"{name} line {line}: duplicate key `{key_path}` (first on line {lines[key_path]})."
            )
        lines[key_path] = line
        _record_lines(value_node, key_path, lines, name)


def _line(node: yaml.Node) -> int:
    """The line on which a node begins, from 1."""
    return int(node.start_mark.line) + 1


def _describe_yaml_error(error: yaml.YAMLError, name: str) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    place = f"{name} line {mark.line + 1}" if mark is not None else name
    return f"{place}: not valid YAML: {problem}."
