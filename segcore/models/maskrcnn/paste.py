"""Masks of 28 x 28 samples over boxes -> COCO RLE of the image, exactly, without pasting them.

Definition (what the result equals, bit for bit): pad the probabilities with one ring of zeros, grow
the box by the same ratio, truncate its corners to whole pixels, resize the mask bilinearly in fp32
to the box's pixels (as torch's CPU kernels do on AVX2 and later), threshold `> 0.5`, place it on
the canvas.

Method: along a pixel column the mask is piecewise linear between its 30 source rows, so it is
interpolated at source rows only, and each sign change gives one edge, found by division. This
arithmetic has rounding errors of its own. Where a pixel's value is so close to 0.5 that they could
matter, and only there, the pixel is computed again by torch's own formula, and flipped if that
disagrees. The cost grows with box width times 30 and not with the number of pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from segcore.errors import NotFinite
from segcore.masks.bilinear import mix
from segcore.masks.edges import EncodedMasks, encode_edges

_RING = 1  # samples of padding on each side
_COLUMNS_PER_CHUNK = 1 << 12  # pixel columns: 1 MB of samples, so that they stay in cache
_DOUBTFUL_PER_CHUNK = 1 << 16  # pixels that are computed again: a few MB
# A pixel whose value is closer to 0.5 than this is computed again, exactly. The rounding of
# positions (below 4e-6 source rows) and of values (below 1e-6) moves a value in [0, 1] by less than
# half of this.
_DOUBTFUL = np.float32(1e-5)
_MAX_SMALL = 128  # pixels: outputs of at most this height + width use another kernel of torch
_ONE = np.ones(1, np.float32)


class _Axis(NamedTuple):
    """Pixels of one axis of all boxes, box after box: from which samples each is interpolated.

    Attributes:
        box: (P,) index of the box.
        low, high: (P,) int64 source indices.
        weight_low, weight_high: (P,) float32.
        start: (N,) index of the first pixel of each box.
    """

    box: np.ndarray
    low: np.ndarray
    high: np.ndarray
    weight_low: np.ndarray
    weight_high: np.ndarray
    start: np.ndarray


class _PixelBoxes(NamedTuple):
    """Boxes in whole pixels (N,), not yet clipped to the canvas; and (H, W) of the canvas."""

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
        NotFinite: A number is not.
        ValueError: Shapes disagree, or a box leaves the image.
    """
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2] or boxes.shape != (len(masks), 4):
        raise ValueError(f"masks are (N, S, S), boxes (N, 4); got {masks.shape} and {boxes.shape}")
    if masks.dtype != np.float32 or boxes.dtype != np.float32:
        raise ValueError(f"masks and boxes are float32, got {masks.dtype} and {boxes.dtype}")
    if not (np.isfinite(masks).all() and np.isfinite(boxes).all()):
        raise NotFinite("masks or boxes are not finite (NaN or infinity)")
    limits = np.array([canvas[1], canvas[0]] * 2) + 1  # one pixel for rounding
    if (boxes < -1).any() or (boxes > limits).any():
        raise ValueError(f"boxes reach outside of the image of (H, W) = {canvas}")
    if len(masks) == 0:
        return EncodedMasks([], np.zeros(0, np.int64), np.zeros(0, np.int64))
    samples = np.pad(masks, ((0, 0), (_RING, _RING), (_RING, _RING)))
    pixel_boxes = _grow(boxes, samples.shape[1] / masks.shape[1], canvas)
    rows = _sample_axis(samples.shape[1], pixel_boxes.height)
    columns = _sample_axis(samples.shape[2], pixel_boxes.width)
    x = pixel_boxes.x[columns.box] + np.arange(columns.box.size) - columns.start[columns.box]
    visible = np.flatnonzero((x >= 0) & (x < canvas[1]))
    finder = _EdgeFinder(samples, pixel_boxes, rows, columns)
    edges = [
        finder.find(visible[i : i + _COLUMNS_PER_CHUNK])
        for i in range(0, visible.size, _COLUMNS_PER_CHUNK)
    ]
    return encode_edges(np.concatenate([np.zeros(0, np.int64), *edges]), canvas[0] * canvas[1])


