"""Text for people: counts, sizes, durations and columns as a terminal shows them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_LINK = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*://)(?:[^/?#]*@)?([^?#]*)([?#].*)?", re.DOTALL)


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
    """Names and values in two columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)


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


def redact_link(text: str) -> str:
    """A link without user, password, query and fragment, which may be secret; other text as it is.

    It is printable, too.
    """
    match = _LINK.fullmatch(text)
    if match is None:
        return printable(text)
    scheme, place, rest = match.groups()
    return printable(f"{scheme}{place}{'?...' if rest else ''}")
