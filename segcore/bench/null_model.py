"""A model that finds nothing, so that what is measured is everything but the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segcore.instances import Instances
from segcore.models.base import Category, ModelInfo, ModelOptions

NULL_MODEL = f"{__name__}:NullModel"


class NullModel:
    """Takes any image and finds no instance in it."""

    def __init__(self, options: ModelOptions | None = None) -> None:
        self.info = ModelInfo(
            name="null",
            architecture="null",
            weights_sha256="0" * 64,
            licence="CC0-1.0",
            categories=(Category(0, "nothing"),),
        )
        self.batch_size = (options or ModelOptions()).batch_size or 32

    def preprocess(self, image: np.ndarray) -> tuple[int, int]:
        """(height, width) of the image."""
        height, width = image.shape[:2]
        return height, width

    def forward(self, batch: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
        """The batch as it is."""
        return batch

    def postprocess(
        self, raw: Sequence[tuple[int, int]], batch: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """No instances for each image."""
        return [Instances.empty(height, width) for height, width in raw]
