"""Crops of mask logits -> RLE strings, and what such strings describe, compiled by numba.

Definition and method: `segcore.masks.from_logits`. The result equals that of the NumPy kernel to
the byte, because each number that decides is rounded alike. It is faster not only because it is
compiled. All result columns between the same two source columns share the rows where a sign can
change: those whose four neighbouring samples disagree; no other row is looked at. And because
columns come in order, edges need no sorting, and become runs and characters at once.

Nothing here holds the interpreter's lock, and nothing is shared between calls.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from segcore.masks.bilinear import ResampledAxis
from segcore.masks.crops import Grid
from segcore.masks.numba_jit import jit as _jit


class KernelResult(NamedTuple):
    """Strings of M crops.

    Attributes:
        finite: False where a logit is NaN or infinite; the other fields mean nothing then.
        text: (B,) uint8, the strings one after another.
        ends: (M,) int64 end of each crop's string; equal to the one before where it has no pixel.
        areas: (M,) int64 set pixels of each crop.
    """

    finite: bool
    text: np.ndarray
    ends: np.ndarray
    areas: np.ndarray


def encode_crops(
    logits: np.ndarray, crops: np.ndarray, grid: Grid, upsampling: Grid, origin: tuple[int, int]
) -> KernelResult:
    """Strings of the crops.

    Args:
        logits: (N, h, w) float32.
        crops: (M, 7) int64 table of `segcore.masks.crops.Crops`: index, x0, x1, y0, y1, r0, r1.
        grid: Rows and columns of the result, from those of the window.
        upsampling: Rows and columns of the upsampled logits, from those of the logits.
        origin: Top and left of the window in the upsampled logits.
    """
    # The axes of large canvases alone may be millions of numbers: no copies.
    finite, text, ends, areas = _encode(
        np.ascontiguousarray(logits),
        np.ascontiguousarray(crops),
        _axis_arrays(grid.rows),
        _axis_arrays(grid.columns),
        _axis_arrays(upsampling.rows),
        _axis_arrays(upsampling.columns),
        *origin,
    )
    return KernelResult(finite, text, ends, areas)


_LOW, _HIGH, _WEIGHT_LOW, _WEIGHT_HIGH, _FIRST_PIXEL = range(5)  # of an axis as a tuple
_INDEX, _X0, _X1, _Y0, _Y1, _R0, _R1 = range(7)  # columns of the table of crops
# As in `rle`; numba's cache does not notice changes of other modules.
_MAX_CHARS = 7  # of one run
_MAX_CANVAS = 2**32 - 1


def _axis_arrays(axis: ResampledAxis) -> tuple[np.ndarray, ...]:
    return axis.low, axis.high, axis.weight_low, axis.weight_high, axis.first_pixel


def _fma_intrinsic(typingctx, a, b, c):  # type: ignore[no-untyped-def]
    """fp32 a * b + c, rounded once."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), codegen


_fma: Any = intrinsic(_fma_intrinsic)


@_jit()
def _is_positive(low, w_low, high, w_high):  # type: ignore[no-untyped-def]
    """`segcore.masks.bilinear.mix_is_positive` of one number."""
    addend = np.float32(high * w_high)
    return np.float64(low) * np.float64(w_low) + np.float64(addend) > 0.0


@_jit()
def _mix(low, w_low, high, w_high):  # type: ignore[no-untyped-def]
    """`segcore.masks.bilinear.mix` of one number."""
    return _fma(low, w_low, np.float32(high * w_high))


@_jit()
def _fill_block(block, logits, mask, row, column, up_rows, up_columns):  # type: ignore[no-untyped-def]
    """Samples (columns, rows) from `row`, `column` of the upsampled logits; False if not finite."""
    finite = True
    is_plain = (
        up_rows[_LOW].size == logits.shape[1] and up_columns[_LOW].size == logits.shape[2]
    )  # not upsampled
    for r in range(block.shape[1]):
        y0, y1 = up_rows[_LOW][row + r], up_rows[_HIGH][row + r]
        v0, v1 = up_rows[_WEIGHT_LOW][row + r], up_rows[_WEIGHT_HIGH][row + r]
        for c in range(block.shape[0]):
            if is_plain:
                value = logits[mask, row + r, column + c]
            else:
                x0, x1 = up_columns[_LOW][column + c], up_columns[_HIGH][column + c]
                w0, w1 = up_columns[_WEIGHT_LOW][column + c], up_columns[_WEIGHT_HIGH][column + c]
                upper = _mix(logits[mask, y0, x0], w0, logits[mask, y0, x1], w1)
                lower = _mix(logits[mask, y1, x0], w0, logits[mask, y1, x1], w1)
                value = _mix(upper, v0, lower, v1)
            block[c, r] = value
            finite &= math.isfinite(value)
    return finite


