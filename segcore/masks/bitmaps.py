"""Bitmaps of many masks of one canvas at once, each cut to its box.

What a mask costs here grows with its runs and with the pixels of its box, not with the canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segcore.masks.rle import MAX_CANVAS, MAX_CHARS, string_to_counts

MAX_BITMAP = 1 << 28  # pixels of one box


@dataclass(frozen=True)
class Bitmap:
    """One mask inside its tight box.

    Attributes:
        pixels: (h, w) uint8 of 0 and 1, Fortran-ordered.
        left, top: Place of the box on the canvas, pixels.
    """

    pixels: np.ndarray
    left: int
    top: int

    @property
    def width(self) -> int:
        """Columns of the box."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Rows of the box."""
        return int(self.pixels.shape[0])


def to_bitmaps(strings: Sequence[str], height: int, width: int) -> list[Bitmap | None]:
    """Compressed RLE strings of one canvas -> their bitmaps.

    Returns:
        None for a mask that is empty, malformed, does not fill the canvas, or whose box has more
        than `MAX_BITMAP` pixels.
    """
    bitmaps: list[Bitmap | None] = [None] * len(strings)
    if not strings or height < 1 or width < 1 or height * width > MAX_CANVAS:
        return bitmaps
    runs, lengths = _decode_all(strings)
    rows = np.flatnonzero(lengths >= 2)
    if not rows.size:
        return bitmaps
    runs = runs[np.repeat(lengths >= 2, lengths)]
    lengths = lengths[rows]
    first = np.cumsum(lengths) - lengths
    ends = np.cumsum(runs)
    ends -= np.repeat(ends[first] - runs[first], lengths)
    fills_canvas = ends[first + lengths - 1] == height * width
    place = np.arange(runs.size) - np.repeat(first, lengths)
    is_set = (place % 2 == 1) & (runs > 0) & np.repeat(fills_canvas, lengths)
    mask = np.repeat(np.arange(rows.size), lengths)[is_set]
    stops = ends[is_set]
    starts = stops - runs[is_set]
    if mask.size:
        for number, bitmap in _fill(mask, starts, stops, height):
            bitmaps[rows[number]] = bitmap
    return bitmaps


def _fill(
    mask: np.ndarray, starts: np.ndarray, stops: np.ndarray, height: int
) -> list[tuple[int, Bitmap]]:
    """The bitmaps of runs of set pixels [start, stop) of a column-major canvas, mask by mask."""
    borders = np.flatnonzero(np.concatenate(([True], mask[1:] != mask[:-1])))
    counts = np.diff(borders, append=mask.size)
    x0, y0 = np.divmod(starts, height)
    x1, y1 = np.divmod(stops - 1, height)
    wraps = np.logical_or.reduceat(x0 != x1, borders)  # over a whole column, or into the next
    left, right = x0[borders], x1[borders + counts - 1] + 1
    top = np.where(wraps, 0, np.minimum.reduceat(y0, borders))
    bottom = np.where(wraps, height, np.maximum.reduceat(y1, borders) + 1)
    h, w = bottom - top, right - left
    each = (np.repeat(value, counts) for value in (left, top, h))
    each_left, each_top, each_h = each
    local_starts = (x0 - each_left) * each_h + y0 - each_top
    local_stops = (x1 - each_left) * each_h + y1 - each_top + 1
    before = np.concatenate(([0], local_stops[:-1]))
    before[borders] = 0
    pairs = np.stack([local_starts - before, local_stops - local_starts], 1)
    filled = []
    for number, begin, n, x, y, rows, columns in zip(
        mask[borders].tolist(), borders.tolist(), counts.tolist(), left.tolist(), top.tolist(),
        h.tolist(), w.tolist(), strict=True,
    ):  # fmt: skip
        if rows * columns > MAX_BITMAP:
            continue
        flat = np.zeros(rows * columns, np.uint8)
        runs = pairs[begin : begin + n].ravel()
        values = np.repeat(_zero_one(n), runs)
        flat[: values.size] = values
        filled.append((number, Bitmap(flat.reshape((rows, columns), order="F"), x, y)))
    return filled


def _zero_one(n: int) -> np.ndarray:
    """(2 n,) 0, 1, 0, 1, ..."""
    return _PATTERN[: 2 * n] if n <= _PATTERN.size // 2 else np.tile(_PATTERN[:2], n)


_PATTERN = np.tile(np.array([0, 1], np.uint8), 4096)


def _decode_all(strings: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The runs of all strings, one after another, and how many each has; 0 for a malformed one."""
    try:
        raw = "".join(strings).encode("ascii")
    except UnicodeEncodeError:
        return _decode_each(strings)
    codes = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    n_chars = np.array([len(text) for text in strings])
    stops = np.cumsum(n_chars)
    if not n_chars.all() or codes.min() < 0 or codes.max() > 63 or (codes[stops - 1] & 0x20).any():
        return _decode_each(strings)
    ends = np.flatnonzero((codes & 0x20) == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    chars = ends - starts + 1
    if chars.max() > MAX_CHARS:
        return _decode_each(strings)
    shift = 5 * (np.arange(codes.size) - np.repeat(starts, chars))
    numbers = np.add.reduceat((codes & 0x1F) << shift, starts)
    numbers -= np.where(codes[ends] & 0x10, np.int64(1) << (5 * chars), 0)
    last = np.searchsorted(ends, stops - 1)
    lengths = np.diff(last, prepend=-1)
    first = last - lengths + 1
    place = np.arange(numbers.size) - np.repeat(first, lengths)
    for rows in (np.flatnonzero(place % 2 == 1), np.flatnonzero((place % 2 == 0) & (place > 0))):
        if not rows.size:
            continue
        sums = np.cumsum(numbers[rows])
        numbers[rows] = sums - _carried(sums - numbers[rows], place[rows] <= 2)
    is_bad = np.logical_or.reduceat((numbers < 0) | (numbers > MAX_CANVAS), first)
    if is_bad.any():
        return _decode_each(strings)
    return numbers, lengths


def _carried(values: np.ndarray, is_first: np.ndarray) -> np.ndarray:
    """The value at the last `is_first` at or before each place."""
    firsts = np.flatnonzero(is_first)
    return np.repeat(values[firsts], np.diff(firsts, append=values.size))


def _decode_each(strings: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """As `_decode_all`, where at least one string is malformed."""
    runs = []
    for text in strings:
        try:
            runs.append(string_to_counts(text))
        except ValueError:
            runs.append(np.zeros(0, np.int64))
    lengths = np.array([len(each) for each in runs])
    return np.concatenate(runs), lengths
