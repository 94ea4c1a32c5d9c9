"""Low-resolution mask logits -> COCO RLE of the original image, exactly, without full-size masks.

Definition (what the result equals, bit for bit): upsample the logits where the window asks for it,
cut the window, resize it bilinearly to (H, W) in fp32 (`segcore.masks.bilinear`), threshold `> 0`,
clear what lies outside [ceil x1, ceil x2) x [ceil y1, ceil y2), drop masks without a pixel.

Method: along one column of the result the logit is piecewise linear between source rows, and its
fp32 value is monotone between two source rows of different sign, because every rounding is. So each
such pair has exactly one crossing. Only the box's columns are interpolated, at source rows; the
crossing is estimated, then moved until the exact formula agrees. Cost grows with box width times
source rows and not with pixels.

This module does it in NumPy. Where numba is installed, `segcore.masks.numba_kernel` does the same, to
the byte, several times faster.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Literal, NamedTuple

import numpy as np

from segcore.masks.bilinear import Axis, axis, mix, mix_is_positive
from segcore.masks.edges import EncodedMasks, encode_edges
from segcore.masks.rle import MAX_CANVAS

_GROUP_SAMPLES = 1 << 17  # interpolated at once: a few MB, so that they stay in cache
_BATCH_SAMPLES = 1 << 20  # whose edges are held at once: at worst some tens of MB
NOT_FINITE = "mask logits are not finite (NaN or infinity)"
_FREE_SAMPLES = 1 << 12  # of padding cost less than another round of calls


class Window(NamedTuple):
    """The part of the logits that shows the image, in samples of the (upsampled) logits.

    Rows [top, bottom) and columns [left, right) after upsampling by `upsample` (1, 2 or 4).
    """

    top: int
    left: int
    bottom: int
    right: int
    upsample: int = 1

    @classmethod
    def of_letterbox(cls, top: int, left: int, bottom: int, right: int, stride: int = 4) -> Window:
        """Window of content rows [top, bottom) and columns [left, right) of the model's input.

        Padding must go on whole samples, each `stride` input pixels wide; where it does not, the
        logits are upsampled by the least of 1, 2 and 4 that makes it so.

        Raises:
            ValueError: No such factor exists.
        """
        for factor in (1, 2, 4):
            edges = np.array([top, left, bottom, right]) * factor
            if not (edges % stride).any():
                y0, x0, y1, x1 = (edges // stride).tolist()
                return cls(y0, x0, y1, x1, factor)
        raise ValueError(
            f"content {top, left, bottom, right} is not on a quarter of stride {stride}"
        )


FULL: Window | None = None


def encode_logits(
    logits: np.ndarray,
    boxes: np.ndarray,
    canvas: tuple[int, int],
    window: Window | None = FULL,
    by: Literal["numpy", "compiled"] | None = None,
) -> EncodedMasks:
    """Mask logits -> RLE strings on the original image. Thread-safe.

    Args:
        logits: (N, h, w) float32, finite: coefficients x prototypes of one image.
        boxes: (N, 4) x1, y1, x2, y2 in pixels of the original image; may reach outside of it.
        canvas: (H, W) of the original image.
        window: Part of the logits that shows the image; None: all of it.
        by: Which implementation; None: the compiled one where numba is installed. Results agree
            to the byte.

    Raises:
        ValueError: Shapes disagree, the window is not inside the logits, or a logit is not finite.
        RuntimeError: The compiled implementation was asked for and is not there.
    """
    if logits.ndim != 3 or logits.dtype != np.float32:
        raise ValueError(f"logits are (N, h, w) float32, got {logits.shape} {logits.dtype}")
    window = checked_window(logits.shape, boxes, canvas, window)
    grid = _Grid(
        axis(window.bottom - window.top, canvas[0]), axis(window.right - window.left, canvas[1])
    )
    crops = _crops(boxes, canvas, grid)
    if (by or implementation()) == "compiled":
        return _encode_compiled(logits, crops, grid, window)
    counts: list[bytes] = []
    areas, keep = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for batch in _batches(crops):
        edges = [_edges(logits, group, grid, window) for group in _groups(batch)]
        encoded = encode_edges(np.concatenate(edges), canvas[0] * canvas[1])
        counts += encoded.counts
        areas.append(encoded.areas)
        keep.append(encoded.keep)
    return EncodedMasks(counts, np.concatenate(areas), np.concatenate(keep))


def implementation() -> Literal["numpy", "compiled"]:
    """What `encode_logits` uses when it is not told."""
    return "numpy" if _compiled() is None else "compiled"


@cache
def _compiled() -> ModuleType | None:
    """The compiled implementation; None where numba is not installed."""
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        from segcore.masks import numba_kernel as compiled
    except Exception as error:  # whatever a numba of the wrong version does
        warnings.warn(
            f"numba is installed but does not work ({type(error).__name__}: {error}); masks are "
            "encoded by NumPy, slower and with the same result. Upgrade or remove numba.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return compiled


def _encode_compiled(
    logits: np.ndarray, crops: _Crops, grid: _Grid, window: Window
) -> EncodedMasks:
    compiled = _compiled()
    if compiled is None:
        raise RuntimeError("the compiled masks need numba: pip install 'segcore[fast]'")
    _, h, w = logits.shape
    upsampled = axis(h, h * window.upsample), axis(w, w * window.upsample)
    table = np.stack([getattr(crops, name) for name in crops.__dataclass_fields__], axis=1)
    found = compiled.encode(logits, table, grid, upsampled, (window.top, window.left))
    if not found.finite:
        raise ValueError(NOT_FINITE)
    cuts = np.append(0, found.ends)
    kept = np.flatnonzero(found.areas)
    text = found.text.tobytes()
    pairs = list(pairwise(cuts.tolist()))
    counts = [text[a:b] for a, b in (pairs[i] for i in kept.tolist())]
    return EncodedMasks(counts, found.areas[kept], crops.index[kept])


class _Grid(NamedTuple):
    rows: Axis
    columns: Axis


@dataclass(frozen=True)
class _Crops:
    """Non-empty crops or vertical strips of them, as int64 columns of equal length.

    `index` is the mask; x0, x1, y0, y1 result pixels; r0, r1 first and last source row they use.
    """

    index: np.ndarray
    x0: np.ndarray
    x1: np.ndarray
    y0: np.ndarray
    y1: np.ndarray
    r0: np.ndarray
    r1: np.ndarray

    def take(self, which: np.ndarray | slice) -> _Crops:
        return _Crops(*(getattr(self, name)[which] for name in self.__dataclass_fields__))

    @property
    def samples(self) -> np.ndarray:
        """Logits to interpolate for each crop, with the one more that its edges may need."""
        return np.asarray((self.x1 - self.x0) * (self.r1 - self.r0 + 2))


def checked_window(
    shape: tuple[int, ...], boxes: np.ndarray, canvas: tuple[int, int], window: Window | None
) -> Window:
    """The window of logits of shape (N, h, w), after everything about them was found in order.

    Raises:
        ValueError: Shapes disagree, or the window is not inside the logits.
    """
    n, h, w = shape
    if boxes.shape != (n, 4):
        raise ValueError(f"boxes are (N, 4) with N = {n} as the logits, got {boxes.shape}")
    if canvas[0] < 1 or canvas[1] < 1 or canvas[0] * canvas[1] > MAX_CANVAS:
        raise ValueError(f"canvas (H, W) has 1..{MAX_CANVAS} pixels, got {canvas}")
    window = Window(0, 0, h, w) if window is None else window
    top, left, bottom, right, factor = window
    inside = 0 <= top < bottom <= h * factor and 0 <= left < right <= w * factor
    if factor not in (1, 2, 4) or not inside:
        raise ValueError(f"{window} is empty or not inside logits of {h}x{w}")
    return window


def box_pixels(boxes: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) -> (N, 4) int64 x0, y0, x1, y1: pixels [x0, x1) x [y0, y1) inside the canvas.

    Args:
        boxes: x1, y1, x2, y2; one that is not finite has no pixel.
        sides: W, H, W, H of the canvas, (4,) or (N, 4) float64.
    """
    known = np.isfinite(boxes).all(axis=1)
    edges = np.ceil(np.where(known[:, None], boxes, 0).astype(np.float64))
    return np.asarray(np.clip(edges, 0, sides).astype(np.int64))