def _grow(boxes: np.ndarray, ratio: float, canvas: tuple[int, int]) -> _PixelBoxes:
    """Boxes larger by `ratio` around their centres, in fp32, with corners truncated to integers."""
    half, scale = np.float32(0.5), np.float32(ratio)
    centre = (boxes[:, 2:] + boxes[:, :2]) * half
    half_size = (boxes[:, 2:] - boxes[:, :2]) * half * scale
    first = (centre - half_size).astype(np.int64)
    size = np.maximum((centre + half_size).astype(np.int64) - first + 1, 1)
    return _PixelBoxes(first[:, 0], first[:, 1], size[:, 0], size[:, 1], canvas)


def _sample_axis(size_in: int, sizes: np.ndarray) -> _Axis:
    """`segcore.masks.bilinear.resample_axis` for many sizes at once."""
    box = np.repeat(np.arange(sizes.size), sizes)
    start = np.cumsum(sizes) - sizes
    pixel = np.arange(box.size) - start[box]
    scale = (np.float32(size_in) / sizes.astype(np.float32)).astype(np.float64)
    centre = (pixel.astype(np.float32) + np.float32(0.5)).astype(np.float64)
    # float64 holds the exact product, so that there is one rounding, as in a fused multiply-add.
    source = np.maximum((scale[box] * centre - 0.5).astype(np.float32), np.float32(0))
    source = np.where(sizes[box] == size_in, pixel.astype(np.float32), source)
    low = np.minimum(source.astype(np.int64), size_in - 1)
    weight_high = np.clip(source - low.astype(np.float32), np.float32(0), np.float32(1))
    high = np.minimum(low + 1, size_in - 1)
    return _Axis(box, low, high, _ONE - weight_high, weight_high, start)