@_jit()
def _find_crossing(above, below, row, rows):  # type: ignore[no-untyped-def]
    """`segcore.masks.numpy_kernel._find_crossings` of one pair of source rows."""
    w_low, w_high, first_pixels = rows[_WEIGHT_LOW], rows[_WEIGHT_HIGH], rows[_FIRST_PIXEL]
    target = below > 0
    first, stop = first_pixels[row], first_pixels[row + 1]
    source = row + np.float64(above) / (np.float64(above) - np.float64(below))
    guess = math.ceil((source + 0.5) * (w_low.size / (first_pixels.size - 1)) - 0.5)
    if not guess > first:  # also where it is not a number
        y = first
    elif guess >= stop:
        y = stop
    else:
        y = np.int64(guess)
    while y > first and _is_positive(above, w_low[y - 1], below, w_high[y - 1]) == target:
        y -= 1
    while y < stop and _is_positive(above, w_low[y], below, w_high[y]) != target:
        y += 1
    return y


@_jit()
def _find_candidates(left, right, candidates):  # type: ignore[no-untyped-def]
    """Borders k where the sign may change between rows k - 1 and k, for any mix of two columns.

    Writes them to `candidates` and returns how many there are.
    """
    n = left.size
    count = 0
    any_before, all_before = False, False  # a row of zeros lies above
    for k in range(n + 1):
        if k < n:
            left_positive, right_positive = left[k] > 0, right[k] > 0
        else:
            left_positive, right_positive = False, False
        any_here, all_here = left_positive or right_positive, left_positive and right_positive
        if any_here != any_before or all_here != all_before or any_here != all_here:
            candidates[count] = k
            count += 1
        any_before, all_before = any_here, all_here
    return count


@_jit()
def _find_edges(edges, block, crop, rows, columns, candidates):  # type: ignore[no-untyped-def]
    """Positions x * H + y where the mask begins and ends, ascending; returns how many.

    `candidates` is memory for `_find_candidates`.
    """
    x0, x1, y0, y1, r0 = crop[_X0], crop[_X1], crop[_Y0], crop[_Y1], crop[_R0]
    height, n_rows = rows[_LOW].size, block.shape[1]
    c0 = columns[_LOW][x0]
    count, x = 0, x0
    while x < x1:
        low, high = columns[_LOW][x], columns[_HIGH][x]
        left, right = block[low - c0], block[high - c0]
        end = min(x1, columns[_FIRST_PIXEL][low + 1])
        n_candidates = _find_candidates(left, right, candidates)
        while x < end:
            w0, w1 = columns[_WEIGHT_LOW][x], columns[_WEIGHT_HIGH][x]
            last_row, last_sign = -1, False  # the row looked at last
            for i in range(n_candidates):
                k = candidates[i]
                if k == 0:
                    before = False
                elif last_row == k - 1:
                    before = last_sign
                else:
                    before = _is_positive(left[k - 1], w0, right[k - 1], w1)
                after = k < n_rows and _is_positive(left[k], w0, right[k], w1)
                last_row, last_sign = k, after
                if before == after:
                    continue
                if k == 0:
                    y = y0
                elif k == n_rows:
                    y = y1
                else:
                    above = _mix(left[k - 1], w0, right[k - 1], w1)
                    below = _mix(left[k], w0, right[k], w1)
                    y = min(max(_find_crossing(above, below, r0 + k - 1, rows), y0), y1)
                position = x * height + y
                if count and edges[count - 1] == position:  # two at one position cancel out
                    count -= 1
                else:
                    edges[count] = position
                    count += 1
            x += 1
    return count


@_jit()
def _write_runs(text, at, edges, count, pixels):  # type: ignore[no-untyped-def]
    """Write the runs between `count` edges as characters from `at` on; returns where they end."""
    n_runs = count + (edges[count - 1] < pixels)
    before = before2 = before3 = 0  # the edges passed last
    for j in range(n_runs):
        edge = edges[j] if j < count else pixels
        number = edge - before
        if j > 2:
            number -= before2 - before3
        before3, before2, before = before2, before, edge
        more = True
        while more:
            char = number & 0x1F
            number >>= 5
            more = number != -1 if char & 0x10 else number != 0
            text[at] = char + (0x20 + 48 if more else 48)
            at += 1
    return at


