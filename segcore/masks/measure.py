"""Area and tight box of many COCO RLE strings at once, and which of them are malformed.

No bitmap is made. Where numba is installed, `segcore.masks.numba_kernel` does it in one pass over
the characters, with the same result. Here, strings are taken a few thousand at a time, so that the
arrays stay in the cache of a core; in each group all characters, then all runs, are handled
together. Runs are laid out in pairs (zeros, ones), a string with an odd number of them with an
empty run at its end: so the two kinds are two arrays, and what has to be summed within each string
is a sum over neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segcore.masks.from_logits import Backend, default_backend
from segcore.masks.rle import MAX_CANVAS, MAX_CHARS

_CHARS_AT_ONCE = 1 << 16
_MIN_COMPILED_CHARS = 1 << 18
_SIGNED = ((np.arange(64) & 0x1F) ^ 16) - 16  # the last digit of a number, by its character


@dataclass(frozen=True)
class MaskMeasures:
    """What N strings describe.

    Attributes:
        valid: (N,) bool; well-formed and filling the canvas exactly. The rest is 0 where not.
        areas: (N,) int64 set pixels.
        boxes: (N, 4) int64 x, y, w, h of the set pixels, tight; zeros for an empty mask.
    """

    valid: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class Runs:
    """The runs of M well-formed strings, each zeros first, in pairs.

    Attributes:
        zeros, ones: (P,) int64 lengths.
        starts: (M,) the first pair of each string.
        n_pairs: (M,) how many pairs each has, at least one.
    """

    zeros: np.ndarray
    ones: np.ndarray
    starts: np.ndarray
    n_pairs: np.ndarray


def measure_masks(
    text: np.ndarray,
    offsets: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    backend: Backend | None = None,
) -> MaskMeasures:
    """Measure N strings without making a bitmap of any.

    Args:
        text: (B,) uint8, all strings one after another.
        offsets: (N + 1,) where each begins, and the end of the last; ascending.
        heights, widths: (N,) canvas of each, pixels.
        backend: Which implementation to use; None: where numba is installed, the compiled one,
            unless there is so little to do that loading it would take longer.
    """
    n = len(offsets) - 1
    offsets, heights = offsets.astype(np.int64), heights.astype(np.int64)
    canvases = heights * widths
    has_canvas = (heights >= 1) & (widths >= 1) & (canvases <= MAX_CANVAS)
    result = MaskMeasures(np.zeros(n, bool), np.zeros(n, np.int64), np.zeros((n, 4), np.int64))
    if backend is None:
        backend = default_backend() if text.size >= _MIN_COMPILED_CHARS else "numpy"
    if backend == "compiled":
        from segcore.masks import numba_kernel

        columns = np.ascontiguousarray(text), offsets, heights, widths.astype(np.int64)
        numba_kernel.measure_masks(*columns, result.valid, result.areas, result.boxes)
        return result
    start = 0
    while start < n:
        bound = offsets[start] + _CHARS_AT_ONCE
        stop = max(start + 1, int(np.searchsorted(offsets, bound, side="right")) - 1)
        codes = text[offsets[start] : offsets[stop]] - np.uint8(48)  # others wrap to over 63
        lengths = np.diff(offsets[start : stop + 1])
        is_readable = has_canvas[start:stop] & _are_whole(codes, lengths)
        rows = np.arange(start, stop)
        if not is_readable.all():
            codes, rows = codes[np.repeat(is_readable, lengths)], rows[is_readable]
            lengths = lengths[is_readable]
        _measure_group(codes, lengths, rows, heights, canvases, result)
        start = stop
    return result


def decode_runs(text: np.ndarray, offsets: np.ndarray) -> Runs:
    """The runs of strings that `measure_masks` found valid.

    Args:
        text: (B,) uint8, all strings one after another.
        offsets: (N + 1,) where each begins, and the end of the last.
    """
    codes = text[offsets[0] : offsets[-1]] - np.uint8(48)
    if codes.size == 0:
        nothing = np.zeros(0, np.int64)
        return Runs(nothing, nothing, nothing, nothing)
    numbers, first = _read_numbers(codes, np.diff(offsets.astype(np.int64)))
    return _sum_to_runs(numbers, first, np.diff(first, append=numbers.size))


def _read_numbers(codes: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(K,) the numbers of valid strings, and (M,) which of them is the first of each string."""
    continues = (codes & np.uint8(0x20)) != 0
    early = np.flatnonzero(continues)
    numbers = _SIGNED[codes[~continues]]
    starts = np.cumsum(lengths) - lengths
    if early.size:
        _add_early_digits(numbers, codes[early], early)
    return numbers, starts - np.searchsorted(early, starts)


