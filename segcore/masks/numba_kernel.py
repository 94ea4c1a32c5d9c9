"""`encode_logits` compiled for the CPU by numba; definition and method of `segcore.masks.from_logits`.

Equal to the NumPy path to the byte, as each number that decides is rounded alike. It is faster not
only for being compiled. All result columns between the same two source columns share the rows where
a sign can change: those whose four neighbouring samples disagree; no other row is looked at. And as
columns come in order, edges need no sorting, and become runs and characters at once.

Nothing here holds the interpreter's lock, and nothing is shared between calls.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from segcore.masks.bilinear import Axis


class Encoded(NamedTuple):
    """What a kernel gives back.

    Attributes:
        finite: False where a logit is NaN or infinite; the rest means nothing then.
        text: (B,) uint8, the strings one after another.
        ends: (N,) int64 end of each crop's string; equal to the one before where it has no pixel.
        areas: (N,) int64 set pixels of each crop.
    """

    finite: bool
    text: np.ndarray
    ends: np.ndarray
    areas: np.ndarray


def encode(
    logits: np.ndarray,
    crops: np.ndarray,
    axes: tuple[Axis, Axis],
    upsampled: tuple[Axis, Axis],
    origin: tuple[int, int],
) -> Encoded:
    """Strings of the crops.

    Args:
        logits: (N, h, w) float32.
        crops: (M, 7) int64 mask, x0, x1, y0, y1, r0, r1 as in `segcore.masks.from_logits`; not empty.
        axes: Rows and columns of the result, from the window.
        upsampled: Rows and columns of the upsampled logits, from the logits.
        origin: Top and left of the window in the upsampled logits.
    """
    rows, columns = axes
    up_rows, up_columns = upsampled
    # The axes of large canvases alone may be millions of numbers: no copies.
    finite, text, ends, areas = _kernel(
        np.ascontiguousarray(logits),
        np.ascontiguousarray(crops),
        _of(rows),
        _of(columns),
        _of(up_rows),
        _of(up_columns),
        *origin,
    )
    return Encoded(finite, text, ends, areas)


def _of(axis: Axis) -> tuple[np.ndarray, ...]:
    return axis.low, axis.high, axis.weight_low, axis.weight_high, axis.first


def _fma_of(typingctx, a, b, c):  # type: ignore[no-untyped-def]
    """fp32 a * b + c, rounded once."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), codegen


_fma: Any = intrinsic(_fma_of)


def _jit(signature: Any = None) -> Any:
    """numba.njit as this module needs it; cached on disk where any folder for it is writable."""

    def decorate(function: Any) -> Any:
        njit: Any = numba.njit
        options = {"nogil": True, "error_model": "numpy", "fastmath": False}
        try:
            return njit(signature, cache=True, **options)(function)
        except RuntimeError as error:
            if "cache" not in str(error):
                raise
            return njit(signature, **options)(function)

    return decorate


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
def _fill(block, logits, mask, row, column, up_rows, up_columns):  # type: ignore[no-untyped-def]
    """Samples (columns, rows) from `row`, `column` of the upsampled logits; False if not finite."""
    finite = True
    same = up_rows[0].size == logits.shape[1] and up_columns[0].size == logits.shape[2]
    for r in range(block.shape[1]):
        y0, y1 = up_rows[0][row + r], up_rows[1][row + r]
        v0, v1 = up_rows[2][row + r], up_rows[3][row + r]
        for c in range(block.shape[0]):
            if same:
                value = logits[mask, row + r, column + c]
            else:
                x0, x1 = up_columns[0][column + c], up_columns[1][column + c]
                w0, w1 = up_columns[2][column + c], up_columns[3][column + c]
                upper = _mix(logits[mask, y0, x0], w0, logits[mask, y0, x1], w1)
                lower = _mix(logits[mask, y1, x0], w0, logits[mask, y1, x1], w1)
                value = _mix(upper, v0, lower, v1)
            block[c, r] = value
            finite &= math.isfinite(value)
    return finite


