"""What the host prepares for masks that are encoded on a device: crops, tables, sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from segcore.masks.bilinear import resample_axis
from segcore.masks.crops import box_pixels
from segcore.masks.window import Window

# Bytes held at once for each entry of a ragged array, counted over live tensors.
_SAMPLE_BYTES, _UPSAMPLED_SAMPLE_BYTES, _GRID_BYTES = 64, 160, 96
_LINE_BYTES = 112 + 4 * 288  # of a result column, with the about four candidates of usual masks
_N_OFFSETS = 4  # the last fields of `device.edges.DeviceCrops`: offsets that begin with the chunk


class ChunkSizes(NamedTuple):
    """What the host knows of a chunk.

    Attributes:
        block, grid, lines: Entries of the ragged arrays: samples, grid positions, result columns.
        halvings: How many find a row in the longest segment between two source rows.
        upsampled: Whether windows are of upsampled logits; of all crops or of none.
        pixels: Of the largest canvas.
    """

    block: int
    grid: int
    lines: int
    halvings: int
    upsampled: bool
    pixels: int


class _ImageFields(NamedTuple):
    """Numbers that all instances of an image share; see `device.edges.DeviceCrops`.

    They are integers of one image, or arrays of these for each crop.
    """

    plane: int
    samples: int
    stride: int
    top: int
    left: int
    height: int
    width: int
    row_at: int
    column_at: int
    first_pixel_at: int
    up_row_at: int
    up_column_at: int
    halvings: int
    upsampled: int


class _TablePlace(NamedTuple):
    """Where an axis lies in the tables: its result pixels, its entries of `first_pixel`."""

    pixels_at: int
    first_pixel_at: int
    halvings: int  # that its longest segment needs


class _AxisTables:
    """Axes put one after another, each once."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, int], _TablePlace] = {}
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._n_pixels = self._n_first_pixels = 0

    def add(self, size_in: int, size_out: int) -> _TablePlace:
        """Place of this axis; it is added where it is not there yet."""
        place = self._places.get((size_in, size_out))
        if place is None:
            axis = resample_axis(size_in, size_out)
            longest_segment = int(np.diff(axis.first_pixel).max())
            place = _TablePlace(
                self._n_pixels, self._n_first_pixels, halvings=longest_segment.bit_length()
            )
            self._places[size_in, size_out] = place
            self._parts.append(
                (axis.low, axis.high, axis.weight_low, axis.weight_high, axis.first_pixel)
            )
            self._n_pixels += size_out
            self._n_first_pixels += size_in + 1
        return place

    def concatenate(self) -> tuple[np.ndarray, ...]:
        """`DevicePlan.tables`."""
        return tuple(np.concatenate(part) for part in zip(*self._parts, strict=True))