_AXIS = types.Tuple(
    [
        types.Array(kind, 1, "C", readonly=True)
        for kind in (types.int64, types.int64, types.float32, types.float32, types.int64)
    ]
)
_ENCODE = types.Tuple([types.boolean, types.uint8[::1], types.int64[::1], types.int64[::1]])(
    types.Array(types.float32, 3, "C", readonly=True),
    types.Array(types.int64, 2, "C", readonly=True),
    *(_AXIS,) * 4,
    types.int64,
    types.int64,
)


@_jit(_ENCODE)
def _encode(logits, crops, rows, columns, up_rows, up_columns, top, left):  # type: ignore[no-untyped-def]
    """The fields of `KernelResult`."""
    n = crops.shape[0]
    pixels = rows[_LOW].size * columns[_LOW].size
    ends, areas = np.zeros(n, np.int64), np.zeros(n, np.int64)
    text = np.empty(1024 * n + 64, np.uint8)
    max_edges = max_rows = 0
    for i in range(n):
        n_rows = crops[i, _R1] - crops[i, _R0] + 1
        max_rows = max(max_rows, n_rows)
        max_edges = max(max_edges, (crops[i, _X1] - crops[i, _X0]) * (n_rows + 1))
    edges, candidates = np.empty(max_edges, np.int64), np.empty(max_rows + 1, np.int64)
    at = 0
    for i in range(n):
        crop = crops[i]
        r0, r1 = crop[_R0], crop[_R1]
        c0, c1 = columns[_LOW][crop[_X0]], columns[_HIGH][crop[_X1] - 1]
        block = np.empty((c1 - c0 + 1, r1 - r0 + 1), np.float32)
        if not _fill_block(block, logits, crop[_INDEX], top + r0, left + c0, up_rows, up_columns):
            return False, text[:0], ends, areas
        count = _find_edges(edges, block, crop, rows, columns, candidates)
        if at + _MAX_CHARS * (count + 1) > text.size:
            larger = np.empty(2 * text.size + _MAX_CHARS * (count + 1), np.uint8)
            larger[:at] = text[:at]
            text = larger
        for j in range(0, count, 2):
            areas[i] += edges[j + 1] - edges[j]
        if count:
            at = _write_runs(text, at, edges, count, pixels)
        ends[i] = at
    return True, text[:at], ends, areas


_MEASURE = types.void(
    types.Array(types.uint8, 1, "C", readonly=True),
    *(types.int64[::1],) * 3,
    types.boolean[::1],
    types.int64[::1],
    types.int64[:, ::1],
)


@_jit(_MEASURE)
def measure_masks(text, offsets, heights, widths, valid, areas, boxes):  # type: ignore[no-untyped-def]
    """`segcore.masks.measure` in one pass.

    Args:
        text: (B,) uint8.
        offsets: (N + 1,) int64.
        heights, widths: (N,) int64.
        valid, areas, boxes: Of `MaskMeasures`; zeros, and written to.
    """
    for row in range(valid.size):
        height, width = heights[row], widths[row]
        if height < 1 or width < 1 or height * width > _MAX_CANVAS:
            continue
        number: Any = 0
        n_chars = 0
        before: Any = 0  # the last run, and
        before_that: Any = 0  # the one before it
        position: Any = 0
        area: Any = 0
        place = 0
        left, right, top, bottom = width, -1, height, -1
        fine = offsets[row + 1] > offsets[row]
        for at in range(offsets[row], offsets[row + 1]):
            code: Any = np.int64(text[at]) - 48
            if code < 0 or code > 63 or n_chars == _MAX_CHARS:
                fine = False
                break
            number |= (code & 0x1F) << (5 * n_chars)
            n_chars += 1
            if code & 0x20:
                continue
            if code & 0x10:
                number -= 1 << (5 * n_chars)
            run = number + before_that if place > 2 else number
            stop = position + run
            if run < 0 or stop > height * width:
                fine = False
                break
            if place & 1 and run > 0:
                area += run
                x0, x1 = position // height, (stop - 1) // height
                y0, y1 = position - x0 * height, stop - 1 - x1 * height
                if x1 > x0:  # touches the lower edge of one column and the upper of the next
                    y0, y1 = 0, height - 1
                left, right = min(left, x0), x1
                top, bottom = min(top, y0), max(bottom, y1)
            before_that, before = before, run
            position, place, number, n_chars = stop, place + 1, 0, 0
        if not fine or n_chars or position != height * width:
            continue
        valid[row], areas[row] = True, area
        if area:
            boxes[row, 0], boxes[row, 1] = left, top
            boxes[row, 2], boxes[row, 3] = right - left + 1, bottom - top + 1
