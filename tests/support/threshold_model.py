"""A model without weights that does quite well on synthetic nuclei.

`--model tests.support.threshold_model:Threshold` replaces the bundled network in tests that are
about everything around it.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from segcore import masks
from segcore.instances import Instances
from segcore.models.base import Category, ModelInfo, ModelOptions

MIN_AREA = 15  # pixels


class Threshold:
    """Otsu's threshold; then each connected component is a nucleus."""

    def __init__(self, options: ModelOptions) -> None:
        self.info = ModelInfo(
            name="threshold",
            architecture="otsu",
            weights_sha256="0" * 64,
            licence="CC0-1.0",
            categories=(Category(1, "nucleus"),),
        )
        self.batch_size = options.batch_size or 8

    def preprocess(self, image: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(image[:, :, 0], (0, 0), 1)

    def forward(self, prepared: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [cv2.threshold(grey, 0, 255, cv2.THRESH_OTSU)[1] for grey in prepared]

    def postprocess(self, raw: list[np.ndarray], prepared: Sequence[np.ndarray]) -> list[Instances]:
        return [_components(binary) for binary in raw]


def _components(binary: np.ndarray) -> Instances:
    """Each component of at least MIN_AREA pixels, scored by its size."""
    height, width = binary.shape
    count, labels, stats, _ = cv2.connectedComponentsWithStats(binary, connectivity=4)
    keep = [n for n in range(1, count) if stats[n, cv2.CC_STAT_AREA] >= MIN_AREA]
    if not keep:
        return Instances.empty(height, width)
    boxes = stats[keep, :4].astype(np.float32)
    areas = stats[keep, cv2.CC_STAT_AREA].astype(np.int64)
    scores = (areas / (areas + 50)).astype(np.float32)
    order = np.argsort(-scores, kind="stable")
    counts = [masks.encode(labels == keep[i]) for i in order]
    return Instances(
        height=height,
        width=width,
        boxes=boxes[order],
        scores=scores[order],
        category_ids=np.ones(len(keep), np.int32),
        areas=areas[order],
        counts=counts,
    )