def _crops(boxes: np.ndarray, canvas: tuple[int, int], grid: _Grid) -> _Crops:
    sides = np.array([canvas[1], canvas[0]] * 2, np.float64)
    x0, y0, x1, y1 = box_pixels(boxes, sides).T
    index = np.flatnonzero((x1 > x0) & (y1 > y0))
    x0, y0, x1, y1 = x0[index], y0[index], x1[index], y1[index]
    return _Crops(index, x0, x1, y0, y1, grid.rows.low[y0], grid.rows.high[y1 - 1])


def _batches(crops: _Crops) -> Iterator[_Crops]:
    """Consecutive crops whose edges, at worst one for each sample, fit in `_BATCH_SAMPLES`."""
    ends = np.cumsum(crops.samples)
    start = 0
    while start < ends.size:
        room = (ends[start - 1] if start else 0) + _BATCH_SAMPLES
        stop = max(start + 1, int(np.searchsorted(ends, room, side="right")))
        yield crops.take(slice(start, stop))
        start = stop


def _groups(crops: _Crops) -> Iterator[_Crops]:
    """Strips of similar shape, at most `_GROUP_SAMPLES` when padded to their largest."""
    height = crops.r1 - crops.r0 + 2
    width = np.maximum(_GROUP_SAMPLES // height, 1)
    strips = -(-(crops.x1 - crops.x0) // width)
    which = np.repeat(np.arange(strips.size), strips)
    offset = width[which] * (np.arange(which.size) - np.repeat(np.cumsum(strips) - strips, strips))
    cut = crops.take(which)
    x0 = cut.x0 + offset
    cut = replace(cut, x0=x0, x1=np.minimum(cut.x1, x0 + width[which]))
    cut = cut.take(np.argsort(cut.samples, kind="stable"))
    widths, heights = (cut.x1 - cut.x0).tolist(), (cut.r1 - cut.r0 + 2).tolist()
    start = 0
    wide = high = used = 0
    for stop, (w, h) in enumerate(zip(widths, heights, strict=True)):
        wide, high, used = max(wide, w), max(high, h), used + w * h
        padded = wide * high * (stop + 1 - start)
        if stop > start and padded > min(_GROUP_SAMPLES, 2 * used + _FREE_SAMPLES):
            yield cut.take(slice(start, stop))
            start, wide, high, used = stop, w, h, w * h
    yield cut.take(slice(start, len(widths)))


def _edges(logits: np.ndarray, crops: _Crops, grid: _Grid, window: Window) -> np.ndarray:
    """Where masks begin and end: mask * (H * W + 1) + x * H + y, ascending within each strip."""
    rows, columns = grid
    x = np.minimum(crops.x0[:, None] + np.arange(np.max(crops.x1 - crops.x0)), crops.x1[:, None])
    inside = x < crops.x1[:, None]
    x = np.minimum(x, columns.size_out - 1)
    c0, c1 = columns.low[crops.x0], columns.high[crops.x1 - 1]
    block = _block(logits, crops, (c0, c1), window)
    n, n_columns, n_rows = block.shape
    block = block.reshape(n * n_columns, n_rows)
    base = np.arange(n)[:, None] * n_columns - c0[:, None]
    last = base + c1[:, None]
    low = np.minimum(columns.low[x] + base, last).ravel()
    high = np.minimum(columns.high[x] + base, last).ravel()
    w_low, w_high = columns.weight_low[x].ravel(), columns.weight_high[x].ravel()
    n_used = crops.r1 - crops.r0 + 1
    state = np.zeros((low.size, n_rows + 2), bool)
    state[:, 1:-1] = mix_is_positive(
        block.take(low, axis=0), w_low[:, None], block.take(high, axis=0), w_high[:, None]
    )
    if n > 1 or not inside.all():
        used = inside[:, :, None] & (np.arange(n_rows) < n_used[:, None])[:, None, :]
        state[:, 1:-1] &= used.reshape(low.size, n_rows)
    at, k = np.divmod(np.flatnonzero(state[:, 1:] != state[:, :-1]), n_rows + 1)
    crop = at // x.shape[1]
    y = np.where(k == 0, crops.y0[crop], crops.y1[crop])
    inner = np.flatnonzero((k > 0) & (k < n_used[crop]))
    at_in, k_in, crop_in = at[inner], k[inner], crop[inner]
    above, below = (
        mix(block[low[at_in], r], w_low[at_in], block[high[at_in], r], w_high[at_in])
        for r in (k_in - 1, k_in)
    )
    crossing = _crossing(above, below, crops.r0[crop_in] + k_in - 1, rows)
    y[inner] = np.clip(crossing, crops.y0[crop_in], crops.y1[crop_in])
    canvas = rows.size_out * columns.size_out
    return np.asarray(crops.index[crop] * (canvas + 1) + x.ravel()[at] * rows.size_out + y)


def _block(
    logits: np.ndarray, crops: _Crops, span: tuple[np.ndarray, np.ndarray], window: Window
) -> np.ndarray:
    """(crops, columns, rows) float32 window samples, columns span[0]..span[1], rows r0..r1.

    Crops with fewer columns or rows than the largest repeat their last one.
    """
    first, last = span
    column = np.minimum(first[:, None] + np.arange(np.max(last - first) + 1), last[:, None])
    row = np.minimum(
        crops.r0[:, None] + np.arange(np.max(crops.r1 - crops.r0) + 1), crops.r1[:, None]
    )
    column, row = (column + window.left)[:, :, None], (row + window.top)[:, None, :]
    index = crops.index[:, None, None]
    if window.upsample == 1:
        block = logits[index, row, column]
    else:
        ys = axis(logits.shape[1], logits.shape[1] * window.upsample)
        xs = axis(logits.shape[2], logits.shape[2] * window.upsample)
        upper, lower = (
            mix(
                logits[index, source[row], xs.low[column]],
                xs.weight_low[column],
                logits[index, source[row], xs.high[column]],
                xs.weight_high[column],
            )
            for source in (ys.low, ys.high)
        )
        block = mix(upper, ys.weight_low[row], lower, ys.weight_high[row])
    if not np.isfinite(block).all():
        raise ValueError(NOT_FINITE)
    return np.asarray(block)


def _crossing(above: np.ndarray, below: np.ndarray, row: np.ndarray, rows: Axis) -> np.ndarray:
    """First result row between source rows `row` and `row + 1` that has the sign of `below`.

    `above` and `below` are the fp32 logits there, exactly one of them > 0. The row after the
    segment where no result row in it has that sign.
    """
    target = below > 0
    first, stop = rows.first[row], rows.first[row + 1]
    source = row + above / (above.astype(np.float64) - below)
    guess = np.ceil((source + 0.5) * (rows.size_out / rows.size_in) - 0.5)
    y = np.clip(guess.astype(np.int64), first, stop)

    def has_sign(at: np.ndarray, which: np.ndarray) -> np.ndarray:
        positive = mix_is_positive(
            above[which], rows.weight_low[at], below[which], rows.weight_high[at]
        )
        return np.asarray(positive == target[which])

    moving = np.flatnonzero(y > first)
    while moving.size:  # up, while the row before has the sign already
        moving = moving[has_sign(y[moving] - 1, moving)]
        y[moving] -= 1
        moving = moving[y[moving] > first[moving]]
    moving = np.flatnonzero(y < stop)
    while moving.size:  # down, while this row does not have it yet
        moving = moving[~has_sign(y[moving], moving)]
        y[moving] += 1
        moving = moving[y[moving] < stop[moving]]
    return y
