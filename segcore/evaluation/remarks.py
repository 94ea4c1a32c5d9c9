"""What was left out of a file, or taken otherwise than it is written: counted, and said."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from segcore.text import plural, printable

_MAX_ITEMS = 5  # named in a sentence
_MAX_CHARS = 60  # of one name


def shorten(value: object, max_chars: int = _MAX_CHARS) -> str:
    """A value from a file as text of bounded length, without control characters."""
    text = printable(value if isinstance(value, str) else reprlib.repr(value))
    return text if len(text) <= max_chars else text[: max_chars - 3] + "..."


def list_names(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    n_more = len(names) - _MAX_ITEMS
    listed = ", ".join(shorten(name) for name in names[:_MAX_ITEMS])
    return listed + (f" and {n_more:,} more" if n_more > 0 else "")


@dataclass
class _Remark:
    count: int = 0
    items: list[str] = field(default_factory=list)
    detail: str = ""


class Remarks:
    """Remarks about the entries of a file, by kind of entry and by reason.

    Attributes:
        n_left_out: Entries that do not count.
    """

    def __init__(self) -> None:
        self.n_left_out = 0
        self._remarks: dict[tuple[str, str], _Remark] = {}

    def add(self, noun: str, reason: str, item: object, detail: str = "") -> None:
        """Record one entry.

        Args:
            noun: What the entry is, such as "annotation".
            reason: What follows the count, such as "listed more than once: counted once".
            item: Name or id of the entry.
            detail: What is wrong with this entry; that of the first is shown.
        """
        remark = self._remarks.setdefault((noun, reason), _Remark())
        remark.count += 1
        remark.detail = remark.detail or detail
        if len(remark.items) < _MAX_ITEMS:
            remark.items.append(shorten(item))

    def leave_out(self, noun: str, reason: str, item: object, detail: str = "") -> None:
        """Record an entry that does not count; arguments as for `add`."""
        self.n_left_out += 1
        self.add(noun, f"{reason}: left out", item, detail)

    def __bool__(self) -> bool:
        return bool(self._remarks)

    def sentences(self) -> list[str]:
        """One sentence for each reason: how many, and the first of them by name."""
        lines = []
        for (noun, reason), remark in self._remarks.items():
            n_more = remark.count - len(remark.items)
            more = f" and {n_more:,} more" if n_more else ""
            detail = f"; the first: {shorten(remark.detail, 160)}" if remark.detail else ""
            named = f"{'id' if remark.count == 1 else 'ids'} {', '.join(remark.items)}{more}"
            lines.append(
                f"{plural(remark.count, noun, _PLURALS.get(noun, ''))} {reason} ({named}{detail})."
            )
        return lines


_PLURALS = {"category": "categories"}