@_jit()
def _crossing(above, below, row, rows):  # type: ignore[no-untyped-def]
    """`segcore.masks.from_logits._crossing` of one pair of source rows."""
    w_low, w_high, firsts = rows[2], rows[3], rows[4]
    target = below > 0
    first, stop = firsts[row], firsts[row + 1]
    source = row + np.float64(above) / (np.float64(above) - np.float64(below))
    guess = math.ceil((source + 0.5) * (w_low.size / (firsts.size - 1)) - 0.5)
    if not guess > first:  # also where it is no number
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
def _candidates(left, right, found):  # type: ignore[no-untyped-def]
    """Where the sign may change between rows k - 1 and k, for any mixture of two columns."""
    n = left.size
    count = 0
    before_any, before_all = False, False  # a row of zeros stands above
    for k in range(n + 1):
        if k < n:
            a, b = left[k] > 0, right[k] > 0
        else:
            a, b = False, False
        some, both = a or b, a and b
        if some != before_any or both != before_all or some != both:
            found[count] = k
            count += 1
        before_any, before_all = some, both
    return count


@_jit()
def _edges(edges, block, crop, rows, columns, found):  # type: ignore[no-untyped-def]
    """Positions x * H + y where the mask begins and ends, ascending; how many."""
    x0, x1, y0, y1, r0 = crop[1], crop[2], crop[3], crop[4], crop[5]
    height, n_rows = rows[0].size, block.shape[1]
    c0 = columns[0][x0]
    count, x = 0, x0
    while x < x1:
        low, high = columns[0][x], columns[1][x]
        left, right = block[low - c0], block[high - c0]
        end = min(x1, columns[4][low + 1])
        candidates = _candidates(left, right, found)
        while x < end:
            w0, w1 = columns[2][x], columns[3][x]
            known, sign = -1, False  # of the row looked at last
            for i in range(candidates):
                k = found[i]
                if k == 0:
                    before = False
                elif known == k - 1:
                    before = sign
                else:
                    before = _is_positive(left[k - 1], w0, right[k - 1], w1)
                after = k < n_rows and _is_positive(left[k], w0, right[k], w1)
                known, sign = k, after
                if before == after:
                    continue
                if k == 0:
                    y = y0
                elif k == n_rows:
                    y = y1
                else:
                    above = _mix(left[k - 1], w0, right[k - 1], w1)
                    below = _mix(left[k], w0, right[k], w1)
                    y = min(max(_crossing(above, below, r0 + k - 1, rows), y0), y1)
                place = x * height + y
                if count and edges[count - 1] == place:  # two in one place are none
                    count -= 1
                else:
                    edges[count] = place
                    count += 1
            x += 1
    return count


@_jit()
def _write(text, at, edges, count, canvas):  # type: ignore[no-untyped-def]
    """Characters of the runs between `count` edges from `at` on; where they end."""
    runs = count + (edges[count - 1] < canvas)
    before = before2 = before3 = 0  # the edges passed last
    for j in range(runs):
        edge = edges[j] if j < count else canvas
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
_SIGNATURE = types.Tuple([types.boolean, types.uint8[::1], types.int64[::1], types.int64[::1]])(
    types.Array(types.float32, 3, "C", readonly=True),
    types.Array(types.int64, 2, "C", readonly=True),
    *(_AXIS,) * 4,
    types.int64,
    types.int64,
)
_MAX_CHARS = 7  # of one run


@_jit(_SIGNATURE)
def _kernel(logits, crops, rows, columns, up_rows, up_columns, top, left):  # type: ignore[no-untyped-def]
    n = crops.shape[0]
    canvas = rows[0].size * columns[0].size
    ends, areas = np.zeros(n, np.int64), np.zeros(n, np.int64)
    text = np.empty(1024 * n + 64, np.uint8)
    most = longest = 0
    for i in range(n):
        used = crops[i, 6] - crops[i, 5] + 1
        longest = max(longest, used)
        most = max(most, (crops[i, 2] - crops[i, 1]) * (used + 1))
    edges, found = np.empty(most, np.int64), np.empty(longest + 1, np.int64)
    at = 0
    for i in range(n):
        crop = crops[i]
        c0, c1 = columns[0][crop[1]], columns[1][crop[2] - 1]
        block = np.empty((c1 - c0 + 1, crop[6] - crop[5] + 1), np.float32)
        if not _fill(block, logits, crop[0], top + crop[5], left + c0, up_rows, up_columns):
            return False, text[:0], ends, areas
        count = _edges(edges, block, crop, rows, columns, found)
        if at + _MAX_CHARS * (count + 1) > text.size:
            larger = np.empty(2 * text.size + _MAX_CHARS * (count + 1), np.uint8)
            larger[:at] = text[:at]
            text = larger
        for j in range(0, count, 2):
            areas[i] += edges[j + 1] - edges[j]
        if count:
            at = _write(text, at, edges, count, canvas)
        ends[i] = at
    return True, text[:at], ends, areas
