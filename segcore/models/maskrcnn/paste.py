"""Masks of 28 x 28 samples over boxes -> COCO RLE of the image, exactly, without pasting them.

Definition (what the result equals, bit for bit): pad the probabilities with one ring of zeros, grow
the box by the same ratio, cut its corners to whole pixels, resize the mask bilinearly in fp32 to
the box's pixels (as torch's CPU kernels do on AVX2 and later), threshold `> 0.5`, place it on the
canvas.

Method: along a pixel column the mask is piecewise linear between its 30 source rows, so it is
interpolated at source rows only, and each sign change gives one edge, found by division. That is
arithmetic with rounding of its own; where a pixel's value is closer to 0.5 than any rounding could
carry it, and only there, the pixel is computed again by torch's own formula, and flipped if that
disagrees. Cost grows with box width times 30 and not with pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from segcore.masks.bilinear import mix
from segcore.masks.edges import EncodedMasks, encode_edges

_RING = 1  # samples of padding on each side
_COLUMNS_AT_ONCE = 1 << 12  # pixel columns: 1 MB of samples, so that they stay in cache
_DOUBTS_AT_ONCE = 1 << 16  # pixels computed again: a few MB
# Distance from 0.5 under which a pixel is computed exactly. The rounding of positions (below 4e-6
# source rows) and of values (below 1e-6) moves a value in [0, 1] by less than half of this.
_DOUBT = np.float32(1e-5)
_SMALL = 128  # outputs of at most this height + width go through another kernel of torch
_ONE = np.ones(1, np.float32)


class _Axis(NamedTuple):
    """Pixels of one axis of all boxes, box after box: which samples each is mixed from."""

    box: np.ndarray  # (P,) index of the box
    low: np.ndarray  # (P,) int64 source index
    high: np.ndarray
    weight_low: np.ndarray  # (P,) float32
    weight_high: np.ndarray
    start: np.ndarray  # (N,) first pixel of each box


class _Boxes(NamedTuple):
    """Boxes in whole pixels (N,), before they are cut at the canvas; and (H, W) of the canvas."""

    x: np.ndarray
    y: np.ndarray
    width: np.ndarray
    height: np.ndarray
    canvas: tuple[int, int]


def paste(masks: np.ndarray, boxes: np.ndarray, canvas: tuple[int, int]) -> EncodedMasks:
    """Mask probabilities over boxes -> RLE strings on the image.

    Args:
        masks: (N, S, S) float32 in [0, 1]; S samples along each side of the box.
        boxes: (N, 4) float32 x1, y1, x2, y2 in pixels of the image; clipped to it.
        canvas: (H, W) of the image.

    Raises:
        ValueError: Shapes disagree, a number is not finite, or a box leaves the image.
    """
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2] or boxes.shape != (len(masks), 4):
        raise ValueError(f"masks are (N, S, S), boxes (N, 4); got {masks.shape} and {boxes.shape}")
    if masks.dtype != np.float32 or boxes.dtype != np.float32:
        raise ValueError(f"masks and boxes are float32, got {masks.dtype} and {boxes.dtype}")
    if not (np.isfinite(masks).all() and np.isfinite(boxes).all()):
        raise ValueError("masks or boxes are not finite (NaN or infinity)")
    limits = np.array([canvas[1], canvas[0]] * 2) + 1  # one pixel for rounding
    if (boxes < -1).any() or (boxes > limits).any():
        raise ValueError(f"boxes reach outside of the image of (H, W) = {canvas}")
    if len(masks) == 0:
        return EncodedMasks([], np.zeros(0, np.int64), np.zeros(0, np.int64))
    samples = np.pad(masks, ((0, 0), (_RING, _RING), (_RING, _RING)))
    placed = _grow(boxes, samples.shape[1] / masks.shape[1], canvas)
    rows = _axis(samples.shape[1], placed.height)
    columns = _axis(samples.shape[2], placed.width)
    x = placed.x[columns.box] + np.arange(columns.box.size) - columns.start[columns.box]
    visible = np.flatnonzero((x >= 0) & (x < canvas[1]))
    painter = _Painter(samples, placed, rows, columns)
    edges = [
        painter.edges(visible[i : i + _COLUMNS_AT_ONCE])
        for i in range(0, visible.size, _COLUMNS_AT_ONCE)
    ]
    return encode_edges(np.concatenate([np.zeros(0, np.int64), *edges]), canvas[0] * canvas[1])


def _grow(boxes: np.ndarray, ratio: float, canvas: tuple[int, int]) -> _Boxes:
    """Boxes larger by `ratio` around their centres, in fp32, with corners cut to integers."""
    half, scale = np.float32(0.5), np.float32(ratio)
    centre = (boxes[:, 2:] + boxes[:, :2]) * half
    reach = (boxes[:, 2:] - boxes[:, :2]) * half * scale
    first = (centre - reach).astype(np.int64)
    size = np.maximum((centre + reach).astype(np.int64) - first + 1, 1)
    return _Boxes(first[:, 0], first[:, 1], size[:, 0], size[:, 1], canvas)


def _axis(size_in: int, sizes: np.ndarray) -> _Axis:
    """`segcore.masks.bilinear.resample_axis` for many sizes at once."""
    box = np.repeat(np.arange(sizes.size), sizes)
    start = np.cumsum(sizes) - sizes
    place = np.arange(box.size) - start[box]
    scale = (np.float32(size_in) / sizes.astype(np.float32)).astype(np.float64)
    centre = (place.astype(np.float32) + np.float32(0.5)).astype(np.float64)
    # float64 holds the product: one rounding, as in a fused multiply-add
    source = np.maximum((scale[box] * centre - 0.5).astype(np.float32), np.float32(0))
    source = np.where(sizes[box] == size_in, place.astype(np.float32), source)
    low = np.minimum(source.astype(np.int64), size_in - 1)
    weight_high = np.clip(source - low.astype(np.float32), np.float32(0), np.float32(1))
    high = np.minimum(low + 1, size_in - 1)
    return _Axis(box, low, high, _ONE - weight_high, weight_high, start)


class _Painter:
    """Finds where masks begin and end along pixel columns."""

    def __init__(self, samples: np.ndarray, placed: _Boxes, rows: _Axis, columns: _Axis) -> None:
        self._samples = samples
        self._by_column = np.ascontiguousarray(samples.transpose(0, 2, 1)).reshape(
            -1, samples.shape[1]
        )
        self._placed, self._rows, self._columns = placed, rows, columns
        n, size_in = samples.shape[:2]
        # pixels first[box, r] .. first[box, r + 1] of a box have source row r above them
        counted = np.bincount(rows.box * size_in + rows.low, minlength=n * size_in)
        self._first = np.zeros((n, size_in + 1), np.int64)
        np.cumsum(counted.reshape(n, size_in), axis=1, out=self._first[:, 1:])

    def edges(self, columns: np.ndarray) -> np.ndarray:
        """(C,) indices into the column axis -> box * (H * W + 1) + x * H + y of each edge.

        Every column has an even number of edges; an even number in one place is none.
        """
        axis, size_in = self._columns, self._samples.shape[1]
        base = axis.box[columns] * size_in
        values = self._by_column.take(base + axis.low[columns], axis=0)
        values *= axis.weight_low[columns, None]
        other = self._by_column.take(base + axis.high[columns], axis=0)
        other *= axis.weight_high[columns, None]
        values += other
        values -= np.float32(0.5)
        inside, doubtful = values > 0, np.abs(values) <= _DOUBT
        change = inside[:, 1:] != inside[:, :-1]
        active = np.flatnonzero(change | doubtful[:, 1:] | doubtful[:, :-1])
        at, row = np.divmod(active, size_in - 1)
        above, below = values[at, row].astype(np.float64), values[at, row + 1].astype(np.float64)
        crosses = change.ravel()[active]
        column = columns[at]
        edge, toggled_at, toggled_y = self._solve(column, row, above, below, crosses)
        found_at = np.concatenate((column[crosses], toggled_at, toggled_at))
        found_y = np.concatenate((edge[crosses], toggled_y, toggled_y + 1))
        return self._on_canvas(found_at, found_y)

    def _solve(
        self,
        column: np.ndarray,
        row: np.ndarray,
        above: np.ndarray,
        below: np.ndarray,
        crosses: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Segments between source rows -> their edge, and the pixels to flip (column, y).

        `above` and `below` are the values at the segment's ends, less 0.5.
        """
        box = self._columns.box[column]
        first, stop = self._first[box, row], self._first[box, row + 1]
        scale = self._placed.height[box] / self._samples.shape[1]

        def pixel(share: np.ndarray) -> np.ndarray:
            """Position between the two source rows -> real-valued pixel row of the box."""
            return np.asarray((row + share + 0.5) * scale - 0.5)

        with np.errstate(divide="ignore", invalid="ignore"):
            slope = below - above
            band = np.sort(
                (pixel((-_DOUBT - above) / slope), pixel((_DOUBT - above) / slope)), axis=0
            )
            level = slope == 0  # both ends are in doubt, and so is all between them
            begin = np.where(level, first, np.clip(np.ceil(band[0]), first, stop)).astype(np.int64)
            end = np.where(level, stop, np.clip(np.floor(band[1]) + 1, first, stop))
            edge = np.clip(np.ceil(pixel(-above / slope)), first, stop)
        edge = np.where(crosses, edge, stop).astype(np.int64)
        many = np.maximum(end.astype(np.int64) - begin, 0)
        ends = np.cumsum(many)
        flips = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
        for start in range(0, int(many.sum()), _DOUBTS_AT_ONCE):
            k = np.arange(start, min(start + _DOUBTS_AT_ONCE, int(ends[-1])))
            which = np.searchsorted(ends, k, side="right")
            y = begin[which] + k - (ends - many)[which]
            assumed = np.where(y < edge[which], above[which] > 0, below[which] > 0)
            wrong = assumed != self._is_set(column[which], self._rows.start[box[which]] + y)
            flips.append((column[which[wrong]], y[wrong]))
        return edge, *(np.concatenate(parts) for parts in zip(*flips, strict=True))

    def _is_set(self, column: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Pixels (indices into both axes) -> whether torch's kernel gives more than 0.5."""
        xs, ys = self._columns, self._rows
        box = xs.box[column]
        corners = [
            self._samples[box, y[row], x[column]]
            for y in (ys.low, ys.high)
            for x in (xs.low, xs.high)
        ]
        x0, x1 = xs.weight_low[column], xs.weight_high[column]
        y0, y1 = ys.weight_low[row], ys.weight_high[row]
        upper, lower = mix(corners[0], x0, corners[1], x1), mix(corners[2], x0, corners[3], x1)
        value = mix(upper, y0, lower, y1)
        small = np.flatnonzero(self._placed.height[box] + self._placed.width[box] <= _SMALL)
        if small.size:  # the sum of four products, in the order of that kernel
            c = [corner[small] for corner in corners]
            x0, x1, y0, y1 = x0[small], x1[small], y0[small], y1[small]
            total = mix(c[0], y0 * x0, c[1], y0 * x1)
            total = mix(c[2], y1 * x0, total, _ONE)
            value[small] = mix(c[3], y1 * x1, total, _ONE)
        return np.asarray(value > np.float32(0.5))

    def _on_canvas(self, column: np.ndarray, y: np.ndarray) -> np.ndarray:
        height, width = self._placed.canvas
        box = self._columns.box[column]
        x = self._placed.x[box] + column - self._columns.start[box]
        y = np.clip(y + self._placed.y[box], 0, height)
        return np.asarray(box * (height * width + 1) + x * height + y)