class _EdgeFinder:
    """Finds where masks begin and end along pixel columns.

    Args:
        samples: (N, S, S) float32 probabilities, padded.
        boxes: The pixels that each mask covers.
        rows, columns: How its samples are interpolated to these pixels.
    """

    def __init__(
        self, samples: np.ndarray, boxes: _PixelBoxes, rows: _Axis, columns: _Axis
    ) -> None:
        self._samples = samples
        self._by_column = np.ascontiguousarray(samples.transpose(0, 2, 1)).reshape(
            -1, samples.shape[1]
        )
        self._boxes, self._rows, self._columns = boxes, rows, columns
        n, size_in = samples.shape[:2]
        # Pixels first[box, r] .. first[box, r + 1] of a box have source row r above them.
        counts = np.bincount(rows.box * size_in + rows.low, minlength=n * size_in)
        self._first = np.zeros((n, size_in + 1), np.int64)
        np.cumsum(counts.reshape(n, size_in), axis=1, out=self._first[:, 1:])

    def find(self, columns: np.ndarray) -> np.ndarray:
        """(C,) indices into the column axis -> box * (H * W + 1) + x * H + y of each edge.

        Every column has an even number of edges; an even number of edges at the same pixel cancels
        out.
        """
        axis, size_in = self._columns, self._samples.shape[1]
        base = axis.box[columns] * size_in
        values = self._by_column.take(base + axis.low[columns], axis=0)
        values *= axis.weight_low[columns, None]
        values_high = self._by_column.take(base + axis.high[columns], axis=0)
        values_high *= axis.weight_high[columns, None]
        values += values_high
        values -= np.float32(0.5)
        inside, doubtful = values > 0, np.abs(values) <= _DOUBTFUL
        change = inside[:, 1:] != inside[:, :-1]
        active = np.flatnonzero(change | doubtful[:, 1:] | doubtful[:, :-1])
        index, row = np.divmod(active, size_in - 1)
        above = values[index, row].astype(np.float64)
        below = values[index, row + 1].astype(np.float64)
        crosses = change.ravel()[active]
        column = columns[index]
        edge, flipped_column, flipped_y = self._solve(column, row, above, below, crosses)
        # A flipped pixel has an edge before it and one after it.
        edge_column = np.concatenate((column[crosses], flipped_column, flipped_column))
        edge_y = np.concatenate((edge[crosses], flipped_y, flipped_y + 1))
        return self._on_canvas(edge_column, edge_y)

    def _solve(
        self,
        column: np.ndarray,
        row: np.ndarray,
        above: np.ndarray,
        below: np.ndarray,
        crosses: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Segments between source rows -> their edge, and the pixels to flip (column, y).

        `above` and `below` are the values at the ends of the segment, minus 0.5.
        """
        box = self._columns.box[column]
        first, stop = self._first[box, row], self._first[box, row + 1]
        scale = self._boxes.height[box] / self._samples.shape[1]

        def pixel_row(fraction: np.ndarray) -> np.ndarray:
            """Position between the two source rows -> real-valued pixel row of the box."""
            return np.asarray((row + fraction + 0.5) * scale - 0.5)

        with np.errstate(divide="ignore", invalid="ignore"):
            slope = below - above
            doubtful = np.sort(
                (pixel_row((-_DOUBTFUL - above) / slope), pixel_row((_DOUBTFUL - above) / slope)),
                axis=0,
            )
            is_level = slope == 0  # both ends are doubtful, and so is all between them
            begin = np.where(is_level, first, np.clip(np.ceil(doubtful[0]), first, stop)).astype(
                np.int64
            )
            end = np.where(is_level, stop, np.clip(np.floor(doubtful[1]) + 1, first, stop))
            edge = np.clip(np.ceil(pixel_row(-above / slope)), first, stop)
        edge = np.where(crosses, edge, stop).astype(np.int64)
        counts = np.maximum(end.astype(np.int64) - begin, 0)  # doubtful pixels of each segment
        ends = np.cumsum(counts)
        flips = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
        for start in range(0, int(counts.sum()), _DOUBTFUL_PER_CHUNK):
            k = np.arange(start, min(start + _DOUBTFUL_PER_CHUNK, int(ends[-1])))
            segment = np.searchsorted(ends, k, side="right")
            y = begin[segment] + k - (ends - counts)[segment]
            assumed = np.where(y < edge[segment], above[segment] > 0, below[segment] > 0)
            wrong = assumed != self._is_set(column[segment], self._rows.start[box[segment]] + y)
            flips.append((column[segment[wrong]], y[wrong]))
        return edge, *(np.concatenate(parts) for parts in zip(*flips, strict=True))

    def _is_set(self, column: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Pixels (indices into both axes) -> whether torch's kernel gives more than 0.5 there."""
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
        small = np.flatnonzero(self._boxes.height[box] + self._boxes.width[box] <= _MAX_SMALL)
        if small.size:  # the sum of four products, in the order in which that kernel adds them
            c = [corner[small] for corner in corners]
            x0, x1, y0, y1 = x0[small], x1[small], y0[small], y1[small]
            total = mix(c[0], y0 * x0, c[1], y0 * x1)
            total = mix(c[2], y1 * x0, total, _ONE)
            value[small] = mix(c[3], y1 * x1, total, _ONE)
        return np.asarray(value > np.float32(0.5))

    def _on_canvas(self, column: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Column (index into the axis) and row y of the box -> box * (H * W + 1) + x * H + y."""
        height, width = self._boxes.canvas
        box = self._columns.box[column]
        x = self._boxes.x[box] + column - self._columns.start[box]
        y = np.clip(y + self._boxes.y[box], 0, height)
        return np.asarray(box * (height * width + 1) + x * height + y)
