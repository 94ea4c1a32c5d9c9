"""Text for people: counts, sizes, durations and columns as a terminal shows them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_LINK = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://([^/]*)(.*)", re.DOTALL)
# There "?" and "#" are letters of a name like any other.
_SCHEMES_OF_FILES = ("file", "s3", "s3a", "s3n", "gs", "gcs", "az", "azure")
_SECRET_QUERY = re.compile(
    r"\?(?=[^?]*(?:sig|token|credential|secret|password|accesskey|api[-_]?key)[^=]*=).*",
    re.IGNORECASE | re.DOTALL,
)


def plural(count: float, noun: str, plural_noun: str = "") -> str:
    """A count and its noun: ``1 unit``, ``1,200 units``, ``0.5 GPUs``.

    Args:
        plural_noun: For nouns whose plural is not `noun` and an s.
    """
    number = f"{count:,}" if isinstance(count, int) else f"{count:,.10g}"
    return f"{number} {noun if count == 1 else plural_noun or noun + 's'}"


def join_counts(counts: Mapping[str, int]) -> str:
    """Names and their counts in one line: ``corrupt 3, empty 1,200``."""
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def align_columns(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values in two columns, printable."""
    width = max(len(name) for name, _ in rows)
    lines = (f"{name:<{width}}  {value}".rstrip() for name, value in rows)
    return "\n".join(printable(line) for line in lines)


def format_bytes(n_bytes: int) -> str:
    """A number of bytes in the largest unit that gives at least one: ``1.5 GiB``."""
    if n_bytes < 1024:
        return plural(n_bytes, "byte")
    value = n_bytes / 1024
    larger_units = ["MiB", "GiB", "TiB"]
    unit = "KiB"
    while value >= 1024 and larger_units:
        value /= 1024
        unit = larger_units.pop(0)
    return f"{value:,.1f} {unit}"


def format_duration(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


def printable(text: str) -> str:
    """The text with "?" for each character that could steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def one_line(text: object, limit: int) -> str:
    """Text of others, such as an error's, as the beginning of one printable line."""
    return printable(" ".join(str(text).split()))[:limit]


def printable_lines(text: str) -> str:
    """The same line by line: line breaks stay."""
    return "\n".join(printable(line) for line in text.split("\n"))


def json_text(document: object, *, sort_keys: bool = False) -> str:
    """Indented JSON for people and programs: letters as they are, escapes for control characters.

    A file of it can be shown in a terminal; reading it gives the same text as before.
    """
    text = json.dumps(document, indent=2, ensure_ascii=False, sort_keys=sort_keys)
    return "\n".join(_escape_unprintable(line) for line in text.split("\n")) + "\n"


def parse_json(data: str | bytes) -> Any:
    """The value of a JSON document of others.

    Raises:
        ValueError: It is none, or nested too deeply, which `json.loads` alone says in another way.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _escape_unprintable(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else _escape(c) for c in line)


def _escape(letter: str) -> str:
    return f"\\u{ord(letter):04x}" if letter == "\x7f" else json.dumps(letter)[1:-1]


def redact(uri: str) -> str:
    """A URI, link or path without what may be secret: user, password and signed queries.

    A link loses its whole query and fragment; of the names of files and objects, which may have a
    "?" in them, only what looks like a signature goes.
    """
    match = _LINK.fullmatch(uri)
    if match is None:
        return _SECRET_QUERY.sub("?…", uri)
    scheme, authority, path = match.groups()
    if "@" in authority:
        authority = "…@" + authority.rpartition("@")[2]
    place = authority + path
    if scheme.lower() in _SCHEMES_OF_FILES:
        place = _SECRET_QUERY.sub("?…", place)
    elif query := re.search("[?#]", place):
        place = place[: query.start()] + "?…"
    return f"{scheme}://{place}"


def redact_link(text: str) -> str:
    """The text as `redact` leaves it, printable; where it may reach people by other ways."""
    return printable(redact(text))
