"""The instances of one image, as columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Instances:
    """Instances of one image, in descending order of score.

    Attributes:
        height, width: Canvas of the masks: the original image after EXIF orientation, pixels.
        boxes: (N, 4) float32, bbox x, y, w, h in pixels of the original image; (0, 0) is the
            outer corner of the top-left pixel.
        scores: (N,) float32 in [0, 1].
        category_ids: (N,) int32, ids of the model's categories.
        areas: (N,) int64, set pixels of each mask; never 0.
        counts: N COCO compressed RLE strings (ASCII bytes) for a canvas of (height, width).
    """

    height: int
    width: int
    boxes: np.ndarray
    scores: np.ndarray
    category_ids: np.ndarray
    areas: np.ndarray
    counts: list[bytes]

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def empty(cls, height: int, width: int) -> Instances:
        """No instances, on a canvas of this size."""
        return cls(
            height=height,
            width=width,
            boxes=np.zeros((0, 4), np.float32),
            scores=np.zeros(0, np.float32),
            category_ids=np.zeros(0, np.int32),
            areas=np.zeros(0, np.int64),
            counts=[],
        )
