"""The instances of some images as arrays, as far as a comparison needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from segcore.evaluation.objects import text_of
from segcore.masks.overlap import MaskStrings

COLUMNS = ("category", "score", "counts", "height", "width")


@dataclass(frozen=True)
class ImageInstances:
    """The instances of K images.

    Attributes:
        offsets: (K + 1,) int64: image k has the instances [offsets[k], offsets[k + 1]).
        masks: Of the N instances.
        categories: (N,) names.
        scores: (N,) float64; NaN for known masks.
        indices: (N,) int64 their places among the instances of their image.
    """

    offsets: np.ndarray
    masks: MaskStrings
    categories: pa.Array
    scores: np.ndarray
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.masks)

    @classmethod
    def of_table(cls, rows: pa.Table, offsets: np.ndarray) -> ImageInstances:
        """Rows of an `instances` table with the columns `COLUMNS`."""
        text, ends = text_of(rows["counts"])
        sizes = (rows[name].to_numpy() for name in ("height", "width"))
        return cls(
            np.asarray(offsets, np.int64),
            MaskStrings.of_text(text, ends, *sizes),
            rows["category"].combine_chunks().cast(pa.string()),
            rows["score"].to_numpy().astype(np.float64),
            _places(offsets),
        )

    def take(self, rows: np.ndarray, offsets: np.ndarray) -> ImageInstances:
        """Some of the instances, in this order, as those of other images.

        Args:
            rows: (N,) int64 places of the instances.
            offsets: Of the images, see the attribute.
        """
        if len(rows) == len(self) and (rows == np.arange(len(self))).all():
            return replace(self, offsets=offsets)
        return ImageInstances(
            np.asarray(offsets, np.int64),
            self.masks.take(rows),
            self.categories.take(pa.array(rows)),
            self.scores[rows],
            self.indices[rows],
        )

    @classmethod
    def of_lists(
        cls,
        counts: Sequence[int],
        strings: Sequence[bytes],
        sizes: Sequence[tuple[int, int]],
        categories: Sequence[str],
        scores: Sequence[float],
    ) -> ImageInstances:
        """The same from lists.

        Args:
            counts: How many instances each of the K images has.
            sizes: (height, width) of the canvas of each of the N masks.
        """
        heights, widths = np.array(sizes, np.int64).reshape(-1, 2).T
        return cls(
            np.cumsum([0, *counts], dtype=np.int64),
            MaskStrings.of_strings(list(strings), heights, widths),
            pa.array(categories, pa.string()),
            np.array(scores, np.float64),
            _places(np.cumsum([0, *counts])),
        )


def _places(offsets: np.ndarray) -> np.ndarray:
    """The place of each instance in its image."""
    return np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))
