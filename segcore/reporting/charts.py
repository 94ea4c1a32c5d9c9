"""Bar charts as SVG, each with its numbers as a table; and tables of names and numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from segcore.reporting.html import Content, Markup, element, join
from segcore.text import plural

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 200, 8, 24, 18  # of a chart
_MAX_TICKS = 11
_SMALL_WIDTH, _SMALL_HEIGHT = 100, 22  # of a chart within a table
_NUMBER = re.compile(r"[-0-9.,%]+")
_BYTES_OF_TABLE = 400  # its tags and caption


@dataclass(frozen=True)
class Histogram:
    """Counts between edges.

    Attributes:
        labels: What each bin holds, for people.
        counts: (K,) int64.
        unit: What is counted, in the singular.
    """

    labels: Sequence[str]
    counts: np.ndarray
    unit: str

    def trimmed(self) -> Histogram:
        """Without the empty bins at its end."""
        filled = np.flatnonzero(self.counts)
        stop = int(filled[-1]) + 1 if filled.size else 1
        return Histogram(self.labels[:stop], self.counts[:stop], self.unit)


def bar_chart(title: str, histogram: Histogram) -> Markup:
    """A chart with a heading, and the same numbers as a table that can be opened."""
    counts, labels = histogram.counts, histogram.labels
    largest = int(counts.max(initial=0))
    total = int(counts.sum())
    where = f", most of them {labels[int(counts.argmax())]}" if total else ""
    summary = f"{title}: {plural(total, histogram.unit)}{where}."
    step = (_WIDTH - 2 * _LEFT) / max(len(counts), 1)
    height = _HEIGHT - _TOP - _BOTTOM
    shapes: list[Content] = []
    every = -(-len(counts) // _MAX_TICKS)
    for number, count in enumerate(counts.tolist()):
        x, h = _LEFT + number * step, height * count / largest if largest else 0.0
        if count:
            bar = {"x": f"{x + 1:.1f}", "y": f"{_TOP + height - max(h, 1):.1f}"}
            size = {"width": f"{step - 2:.1f}", "height": f"{max(h, 1):.1f}"}
            text = element("title", f"{labels[number]}: {count:,}")
            shapes.append(element("rect", text, class_="bar", **bar, **size))
        if number % every == 0:
            middle = f"{x + step / 2:.1f}"
            begin = labels[number].partition(" to ")[0]
            shapes.append(element("text", begin, x=middle, y=_HEIGHT - 6, class_="tick"))
    shapes.append(element("text", f"{largest:,}", x=_LEFT, y=12, class_="top"))
    base = {"x1": _LEFT, "x2": _WIDTH - _LEFT, "y1": _TOP + height, "y2": _TOP + height}
    shapes.append(element("line", class_="axis", **base))
    picture = element(
        "svg", *shapes, role="img", aria_label=summary, viewBox=f"0 0 {_WIDTH} {_HEIGHT}"
    )
    rows = [(labels[i], f"{n:,}", share(n, total)) for i, n in enumerate(counts.tolist())]
    numbers = table(title, ("range", f"{histogram.unit}s", "share"), rows, caption_is_shown=False)
    details = element("details", element("summary", "Numbers"), numbers)
    return element("div", element("h3", title), picture, details, class_="chart")


def small_chart(counts: np.ndarray) -> Markup:
    """Bars without numbers, for a cell of a table that has them in words beside it."""
    largest = max(int(counts.max(initial=0)), 1)
    step = _SMALL_WIDTH / max(len(counts), 1)
    bars = []
    for number, count in enumerate(counts.tolist()):
        if count:
            h = max(_SMALL_HEIGHT * count / largest, 1)
            bars.append(f"M{number * step:.1f} {_SMALL_HEIGHT}v-{h:.1f}h{step * 0.9:.1f}v{h:.1f}z")
    path = element("path", d="".join(bars), class_="bar")
    size = f"0 0 {_SMALL_WIDTH} {_SMALL_HEIGHT}"
    return element("svg", path, viewBox=size, class_="small", aria_hidden="true")


def table(
    caption: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[Content]],
    *,
    caption_is_shown: bool = True,
    note: str = "",
) -> Markup:
    """A table whose first column names the rows; numbers are aligned to the right.

    Args:
        caption: Its name, for screen readers at least.
        note: A line below it.
    """
    head = [element("th", heading, scope="col") for heading in headings]
    body = [_row(row) for row in rows]
    name = element("caption", caption, class_=None if caption_is_shown else "hidden")
    whole = element("table", name, element("thead", element("tr", *head)), element("tbody", *body))
    # It may be wider than the screen: then it is scrolled, by keyboard as well.
    frame = element("div", whole, class_="scroll", tabindex=0, role="group", aria_label=caption)
    return join(frame, element("p", note, class_="note") if note else Markup(""))


def _row(row: Sequence[Content]) -> Markup:
    first, *others = row
    cells = [
        element("td", cell, class_="n" if _NUMBER.fullmatch(str(cell)) else None) for cell in others
    ]
    return element("tr", element("th", first, scope="row"), *cells)


def table_within(
    caption: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[Content]],
    max_bytes: int,
    *,
    n_more: int = 0,
) -> Markup:
    """The first rows of a table, as many as there is room for; a line says how many are left out.

    Args:
        n_more: Rows that were left out before.
    """
    kept: list[Sequence[Content]] = []
    size, is_full = _BYTES_OF_TABLE + len(caption), False
    for row in rows:
        size += len(_row(row).encode())
        is_full = is_full or size > max_bytes
        if is_full:
            n_more += 1
        else:
            kept.append(row)
    note = f"{plural(n_more, 'more row')} left out." if n_more else ""
    return table(caption, headings, kept, note=note)


def definitions(pairs: Iterable[tuple[str, Content]]) -> Markup:
    """Names and values; those without a value are left out."""
    items = [
        element("div", element("dt", name), element("dd", value))
        for name, value in pairs
        if value != ""
    ]
    return element("dl", *items)


def share(count: int, total: int) -> str:
    """A part of a whole, for people."""
    return f"{count / total:.1%}" if total else "-"
