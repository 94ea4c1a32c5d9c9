"""All options of a job, as a commented YAML file and as a page of the documentation.

The text of an option is written once, in the `description` of its field: ``--help`` of a command,
``segcore config``, the files in ``configs/`` and ``docs/options.md`` are made from it.
"""

from __future__ import annotations

import json
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

_WIDTH = 96
_TYPE_NAMES = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}
_LOWER = {annotated_types.Ge: ("ge", "at least"), annotated_types.Gt: ("gt", "more than")}
_UPPER = {annotated_types.Le: ("le", "at most"), annotated_types.Lt: ("lt", "less than")}
_OBVIOUS = ("text", "path", "true or false")  # from the default, or from what the text says


@dataclass(frozen=True)
class Option:
    """One option of a job, or a group of options.

    Attributes:
        key: Dotted, as ``--set`` takes it: ``model.conf``.
        text: What it does, in whole sentences.
        kind: Its type and bounds for people, such as ``integer, at least 1``; "" for a group.
        default: In YAML; None where there is no default; "" for a group.
    """

    key: str
    text: str
    kind: str
    default: str | None

    @property
    def is_group(self) -> bool:
        """Whether it holds other options."""
        return not self.kind


def list_options(schema: type[BaseModel], prefix: str = "") -> Iterator[Option]:
    """All options of a job in the order of its schema, each group before what it holds."""
    # A subclass lists its own fields last; the name of a model belongs first.
    fields = sorted(schema.model_fields.items(), key=lambda item: item[0] != "name")
    for name, field in fields:
        key, group = prefix + name, field.annotation
        if isinstance(group, type) and issubclass(group, BaseModel):
            yield Option(key, field.description or "", "", "")
            yield from list_options(group, f"{key}.")
        else:
            yield Option(key, field.description or "", _describe_kind(field), _default(field))


def option_text(schema: type[BaseModel], key: str) -> str:
    """What the option with this dotted key does.

    Raises:
        KeyError: There is none.
    """
    group: Any = schema
    *groups, last = key.split(".")
    for name in groups:
        group = group.model_fields[name].annotation
    return group.model_fields[last].description or ""


def to_yaml(schema: type[BaseModel], heading: str) -> str:
    """All options with their defaults as a YAML document, each below a comment.

    An option without a default is a comment, too: the reader has to fill it in.

    Args:
        schema: The configuration of a job.
        heading: The first comment; its line breaks are kept.
    """
    lines = [f"# {line}".rstrip() for line in heading.splitlines()]
    for option in list_options(schema):
        depth = option.key.count(".")
        name = option.key.rpartition(".")[2]
        indent = "  " * depth
        lines += [""] * (option.is_group or depth == 0)
        is_plain = option.is_group or option.kind in _OBVIOUS
        text = option.text if is_plain else f"{option.text} ({option.kind})"
        lines += textwrap.wrap(
            text, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
        if option.default is None:
            lines.append(f"{indent}# {name}:")
        else:
            lines.append(f"{indent}{name}: {option.default}".rstrip())
    return "\n".join(lines) + "\n"


def to_markdown(schema: type[BaseModel]) -> str:
    """All options as Markdown tables, one for each group."""
    options = list(list_options(schema))
    groups = {"": ""} | {option.key: option.text for option in options if option.is_group}
    parts = []
    for group, text in groups.items():
        members = [
            option
            for option in options
            if not option.is_group and option.key.rpartition(".")[0] == group
        ]
        if not members:
            continue
        rows = [_row(option) for option in members]
        title = [f"### `{group}`", "", text, ""] if group else []
        table = ["| option | value | default | what it does |", "|---|---|---|---|", *rows, ""]
        parts.append("\n".join([*title, *table]))
    return "\n".join(parts)


def _describe_kind(field: FieldInfo) -> str:
    """The type of a field and its bounds, for people: ``integer, 32 to 8,192``."""
    return ", ".join([_describe_type(field.annotation), *_describe_bounds(field.metadata)])


def _describe_type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        members = [member for member in arguments if member is not type(None)]
        return " | ".join(map(_describe_type, members))
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is Annotated:
        return _describe_type(arguments[0])
    if origin is tuple and arguments[-1:] == (Ellipsis,):
        return f"list of {_describe_type(arguments[0])}"
    if origin is tuple:
        return "[" + ", ".join(_describe_type(argument) for argument in arguments) + "]"
    if origin is dict:
        return f"map of {' to '.join(map(_describe_type, arguments))}"
    return _TYPE_NAMES[annotation]


def _describe_bounds(metadata: Sequence[Any]) -> Iterator[str]:
    lower = _find_bound(metadata, _LOWER)
    upper = _find_bound(metadata, _UPPER)
    if lower[0] == "at least" and upper[0] == "at most":
        yield f"{lower[1]} to {upper[1]}"
    else:
        yield from (" ".join(bound) for bound in (lower, upper) if bound[0])
    for bound in metadata:
        if isinstance(bound, annotated_types.MultipleOf):
            yield f"a multiple of {bound.multiple_of}"


def _find_bound(metadata: Sequence[Any], kinds: Mapping[Any, tuple[str, str]]) -> tuple[str, str]:
    """The words for a bound and its number; empty where there is none."""
    for bound in metadata:
        for kind, (attribute, words) in kinds.items():
            if isinstance(bound, kind):
                number = getattr(bound, attribute)
                return words, f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return "", ""


def _default(field: FieldInfo) -> str | None:
    """The default in YAML, of which JSON is a part; None where there is none."""
    if field.default is PydanticUndefined:
        return None
    value = field.default
    if isinstance(value, str) and value.replace("-", "").replace("_", "").isalnum():
        return value
    return json.dumps(value)


def _row(option: Option) -> str:
    cells = (f"`{option.key}`", _cell(option.kind), _default_cell(option), _cell(option.text))
    return f"| {' | '.join(cells)} |"


def _default_cell(option: Option) -> str:
    if option.default is None:
        return "(required)"
    return "" if option.default == "null" else f"`{_cell(option.default)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