def running_sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Cumulative sums that begin anew at each of `starts`; overwrites `values`."""
    sums = np.add.reduceat(values, starts)
    values[starts[1:]] -= sums[:-1]
    return np.cumsum(values, out=values)


def _are_whole(codes: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(M,) bool: not empty, each character in range, and the last one ends a number."""
    stops = np.cumsum(lengths)
    is_whole = lengths > 0
    if codes.size == 0:
        return is_whole
    is_whole &= (codes[stops - 1] & 0x20) == 0
    if codes.max() > 63:
        alien = np.flatnonzero(codes > 63)
        is_whole[np.searchsorted(stops, alien, side="right")] = False
    return is_whole


def _measure_group(
    codes: np.ndarray,
    lengths: np.ndarray,
    rows: np.ndarray,
    heights: np.ndarray,
    canvases: np.ndarray,
    result: MaskMeasures,
) -> None:
    """Measure M strings that `_are_whole`.

    Args:
        codes: (B,) uint8 values of their characters.
        rows: (M,) their places in `heights`, `canvases` and `result`, which is written to.
    """
    continues = (codes & np.uint8(0x20)) != 0  # its number goes on in the next character
    early = np.flatnonzero(continues)
    numbers = _SIGNED[codes[~continues]]
    starts = np.cumsum(lengths) - lengths
    first = starts - np.searchsorted(early, starts)  # number of each string
    if early.size and not _add_early_digits(numbers, codes[early], early):
        fits = _have_short_numbers(early, first)
        codes = codes[np.repeat(fits, lengths)]
        return _measure_group(codes, lengths[fits], rows[fits], heights, canvases, result)
    if rows.size == 0:
        return None
    runs = _sum_to_runs(numbers, first, np.diff(first, append=numbers.size))
    valid = _clear_out_of_range(runs)
    stops = running_sums(runs.zeros + runs.ones, runs.starts)  # of the runs of ones
    valid &= stops[runs.starts + runs.n_pairs - 1] == canvases[rows]
    areas = np.add.reduceat(runs.ones, runs.starts)
    boxes = _tight_boxes(runs, stops, heights[rows])
    result.valid[rows] = valid
    result.areas[rows] = np.where(valid, areas, 0)
    result.boxes[rows] = np.where((valid & (areas > 0))[:, None], boxes, 0)
    return None


def _add_early_digits(numbers: np.ndarray, digits: np.ndarray, early: np.ndarray) -> bool:
    """Put the lower digits below the last one of each number; False where one is too long.

    Args:
        numbers: (K,) the last digit of each, with its sign; overwritten.
        digits: (E,) characters that are not the last of their number, and
        early: (E,) their places among all characters.
    """
    number = early - np.arange(early.size)
    group_starts = np.flatnonzero(np.concatenate(([True], number[1:] != number[:-1])))
    n_digits = np.diff(group_starts, append=early.size)
    if n_digits.max() >= MAX_CHARS:
        return False
    place = np.arange(early.size) - np.repeat(group_starts, n_digits)
    lower = np.add.reduceat((digits & 0x1F).astype(np.int64) << (5 * place), group_starts)
    longer = number[group_starts]
    numbers[longer] = (numbers[longer] << (5 * n_digits)) + lower
    return True


