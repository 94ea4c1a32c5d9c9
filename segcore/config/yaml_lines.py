"""YAML documents that remember on which line each key stands."""

from __future__ import annotations

from typing import Any

import yaml

from segcore.errors import UsageError

MAX_BYTES = 1 << 20
MAX_DEPTH = 20


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses aliases: a configuration needs none, and they can explode."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", mark)
        return super().compose_node(parent, index)


def load_yaml(text: str, name: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Parse one YAML document whose top level is a mapping.

    Args:
        text: The document; at most 1 MiB.
        name: File name for error messages.

    Returns:
        The values, and the line (from 1) of each key by its dotted path, e.g. ``model.conf``.

    Raises:
        UsageError: Not YAML, a key twice, an alias, an unsafe tag, too large or too deep.
    """
    if len(text) > MAX_BYTES:
        raise UsageError(f"{name} holds {len(text):,} characters; at most {MAX_BYTES:,} are read.")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return {}, {}
        if not isinstance(node, yaml.MappingNode):
            raise UsageError(
                f"{name} line {node.start_mark.line + 1}: expected `key: value` lines at the top."
            )
        lines: dict[str, int] = {}
        _index(node, "", lines, name)
        return loader.construct_document(node), lines
    except yaml.YAMLError as error:
        raise UsageError(_sentence(error, name)) from None
    except RecursionError:
        raise UsageError(f"{name} is nested too deeply.") from None
    finally:
        loader.dispose()


def parse_scalar(text: str, name: str) -> Any:
    """One value as YAML types it: ``3``, ``0.5``, ``true``, ``[a, b]``, ``null``, or text."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except (yaml.YAMLError, RecursionError):
        raise UsageError(f"{name}: `{text}` is not a YAML value.") from None
    finally:
        loader.dispose()


def _index(node: yaml.Node, path: str, lines: dict[str, int], name: str) -> None:
    """Note the line of every key below `node`; refuse a key that stands twice."""
    if path.count(".") >= MAX_DEPTH:
        raise UsageError(f"{name} line {node.start_mark.line + 1}: nested too deeply.")
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            _index(item, f"{path}.{i}", lines, name)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        here = f"{path}.{key.value}" if path else str(key.value)
        line = key.start_mark.line + 1
        if here in lines:
            raise UsageError(
                f"{name} line {line}: key `{here}` stands a second time (first on line "
                f"{lines[here]})."
            )
        lines[here] = line
        _index(value, here, lines, name)


def _sentence(error: yaml.YAMLError, name: str) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    where = f"{name} line {mark.line + 1}" if mark is not None else name
    return f"{where}: not valid YAML: {problem}."
