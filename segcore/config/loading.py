"""Filling the typed configuration of a job from a file, ``--set`` and flags.

Precedence: defaults < file < ``--set`` < explicit flags. Unknown keys are refused, and every error
names where the value came from: the line of the file, the ``--set`` or the flag.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from segcore.config import yaml_lines
from segcore.config.schema import Config
from segcore.errors import UsageError
from segcore.plain_yaml import MAX_CHARACTERS
from segcore.text import plural, redact

Schema = TypeVar("Schema", bound=BaseModel)

# Similarity from which a key is suggested for an unknown one (`difflib.get_close_matches`).
_MIN_KEY_SIMILARITY = 0.7
_MIN_LAST_WORD_SIMILARITY = 0.75
_MAX_SHOWN_VALUE_CHARACTERS = 80
_MAX_SHOWN_PROBLEMS = 50
_KEY = re.compile(r"[\w.\-]+")


def load_config(
    path: str | Path | None = None,
    sets: Sequence[str] = (),
    flags: Mapping[str, tuple[str | tuple[str, ...], Any]] | None = None,
    *,
    schema: type[Schema] = Config,  # type: ignore[assignment]
) -> Schema:
    """Build the configuration of a job.

    Values of unknown keys are not shown, as they may be secrets, nor what is secret in links.

    Args:
        path: Local YAML file, or None.
        sets: Each ``a.b=value``, with the type that YAML gives the value; later ones win.
        flags: Name of the flag -> (dotted key, or all keys that it sets; value); a value of None
            means not given.
        schema: The kind of configuration; that of a segment job by default.

    Raises:
        UsageError: The file cannot be read, or a key or value is wrong. Lists the problems with
            the places where the values were set.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if path is not None:
        values, lines = yaml_lines.load_yaml(_read_file(path), str(path))
        origins = {key: f"{path} line {line}" for key, line in lines.items()}
    for assignment in sets:
        key, separator, text = assignment.partition("=")
        key = key.strip()
        if not separator or not _KEY.fullmatch(key):
            # The value may be a secret.
            shown = f"{redact(key)}=..." if separator else redact(assignment)
            raise UsageError(f"--set {shown}: expected KEY=VALUE, such as --set model.conf=0.3.")
        value = yaml_lines.parse_scalar(text, f"--set {key}")
        _set_value(values, origins, key, value, f"--set {key}")
    for flag, (keys, value) in (flags or {}).items():
        if value is not None:
            for key in (keys,) if isinstance(keys, str) else keys:
                _set_value(values, origins, key, value, flag)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        known_keys = sorted(dotted_keys(schema))
        at_fault = [(key, d) for d in error.errors() for key in _keys_at_fault(d)]
        problems = [
            _describe_problem(key, details, origins, known_keys)
            for key, details in at_fault[:_MAX_SHOWN_PROBLEMS]
        ]
        if n_more := len(at_fault) - len(problems):
            problems.append(f"And {plural(n_more, 'problem')} more.")
        raise UsageError(
            problems, hint="`segcore config` and docs/options.md explain every key."
        ) from None


def dotted_keys(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All dotted keys of a configuration schema, groups included: ``model``, ``model.conf``, ..."""
    for name, field in schema.model_fields.items():
        yield prefix + name
        field_type = field.annotation
        if isinstance(field_type, type) and issubclass(field_type, BaseModel):
            yield from dotted_keys(field_type, f"{prefix}{name}.")


def _read_file(path: str | Path) -> str:
    """The text of a configuration file, or enough of it to see that it is too long.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(MAX_CHARACTERS + 1)
    except FileNotFoundError:
        raise UsageError(f"Configuration file {path} does not exist.") from None
    except UnicodeDecodeError:
        raise UsageError(f"Configuration file {path} is not UTF-8 text.") from None
    except OSError as error:
        raise UsageError(f"Configuration file {path} cannot be read: {error.strerror}.") from None


def _set_value(
    values: dict[str, Any], origins: dict[str, str], key: str, value: Any, origin: str
) -> None:
    """Set a dotted key in nested `values` and record its origin.

    Raises:
        UsageError: A part of the key before the last is a value, not a group.
    """
    *groups, last = key.split(".")
    parent = values
    for group in groups:
        child = parent.get(group)
        if child is None:
            child = parent[group] = {}
        if not isinstance(child, dict):
            raise UsageError(f"{origin}: `{group}` is a value, not a group of keys.")
        parent = child
    parent[last] = value
    origins[key] = origin


def _keys_at_fault(details: ErrorDetails) -> Iterator[str]:
    """The dotted keys that a problem is about: for an unknown group, each key in it."""
    key = ".".join(str(part) for part in details["loc"])
    unknown_value = details["input"] if details["type"] == "extra_forbidden" else None
    if isinstance(unknown_value, dict) and unknown_value:
        yield from (f"{key}.{name}" for name in unknown_value)
    else:
        yield key


def _describe_problem(
    key: str, details: ErrorDetails, origins: Mapping[str, str], known_keys: Sequence[str]
) -> str:
    """One problem found by pydantic as a line for people, with the place of its value."""
    origin = _find_origin(key, origins)
    if details["type"] == "extra_forbidden":
        suggestion = _suggest_key(key, known_keys)
        ending = f"; did you mean `{suggestion}`?" if suggestion else "."
        return f"{origin}: unknown key `{key}`{ending}"
    if details["type"] in ("model_type", "model_attributes_type"):
        children = [name.split(".", 1)[1] for name in known_keys if name.startswith(f"{key}.")]
        return f"{origin}: `{key}` is a group of keys ({', '.join(children)}), not a value."
    message = details["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    value = details["input"]
    if not isinstance(value, BaseModel | dict):
        message += f", got {redact(str(value))[:_MAX_SHOWN_VALUE_CHARACTERS]!r}"
    return f"{origin}: `{key}`: {message}." if key else f"{origin}: {message}."


def _find_origin(key: str, origins: Mapping[str, str]) -> str:
    """Where `key` was set: its own origin, else that of a key below it, else of one above it."""
    if key in origins:
        return origins[key]
    below = [origin for name, origin in origins.items() if name.startswith(f"{key}.")]
    if below:
        return below[-1]
    while "." in key:
        key = key.rpartition(".")[0]
        if key in origins:
            return origins[key]
    return "configuration"


def _suggest_key(key: str, known_keys: Sequence[str]) -> str | None:
    """The known key that was probably meant, perhaps one in another group."""
    matches = difflib.get_close_matches(key, known_keys, n=1, cutoff=_MIN_KEY_SIMILARITY)
    if matches:
        return matches[0]
    last_word = key.rpartition(".")[2]
    by_last_word = {name.rpartition(".")[2]: name for name in reversed(known_keys)}
    matches = difflib.get_close_matches(
        last_word, list(by_last_word), n=1, cutoff=_MIN_LAST_WORD_SIMILARITY
    )
    return by_last_word[matches[0]] if matches else None
