"""Which pixels of each mask are computed: those inside its box."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from segcore.masks.bilinear import ResampledAxis


class Grid(NamedTuple):
    """Rows and columns of the result, resampled from those of the window."""

    rows: ResampledAxis
    columns: ResampledAxis


@dataclass(frozen=True)
class Crops:
    """Non-empty crops, or vertical strips of crops: (M,) int64 each.

    Attributes:
        index: Which of the N masks it is of.
        x0, x1, y0, y1: Its result pixels [x0, x1) x [y0, y1).
        r0, r1: First and last source row that these pixels use.
    """

    index: np.ndarray
    x0: np.ndarray
    x1: np.ndarray
    y0: np.ndarray
    y1: np.ndarray
    r0: np.ndarray
    r1: np.ndarray

    def take(self, selection: np.ndarray | slice) -> Crops:
        """The selected crops."""
        return Crops(*(column[selection] for column in self._columns()))

    def table(self) -> np.ndarray:
        """(M, 7) int64: the attributes as columns, in their order."""
        return np.stack(self._columns(), axis=1)

    @property
    def samples(self) -> np.ndarray:
        """(M,) logits to interpolate for each crop, with the extra one that its edges may need."""
        return np.asarray((self.x1 - self.x0) * (self.r1 - self.r0 + 2))

    def _columns(self) -> list[np.ndarray]:
        return [getattr(self, name) for name in self.__dataclass_fields__]


def box_pixels(boxes: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) -> (N, 4) int64 x0, y0, x1, y1: pixels [x0, x1) x [y0, y1) inside the canvas.

    Args:
        boxes: x1, y1, x2, y2; a box that is not finite has no pixel.
        sides: W, H, W, H of the canvas, (4,) or (N, 4) float64.
    """
    finite = np.isfinite(boxes).all(axis=1)
    corners = np.ceil(np.where(finite[:, None], boxes, 0).astype(np.float64))
    return np.asarray(np.clip(corners, 0, sides).astype(np.int64))


def crops_of_boxes(boxes: np.ndarray, grid: Grid) -> Crops:
    """The crops of all boxes (N, 4) that have a pixel on the canvas."""
    sides = np.array([grid.columns.size_out, grid.rows.size_out] * 2, np.float64)
    x0, y0, x1, y1 = box_pixels(boxes, sides).T
    index = np.flatnonzero((x1 > x0) & (y1 > y0))
    x0, y0, x1, y1 = x0[index], y0[index], x1[index], y1[index]
    return Crops(index, x0, x1, y0, y1, grid.rows.low[y0], grid.rows.high[y1 - 1])
