"""The one typed configuration of a segment job, and where each value came from.

Precedence: defaults < file < ``--set`` < explicit flags. Unknown keys are refused, and every
error names its origin: the line of the file, the ``--set`` or the flag.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from segcore.config import yaml_lines
from segcore.config.schema import Config
from segcore.errors import UsageError

Schema = TypeVar("Schema", bound=BaseModel)


def load_config(
    path: str | Path | None = None,
    sets: Sequence[str] = (),
    flags: Mapping[str, tuple[str | tuple[str, ...], Any]] | None = None,
    *,
    schema: type[Schema] = Config,  # type: ignore[assignment]
) -> Schema:
    """Build the configuration of a run.

    Args:
        path: Local YAML file, or None.
        sets: ``a.b=value`` each, the value typed as YAML types it; later ones win.
        flags: Name of the flag -> (dotted key, or several that it sets, value); a value of None
            was not given.
        schema: The kind of configuration; that of a segment job by default.

    Raises:
        UsageError: The file cannot be read, or a key or value is wrong; every problem is
            listed with its origin.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if path is not None:
        values, lines = yaml_lines.load_yaml(_read(path), str(path))
        origins = {key: f"{path} line {line}" for key, line in lines.items()}
    for item in sets:
        key, separator, text = item.partition("=")
        key = key.strip()
        if not separator or not key:
            raise UsageError(f"--set {item}: expected KEY=VALUE, such as --set model.conf=0.3.")
        _put(values, origins, key, yaml_lines.parse_scalar(text, f"--set {key}"), f"--set {item}")
    for flag, (keys, value) in (flags or {}).items():
        if value is not None:
            for key in (keys,) if isinstance(keys, str) else keys:
                _put(values, origins, key, value, flag)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        known = sorted(_keys(schema))
        problems = [
            _sentence(key, detail, origins, known)
            for detail in error.errors()
            for key in _wrong_keys(detail)
        ]
        raise UsageError(
            "\n".join(problems), hint="All keys and their meaning stand in the files of configs/."
        ) from None


def _read(path: str | Path) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(yaml_lines.MAX_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"Configuration file {path} does not exist.") from None
    except UnicodeDecodeError:
        raise UsageError(f"Configuration file {path} is not UTF-8 text.") from None
    except OSError as error:
        raise UsageError(f"Configuration file {path} cannot be read: {error.strerror}.") from None


def _put(
    values: dict[str, Any], origins: dict[str, str], key: str, value: Any, origin: str
) -> None:
    """Set a dotted key in nested `values` and note its origin."""
    *groups, last = key.split(".")
    place = values
    for group in groups:
        inner = place.get(group)
        if inner is None:
            inner = place[group] = {}
        if not isinstance(inner, dict):
            raise UsageError(f"{origin}: `{group}` is a value, not a group of keys.")
        place = inner
    place[last] = value
    origins[key] = origin


def _wrong_keys(detail: ErrorDetails) -> Iterator[str]:
    """The dotted keys that a problem is about: of an unknown group, each key in it."""
    key = ".".join(str(part) for part in detail["loc"])
    inside = detail["input"] if detail["type"] == "extra_forbidden" else None
    if isinstance(inside, dict) and inside:
        yield from (f"{key}.{name}" for name in inside)
    else:
        yield key


def _sentence(
    key: str, detail: ErrorDetails, origins: Mapping[str, str], known: Sequence[str]
) -> str:
    """One problem found by pydantic, in words, with where it stands."""
    origin = _origin(key, origins)
    if detail["type"] == "extra_forbidden":
        near = _nearest(key, known)
        return f"{origin}: unknown key `{key}`" + (f"; did you mean `{near}`?" if near else ".")
    if detail["type"] in ("model_type", "model_attributes_type"):
        inside = ", ".join(name.split(".", 1)[1] for name in known if name.startswith(f"{key}."))
        return f"{origin}: `{key}` is a group of keys ({inside}), not a value."
    message = detail["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    value = detail["input"]
    shown = "" if isinstance(value, BaseModel | dict) else f", got {str(value)[:80]!r}"
    return f"{origin}: `{key}`: {message}{shown}." if key else f"{origin}: {message}{shown}."


def _origin(key: str, origins: Mapping[str, str]) -> str:
    """Where `key` was set; a key's own entry first, then what is below or above it."""
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


def _nearest(key: str, known: Sequence[str]) -> str | None:
    """The known key that was probably meant; the last word may stand in another group."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    if close:
        return close[0]
    last = key.rpartition(".")[2]
    by_word = {name.rpartition(".")[2]: name for name in reversed(known)}
    word = difflib.get_close_matches(last, list(by_word), n=1, cutoff=0.75)
    return by_word[word[0]] if word else None


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All dotted keys of a configuration model, groups included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _keys(kind, f"{prefix}{name}.")
