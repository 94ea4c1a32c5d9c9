"""Bar charts as SVG, each with its numbers as a table; and tables of names and numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from segcore.reporting.html import Content, Markup, element, join
from segcore.text import plural

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 200, 8, 24, 18  # of a chart
_LINE_HEIGHT, _LINE_LEFT, _LINE_TOP, _LINE_BOTTOM = 330, 40, 30, 40  # of a chart of lines
_POINT_STEP = 10  # of a line, one point in so many is in the table of numbers
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


@dataclass(frozen=True)
class Line:
    """A line of a chart: a name, and (N,) values in [0, 1] on both axes."""

    name: str
    xs: np.ndarray
    ys: np.ndarray


def line_chart(title: str, axes: tuple[str, str], lines: Sequence[Line]) -> Markup:
    """Lines within the unit square, told apart by dashes as well as colours, and their numbers."""
    width, height = _WIDTH - 2 * _LINE_LEFT, _LINE_HEIGHT - _LINE_TOP - _LINE_BOTTOM
    shapes: list[Content] = []
    for step in range(0, 11, 2):
        x, y = _LINE_LEFT + width * step / 10, _LINE_TOP + height * (1 - step / 10)
        right = _LINE_LEFT + width
        grid = element("line", class_="axis", x1=_LINE_LEFT, x2=right, y1=f"{y:.1f}", y2=f"{y:.1f}")
        shapes.append(grid)
        label = f"{step / 10:.1f}"
        shapes.append(element("text", label, x=f"{x:.1f}", y=_LINE_HEIGHT - 22, class_="tick"))
        shapes.append(element("text", label, x=_LINE_LEFT - 16, y=f"{y + 4:.1f}", class_="tick"))
    for number, line in enumerate(lines):
        points = " ".join(
            f"{_LINE_LEFT + width * x:.1f},{_LINE_TOP + height * (1 - y):.1f}"
            for x, y in zip(line.xs.tolist(), line.ys.tolist(), strict=True)
        )
        name = element("title", line.name)
        shapes.append(element("polyline", name, points=points, class_=f"line l{number % 8}"))
    middle = _LINE_LEFT + width / 2
    shapes.append(element("text", axes[0], x=middle, y=_LINE_HEIGHT - 5, class_="tick"))
    shapes.append(element("text", axes[1], x=0, y=12, class_="top"))
    summary = f"{title}: {axes[1]} by {axes[0]}; {', '.join(line.name for line in lines)}."
    box = f"0 0 {_WIDTH} {_LINE_HEIGHT}"
    picture = element("svg", *shapes, role="img", aria_label=summary, viewBox=box)
    keys = [element("li", _key(number), f" {line.name}") for number, line in enumerate(lines)]
    rows = [
        (f"{line.name}, {axes[0]} {x:.2f}", f"{y:.3f}")
        for line in lines
        for x, y in list(zip(line.xs.tolist(), line.ys.tolist(), strict=True))[::_POINT_STEP]
    ]
    numbers = table(title, ("at", axes[1]), rows, caption_is_shown=False)
    details = element("details", element("summary", "Numbers"), numbers)
    legend = element("ul", *keys, class_="legend")
    return element("div", element("h3", title), picture, legend, details, class_="chart")


def _key(number: int) -> Markup:
    """A piece of a line, for its name beside it."""
    piece = element("polyline", points="0,5 36,5", class_=f"line l{number % 8}")
    return element("svg", piece, class_="key", aria_hidden="true", viewBox="0 0 36 10")


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
