"""What the host prepares for masks that are encoded on a device: crops, tables, sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from segcore.masks.bilinear import axis
from segcore.masks.from_logits import Window, box_pixels

# Bytes held at once for each entry of a ragged array, counted over live tensors.
_SAMPLE_BYTES, _UPSAMPLED_BYTES, _GRID_BYTES = 64, 160, 96
_LINE_BYTES = 112 + 4 * 288  # of a result column, with the about four candidates of usual masks


class Sizes(NamedTuple):
    """What the host knows of a chunk.

    Attributes:
        block, grid, lines: Entries of the ragged arrays: samples, grid positions, result columns.
        steps: Halvings that find a row in the longest segment between two source rows.
        upsampled: Whether windows are of upsampled logits; of all crops or of none.
        pixels: Of the largest canvas.
    """

    block: int
    grid: int
    lines: int
    steps: int
    upsampled: bool
    pixels: int


class _Image(NamedTuple):
    """Numbers that all instances of an image share; see `device_edges.Crops`."""

    plane: int
    samples: int
    stride: int
    top: int
    left: int
    height: int
    width: int
    row_at: int
    column_at: int
    first_at: int
    up_row_at: int
    up_column_at: int
    steps: int
    upsampled: int


class _Tables:
    """Axes put one after another, each once."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, int], tuple[int, int, int]] = {}
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._pixels = self._samples = 0

    def add(self, size_in: int, size_out: int) -> tuple[int, int, int]:
        """(place of its result pixels, place in `first`, halvings its longest segment needs)."""
        place = self._places.get((size_in, size_out))
        if place is None:
            found = axis(size_in, size_out)
            longest = int(np.diff(found.first).max())
            place = self._pixels, self._samples, longest.bit_length()
            self._places[size_in, size_out] = place
            self._parts.append(
                (found.low, found.high, found.weight_low, found.weight_high, found.first)
            )
            self._pixels += size_out
            self._samples += size_in + 1
        return place

    def joined(self) -> tuple[np.ndarray, ...]:
        """`DevicePlan.tables`."""
        return tuple(np.concatenate(part) for part in zip(*self._parts, strict=True))