@dataclass(frozen=True)
class DevicePlan:
    """Non-empty crops of a group of images; those of upsampled windows come last.

    Attributes:
        mask: (M,) which mask of the group each crop is of.
        tables: Fields of `device.edges.DeviceAxes`.
    """

    mask: np.ndarray
    tables: tuple[np.ndarray, ...]
    _fields: np.ndarray  # (fields of `device.edges.DeviceCrops`, M) int64
    _entries: np.ndarray  # (3, M) entries in the ragged arrays: samples, grid positions, columns
    _halvings: np.ndarray  # (M,)
    _upsampled: np.ndarray  # (M,) bool

    @classmethod
    def build(
        cls,
        shapes: Sequence[tuple[int, ...]],
        boxes: Sequence[np.ndarray],
        canvases: Sequence[tuple[int, int]],
        windows: Sequence[Window],
    ) -> DevicePlan:
        """Plan of images whose logits, (N, h, w) each, lie one after another.

        Args:
            shapes: N, h, w of each image.
            boxes: (N, 4) of each.
            canvases: H, W of each.
            windows: Inside the logits.
        """
        tables = _AxisTables()
        images, plane = [], 0
        for shape, canvas, window in zip(shapes, canvases, windows, strict=True):
            images.append(_image_fields(shape, canvas, window, plane, tables))
            plane += shape[0] * shape[1] * shape[2]
        counts = [shape[0] for shape in shapes]
        by_mask = np.repeat(np.array(images, np.int64), counts, axis=0)
        sides = by_mask[:, [_ImageFields._fields.index(name) for name in ("width", "height")] * 2]
        corners = box_pixels(np.concatenate(boxes), sides.astype(np.float64))
        has_pixels = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
        upsampled = by_mask[:, _ImageFields._fields.index("upsampled")] > 0
        mask = np.concatenate(
            (np.flatnonzero(has_pixels & ~upsampled), np.flatnonzero(has_pixels & upsampled))
        )
        mask_in_image = mask - np.repeat(np.cumsum(counts) - counts, counts)[mask]
        image = _ImageFields(*by_mask[mask].T)
        return cls._from_crops(mask, mask_in_image, corners[mask], image, tables.concatenate())

    @classmethod
    def _from_crops(
        cls,
        mask: np.ndarray,
        mask_in_image: np.ndarray,
        corners: np.ndarray,
        image: _ImageFields,
        tables: tuple[np.ndarray, ...],
    ) -> DevicePlan:
        """Plan of M crops.

        Args:
            mask, mask_in_image: (M,) index in the group and in its image.
            corners: (M, 4) x0, y0, x1, y1 of the result pixels.
            image: Fields of each crop's image, (M,) each.
            tables: Of all axes.
        """
        low, high = tables[:2]
        x0, y0, x1, y1 = corners.T
        r0, c0 = low[image.row_at + y0], low[image.column_at + x0]
        rows = high[image.row_at + y1 - 1] - r0 + 1
        columns = high[image.column_at + x1 - 1] - c0 + 1
        pairs = low[image.column_at + x1 - 1] - c0 + 1
        pixels = image.height * image.width
        entries = np.stack((columns * rows, pairs * (rows + 1), x1 - x0))
        block_at, grid_at, line_at = np.cumsum(entries, axis=1) - entries
        key_at = np.cumsum(pixels + 1) - (pixels + 1)
        plane = image.plane + mask_in_image * image.samples
        fields = (  # in the order of `device.edges.DeviceCrops`
            *(plane, image.stride, image.top, image.left, image.height, pixels),
            *(x0, x1, y0, y1, r0, c0, rows, columns, pairs),
            *(image.row_at, image.column_at, image.first_pixel_at),
            *(image.up_row_at, image.up_column_at),
            *(key_at, block_at, grid_at, line_at),
        )
        upsampled = np.asarray(image.upsampled) > 0
        return cls(mask, tables, np.stack(fields), entries, np.asarray(image.halvings), upsampled)

    def chunks(self, byte_limit: int) -> Iterator[tuple[int, int]]:
        """Spans of crops, all upsampled or none, whose steps fit in the limit or of one crop."""
        sample_bytes = np.where(self._upsampled, _UPSAMPLED_SAMPLE_BYTES, _SAMPLE_BYTES)
        samples, positions, columns = self._entries
        used_bytes = samples * sample_bytes + positions * _GRID_BYTES + columns * _LINE_BYTES
        ends = np.cumsum(used_bytes)
        first_upsampled = int(np.count_nonzero(~self._upsampled))
        start = 0
        while start < len(ends):
            max_end = (int(ends[start - 1]) if start else 0) + byte_limit
            stop = max(start + 1, int(np.searchsorted(ends, max_end, side="right")))
            stop = min(stop, first_upsampled) if start < first_upsampled else stop
            yield start, stop
            start = stop

    def chunk(self, start: int, stop: int) -> tuple[np.ndarray, ChunkSizes]:
        """Fields of `device.edges.DeviceCrops`, and sizes, of a span of crops."""
        fields = self._fields[:, start:stop].copy()
        fields[-_N_OFFSETS:] -= fields[-_N_OFFSETS:, :1]
        block, grid, lines = self._entries[:, start:stop].sum(axis=1).tolist()
        sizes = ChunkSizes(
            block,
            grid,
            lines,
            halvings=int(self._halvings[start:stop].max()),
            upsampled=bool(self._upsampled[start]),
            pixels=int(fields[5].max()),
        )
        return fields, sizes


def _image_fields(
    shape: tuple[int, ...],
    canvas: tuple[int, int],
    window: Window,
    plane: int,
    tables: _AxisTables,
) -> _ImageFields:
    _, h, w = shape
    factor = window.upsample
    rows = tables.add(window.bottom - window.top, canvas[0])
    columns = tables.add(window.right - window.left, canvas[1])
    return _ImageFields(
        plane=plane,
        samples=h * w,
        stride=w,
        top=window.top,
        left=window.left,
        height=canvas[0],
        width=canvas[1],
        row_at=rows.pixels_at,
        column_at=columns.pixels_at,
        first_pixel_at=rows.first_pixel_at,
        up_row_at=tables.add(h, h * factor).pixels_at if factor > 1 else 0,
        up_column_at=tables.add(w, w * factor).pixels_at if factor > 1 else 0,
        halvings=rows.halvings,
        upsampled=int(factor > 1),
    )