def _have_short_numbers(early: np.ndarray, first: np.ndarray) -> np.ndarray:
    """(M,) bool: the strings without a number of over `MAX_CHARS` characters."""
    number, n_digits = np.unique(early - np.arange(early.size), return_counts=True)
    fits = np.ones(first.size, bool)
    too_long = number[n_digits >= MAX_CHARS]
    fits[np.searchsorted(first, too_long, side="right") - 1] = False
    return fits


def _sum_to_runs(numbers: np.ndarray, first: np.ndarray, n_numbers: np.ndarray) -> Runs:
    """From the fourth number of a string on, each is the difference to the run two before it."""
    n_pairs = (n_numbers + 1) // 2
    pair_stops = np.cumsum(n_pairs)
    starts = pair_stops - n_pairs
    is_odd = (n_numbers & 1) == 1
    without_ones = pair_stops[is_odd] - 1
    is_number = np.ones(2 * int(pair_stops[-1]), bool)
    is_number[2 * without_ones + 1] = False
    padded = np.zeros(is_number.size, np.int64)
    padded[is_number] = numbers
    zeros, ones = padded[0::2].copy(), padded[1::2].copy()
    zeros[starts] = 0
    zeros = running_sums(zeros, starts)
    zeros[starts] = numbers[first]
    ones = running_sums(ones, starts)
    ones[without_ones] = 0
    return Runs(zeros, ones, starts, n_pairs)


def _clear_out_of_range(runs: Runs) -> np.ndarray:
    """(M,) bool: strings whose runs are all possible; sets the runs of the others to 0."""
    in_range = np.ones(runs.starts.size, bool)
    for lengths in (runs.zeros, runs.ones):
        if lengths.min() < 0 or lengths.max() > MAX_CANVAS:
            impossible = (lengths < 0) | (lengths > MAX_CANVAS)
            in_range &= ~np.logical_or.reduceat(impossible, runs.starts)
    if not in_range.all():
        cleared = np.repeat(~in_range, runs.n_pairs)
        runs.zeros[cleared] = 0
        runs.ones[cleared] = 0
    return in_range


def _tight_boxes(runs: Runs, stops: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """(M, 4) float64 x, y, w, h; of a string without set pixels it means nothing.

    Args:
        stops: (P,) where each run of ones ends in its column-major mask.
        heights: (M,) of the canvases.
    """
    # Exact: positions are below 2**32, so a quotient that is not whole lies further from the next
    # whole number than the rounding of a float64.
    height = np.repeat(heights.astype(np.float64), runs.n_pairs)
    begins = (stops - runs.ones).astype(np.float64)
    columns = np.floor(begins / height)
    top = begins - columns * height
    bottom = top + runs.ones
    is_empty = np.flatnonzero(runs.ones == 0)
    top[is_empty], bottom[is_empty] = np.inf, -np.inf
    y0 = np.minimum.reduceat(top, runs.starts)
    y1 = np.maximum.reduceat(bottom, runs.starts)
    wraps = y1 > heights  # touches the lower edge of one column and the upper of the next
    y0, y1 = np.where(wraps, 0, y0), np.where(wraps, heights, y1)
    filled = np.flatnonzero(runs.ones)
    if filled.size == 0:
        return np.zeros((heights.size, 4))
    first = np.searchsorted(filled, runs.starts)
    last = np.searchsorted(filled, runs.starts + runs.n_pairs) - 1
    x0 = columns[filled[np.minimum(first, filled.size - 1)]]
    x1 = (stops[filled[np.maximum(last, 0)]] - 1) // heights + 1
    with np.errstate(invalid="ignore"):  # infinite where no pixel is set
        return np.where(last[:, None] >= first[:, None], np.stack([x0, y0, x1 - x0, y1 - y0], 1), 0)
