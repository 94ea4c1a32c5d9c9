"""Words for people: numbers, sizes, durations and columns as a terminal shows them."""

from __future__ import annotations

from collections.abc import Sequence


def plural(count: int, noun: str, plural_noun: str = "") -> str:
    """A count and its noun: ``1 unit``, ``1,200 units``; irregular plurals are given."""
    return f"{count:,} {noun if count == 1 else plural_noun or noun + 's'}"


def align_columns(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values in two columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)


def format_bytes(n_bytes: int) -> str:
    """Bytes as people say them: ``1.5 GiB``."""
    value = float(n_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"


def format_duration(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


def printable(text: str) -> str:
    """The text with "?" for each character that could steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
