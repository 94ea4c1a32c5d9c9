"""YAML documents together with the line of each key."""

from __future__ import annotations

from typing import Any

import yaml

from segcore.errors import UsageError
from segcore.plain_yaml import PlainLoader, plain_loader

MAX_DEPTH = 20


def load_yaml(text: str, name: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Parse one YAML document whose top level is a mapping.

    Args:
        text: The document; at most `segcore.plain_yaml.MAX_CHARACTERS`.
        name: File name for error messages.

    Returns:
        The values, and the line (from 1) of each key by its dotted path, e.g. ``model.conf``.

    Raises:
        UsageError: Not YAML, a duplicate key, an alias, an unsafe tag, too large or too deep.
    """
    with plain_loader(text, name) as loader:
        root = loader.get_single_node()
        if root is None:
            return {}, {}
        if not isinstance(root, yaml.MappingNode):
            raise UsageError(f"{name} line {_line(root)}: expected `key: value` lines at the top.")
        lines: dict[str, int] = {}
        _record_lines(root, "", lines, name)
        return loader.construct_document(root), lines


def parse_scalar(text: str, name: str) -> Any:
    """One value with the type that YAML gives it: ``3``, ``0.5``, ``true``, ``[a, b]``, ``null``.

    Raises:
        UsageError: It is not YAML; `name` is the beginning of the message, which does not repeat
            the text, as the key may be unknown and the value a secret.
    """
    try:
        return yaml.load(text, PlainLoader)
    except (yaml.YAMLError, RecursionError):
        raise UsageError(
            f"{name}: what follows the = is not a YAML value.",
            "Text with signs that mean something to YAML needs quotes: --set KEY='\"...\"'.",
        ) from None


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
