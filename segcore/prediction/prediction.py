"""The instances of one image, for people: masks, boxes, scores, and a picture of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segcore import masks
from segcore.instances import Instances
from segcore.text import join_counts, plural
from segcore.visualize.labels import draw_instances

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image


@dataclass(frozen=True)
class Prediction:
    """What a model found in one image, in descending order of score.

    Attributes:
        image: (H, W, 3) uint8 RGB: what the model got, turned by its EXIF orientation.
        instances: The masks as COCO RLE, with boxes, scores and categories.
        categories: Category id -> name.
    """

    image: np.ndarray = field(repr=False)
    instances: Instances = field(repr=False)
    categories: Mapping[int, str] = field(repr=False)

    def __len__(self) -> int:
        return len(self.instances)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """One dictionary for each instance, see `to_dicts`."""
        return iter(self.to_dicts())

    def __str__(self) -> str:
        """How many instances there are, by category."""
        size = f"{self.instances.width} x {self.instances.height} pixels"
        counts = join_counts(Counter(self.labels))
        return f"{plural(len(self), 'instance')} on {size}" + (f": {counts}" if counts else "")

    @property
    def boxes(self) -> np.ndarray:
        """(N, 4) float32: x, y, width, height in pixels; (0, 0) is the image's top-left corner."""
        return self.instances.boxes

    @property
    def scores(self) -> np.ndarray:
        """(N,) float32 in [0, 1], descending."""
        return self.instances.scores

    @property
    def labels(self) -> list[str]:
        """The name of the category of each instance."""
        return [
            self.categories.get(int(number), str(int(number)))
            for number in self.instances.category_ids
        ]

    @property
    def masks(self) -> np.ndarray:
        """(N, H, W) bool: all masks, which takes N x H x W bytes; `mask` gives one."""
        height, width = self.instances.height, self.instances.width
        stack = np.zeros((len(self), height, width), bool)
        for number in range(len(self)):
            stack[number] = self.mask(number)
        return stack

    def mask(self, number: int) -> np.ndarray:
        """(H, W) bool: the mask of one instance.

        Raises:
            IndexError: There is no such instance.
        """
        counts = self.instances.counts[number]
        return masks.decode(counts, self.instances.height, self.instances.width).astype(bool)

    def to_dicts(self) -> list[dict[str, Any]]:
        """The instances as plain JSON values, in COCO's terms.

        Each has ``label``, ``category_id``, ``score``, ``bbox`` (x, y, width, height), ``area``
        (pixels) and ``segmentation`` (COCO RLE: ``size`` [height, width] and ``counts``).
        """
        found = self.instances
        return [
            {
                "label": label,
                "category_id": int(found.category_ids[number]),
                "score": float(found.scores[number]),
                "bbox": [float(value) for value in found.boxes[number]],
                "area": int(found.areas[number]),
                "segmentation": {
                    "size": [found.height, found.width],
                    "counts": found.counts[number].decode("ascii"),
                },
            }
            for number, label in enumerate(self.labels)
        ]

    def to_arrow(self) -> pa.Table:
        """The instances as a table, one row each; `to_arrow().to_pandas()` is a DataFrame."""
        import pyarrow as pa

        x, y, width, height = (self.boxes[:, column] for column in range(4))
        return pa.table(
            {
                "label": pa.array(self.labels, pa.string()),
                "category_id": pa.array(self.instances.category_ids, pa.int32()),
                "score": pa.array(self.scores, pa.float32()),
                "bbox_x": pa.array(x),
                "bbox_y": pa.array(y),
                "bbox_w": pa.array(width),
                "bbox_h": pa.array(height),
                "area": pa.array(self.instances.areas, pa.int64()),
                "counts": pa.array([text.decode("ascii") for text in self.instances.counts]),
            }
        )

    def plot(
        self, scale: float | None = None, labels: bool | None = None, as_read: bool = False
    ) -> Image:
        """The masks over the image; a notebook shows the result as a picture.

        Args:
            scale: Size of the picture relative to the image; None: that of the image, but small
                images are enlarged.
            labels: Write category and score beside each instance; None: where they leave the
                masks to be seen.
            as_read: Do not brighten a dark image.
        """
        from PIL import Image

        texts = [
            f"{label} {score:.2f}" for label, score in zip(self.labels, self.scores, strict=True)
        ]
        drawn = draw_instances(
            self.image,
            self.instances.counts,
            texts,
            self.boxes,
            scale=scale,
            labels=labels,
            as_read=as_read,
        )
        return Image.fromarray(drawn)

    def save_plot(self, path: str | os.PathLike[str], scale: float | None = None) -> Path:
        """Write `plot` to a file whose suffix names the format, such as .png or .jpg."""
        target = Path(path)
        self.plot(scale).save(target)
        return target