@dataclass(frozen=True)
class DevicePlan:
    """Non-empty crops of a group of images, those of upsampled windows behind the others.

    Attributes:
        mask: (M,) which mask of the group each crop is of.
        tables: Fields of `device_edges.Axes`.
    """

    mask: np.ndarray
    tables: tuple[np.ndarray, ...]
    _numbers: np.ndarray  # (fields of `device_edges.Crops`, M) int64
    _entries: np.ndarray  # (3, M) entries in the ragged arrays: samples, positions, columns
    _steps: np.ndarray
    _upsampled: np.ndarray

    @classmethod
    def of(
        cls,
        shapes: Sequence[tuple[int, ...]],
        boxes: Sequence[np.ndarray],
        canvases: Sequence[tuple[int, int]],
        windows: Sequence[Window],
    ) -> DevicePlan:
        """Plan of images whose logits, (N, h, w) each, stand one after another.

        Args:
            shapes: N, h, w of each image.
            boxes: (N, 4) of each.
            canvases: H, W of each.
            windows: Inside the logits.
        """
        tables = _Tables()
        images, plane = [], 0
        for shape, canvas, window in zip(shapes, canvases, windows, strict=True):
            images.append(_image(shape, canvas, window, plane, tables))
            plane += shape[0] * shape[1] * shape[2]
        counts = [shape[0] for shape in shapes]
        every = np.repeat(np.array(images, np.int64), counts, axis=0)
        sides = every[:, [_Image._fields.index(name) for name in ("width", "height")] * 2]
        edges = box_pixels(np.concatenate(boxes), sides.astype(np.float64))
        seen = (edges[:, 2] > edges[:, 0]) & (edges[:, 3] > edges[:, 1])
        upsampled = every[:, _Image._fields.index("upsampled")] > 0
        mask = np.concatenate((np.flatnonzero(seen & ~upsampled), np.flatnonzero(seen & upsampled)))
        number = mask - np.repeat(np.cumsum(counts) - counts, counts)[mask]
        return cls._filled(mask, number, edges[mask], _Image(*every[mask].T), tables.joined())

    @classmethod
    def _filled(
        cls,
        mask: np.ndarray,
        number: np.ndarray,
        edges: np.ndarray,
        of: _Image,
        tables: tuple[np.ndarray, ...],
    ) -> DevicePlan:
        low, high = tables[:2]
        x0, y0, x1, y1 = edges.T
        r0, c0 = low[of.row_at + y0], low[of.column_at + x0]
        rows = high[of.row_at + y1 - 1] - r0 + 1
        columns = high[of.column_at + x1 - 1] - c0 + 1
        pairs = low[of.column_at + x1 - 1] - c0 + 1
        pixels = of.height * of.width
        entries = np.stack((columns * rows, pairs * (rows + 1), x1 - x0))
        block_at, grid_at, line_at = np.cumsum(entries, axis=1) - entries
        key_at = np.cumsum(pixels + 1) - (pixels + 1)
        numbers = (
            *(of.plane + number * of.samples, of.stride, of.top, of.left, of.height, pixels),
            *(x0, x1, y0, y1, r0, c0, rows, columns, pairs),
            *(of.row_at, of.column_at, of.first_at, of.up_row_at, of.up_column_at),
            *(key_at, block_at, grid_at, line_at),
        )
        upsampled = np.asarray(of.upsampled) > 0
        return cls(mask, tables, np.stack(numbers), entries, np.asarray(of.steps), upsampled)

    def chunks(self, byte_limit: int) -> Iterator[tuple[int, int]]:
        """Spans of crops, all upsampled or none, whose steps fit in the limit; one at least."""
        sample = np.where(self._upsampled, _UPSAMPLED_BYTES, _SAMPLE_BYTES)
        samples, positions, columns = self._entries
        used = samples * sample + positions * _GRID_BYTES + columns * _LINE_BYTES
        ends = np.cumsum(used)
        border = int(np.count_nonzero(~self._upsampled))
        start = 0
        while start < len(ends):
            room = (int(ends[start - 1]) if start else 0) + byte_limit
            stop = max(start + 1, int(np.searchsorted(ends, room, side="right")))
            stop = min(stop, border) if start < border else stop
            yield start, stop
            start = stop

    def part(self, start: int, stop: int) -> tuple[np.ndarray, Sizes]:
        """Fields of `device_edges.Crops`, and sizes, of a span of crops."""
        numbers = self._numbers[:, start:stop].copy()
        numbers[-4:] -= numbers[-4:, :1]
        block, grid, lines = self._entries[:, start:stop].sum(axis=1).tolist()
        steps = int(self._steps[start:stop].max())
        pixels = int(numbers[5].max())
        sizes = Sizes(block, grid, lines, steps, bool(self._upsampled[start]), pixels)
        return numbers, sizes


def _image(
    shape: tuple[int, ...], canvas: tuple[int, int], window: Window, plane: int, tables: _Tables
) -> _Image:
    _, h, w = shape
    factor = window.upsample
    row_at, first_at, steps = tables.add(window.bottom - window.top, canvas[0])
    column_at, _, _ = tables.add(window.right - window.left, canvas[1])
    up_row_at = tables.add(h, h * factor)[0] if factor > 1 else 0
    up_column_at = tables.add(w, w * factor)[0] if factor > 1 else 0
    return _Image(
        plane=plane,
        samples=h * w,
        stride=w,
        top=window.top,
        left=window.left,
        height=canvas[0],
        width=canvas[1],
        row_at=row_at,
        column_at=column_at,
        first_at=first_at,
        up_row_at=up_row_at,
        up_column_at=up_column_at,
        steps=steps,
        upsampled=int(factor > 1),
    )
