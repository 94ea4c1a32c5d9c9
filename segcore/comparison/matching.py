"""Which instances of two sides are the same object, and what happened to each.

Instances of one image are matched one to one by the IoU of their masks, the highest first: first
those of the same category, then what is left of any. Of equal IoU the earlier instance counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import pyarrow as pa

from segcore.comparison.instances import ImageInstances
from segcore.masks.from_logits import Backend
from segcore.masks.overlap import find_meeting_boxes, iou


class Change(IntEnum):
    """What became of an instance of the first side in the second."""

    SAME = 0  # category kept, IoU of `same_iou` or more
    MOVED = 1  # category kept, IoU lower
    RELABELLED = 2  # another category
    VANISHED = 3  # in the first side alone
    APPEARED = 4  # in the second side alone

    @property
    def word(self) -> str:
        """Its name in reports."""
        return self.name.lower()


@dataclass(frozen=True)
class MatchLimits:
    """When two instances are one object.

    Attributes:
        match_iou: IoU that a match needs.
        same_iou: From this IoU on, it has not moved.
    """

    match_iou: float = 0.5
    same_iou: float = 0.9


@dataclass(frozen=True)
class Matches:
    """R pairs and lone instances, by image.

    Attributes:
        changes: (R,) int64 of `Change`.
        images: (R,) int64 the image.
        first, second: (R,) int64 places among the instances of each side; -1 for none.
        ious: (R,) float64; NaN for lone instances.
        codes: (R, 2) int64 places in `categories` for each side; -1 for none.
        categories: The names.
    """

    changes: np.ndarray
    images: np.ndarray
    first: np.ndarray
    second: np.ndarray
    ious: np.ndarray
    codes: np.ndarray
    categories: list[str]


def match_instances(
    first: ImageInstances,
    second: ImageInstances,
    limits: MatchLimits,
    backend: Backend | None = None,
) -> Matches:
    """Match the instances of the same K images on two sides; all masks are valid.

    Args:
        backend: See `segcore.masks.overlap`; None chooses.
    """
    names, codes = _common_codes(first.categories, second.categories)
    pairs, ious = _similar_pairs(first, second, limits.match_iou, backend)
    has_same_category = codes[0][pairs[:, 0]] == codes[1][pairs[:, 1]]
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -ious, ~has_same_category))
    partner = np.full(len(first), -1)
    partner_iou = np.full(len(first), np.nan)
    is_taken = np.zeros(len(second), bool)
    for place in order.tolist():
        i, j = int(pairs[place, 0]), int(pairs[place, 1])
        if partner[i] < 0 and not is_taken[j]:
            partner[i], partner_iou[i], is_taken[j] = j, ious[place], True
    lone = np.flatnonzero(~is_taken)
    rows_first = np.concatenate([np.arange(len(first)), np.full(len(lone), -1)])
    rows_second = np.concatenate([partner, lone])
    row_ious = np.concatenate([partner_iou, np.full(len(lone), np.nan)])
    pair_codes = np.stack([_codes_of(codes[0], rows_first), _codes_of(codes[1], rows_second)], 1)
    changes = np.where(row_ious >= limits.same_iou, Change.SAME, Change.MOVED)
    changes = np.where(pair_codes[:, 0] != pair_codes[:, 1], Change.RELABELLED, changes)
    changes = np.where(rows_second < 0, Change.VANISHED, changes)
    changes = np.where(rows_first < 0, Change.APPEARED, changes)
    images = np.concatenate(
        [
            np.repeat(np.arange(len(first.offsets) - 1), np.diff(first.offsets)),
            np.searchsorted(second.offsets, lone, side="right") - 1,
        ]
    )
    order = np.argsort(images, kind="stable")
    return Matches(
        changes[order],
        images[order],
        rows_first[order],
        rows_second[order],
        row_ious[order],
        pair_codes[order],
        names,
    )


def _common_codes(
    first: pa.Array, second: pa.Array
) -> tuple[list[str], tuple[np.ndarray, np.ndarray]]:
    """All category names, and the place in them of each instance of both sides."""
    encoded = pa.concat_arrays([first, second]).dictionary_encode()
    codes = encoded.indices.to_numpy().astype(np.int64)
    names: list[str] = encoded.dictionary.to_pylist()
    return names, (codes[: len(first)], codes[len(first) :])


def _codes_of(codes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    padded = np.append(codes, -1)  # which -1 reads
    result: np.ndarray = padded[rows]
    return result


def _similar_pairs(
    first: ImageInstances, second: ImageInstances, min_iou: float, backend: Backend | None
) -> tuple[np.ndarray, np.ndarray]:
    """(P, 2) places of the pairs of one image whose IoU is at least `min_iou`, and their IoU."""
    boxes, other_boxes = first.masks.measures.boxes, second.masks.measures.boxes
    pairs = find_meeting_boxes(boxes, other_boxes, first.offsets, second.offsets)
    areas, other_areas = first.masks.measures.areas, second.masks.measures.areas
    # Masks have at most the pixels of the smaller one in common, and those of both boxes.
    a, b = boxes[pairs[:, 0]], other_boxes[pairs[:, 1]]
    sides = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    n_a, n_b = areas[pairs[:, 0]], other_areas[pairs[:, 1]]
    most = np.minimum(np.minimum(n_a, n_b), sides.prod(axis=1))
    pairs = pairs[most / (n_a + n_b - most) >= min_iou]
    ious = iou(first.masks, second.masks, pairs, backend=backend)
    is_similar = (ious >= min_iou) & (ious > 0)
    return pairs[is_similar], ious[is_similar]
