"""Which detection is which known object, by the rules of COCO, for all images at once.

The rules are those of pycocotools' `COCOeval.evaluateImg`, and so are the numbers. Detections of
one image and category are taken by descending score; each takes the free object with the highest
IoU that reaches the threshold, one that counts before one that is ignored; of equal IoU the later
one. A crowd region is never used up.

Most detections can match one object alone, which no other detection can match: their matches are
found for all of them together. What is left goes through `match_contested`, one detection at a
time, compiled where numba is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from segcore.evaluation.contested import match_contested
from segcore.evaluation.objects import Objects
from segcore.evaluation.resources import n_cores
from segcore.masks import default_backend
from segcore.masks.overlap import find_meeting_boxes, iou

IouKind = Literal["mask", "box"]
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREA_RANGES = np.array(
    [[0, 1e5**2], [0, 32**2], [32**2, 96**2], [96**2, 1e5**2]]
)  # all, small, medium, large; pixels, both ends included
_ALMOST_ONE = 1 - 1e-10  # what pycocotools takes in place of a threshold of 1
_MAX_CHARS = 2 << 20  # of masks that are compared at the same time by one thread


@dataclass(frozen=True)
class Candidates:
    """P pairs of a detection and a known object of one image that may match.

    Attributes:
        detections: (P,) int64, ascending.
        truths: (P,) int64, ascending for each detection.
        ious: (P,) float64; over the detection alone where the object is a crowd region.
    """

    detections: np.ndarray
    truths: np.ndarray
    ious: np.ndarray

    def of_one_category(self, detections: Objects, truths: Objects) -> Candidates:
        """Those whose detection and object are of the same category."""
        is_same = detections.categories[self.detections] == truths.categories[self.truths]
        return Candidates(self.detections[is_same], self.truths[is_same], self.ious[is_same])


def rank_detections(detections: Objects, max_dets: int) -> np.ndarray:
    """(D,) the detections by category, image and descending score, at most so many of each."""
    order = np.lexsort((-detections.scores, detections.images, detections.categories))
    image, category = detections.images[order], detections.categories[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (image[1:] != image[:-1]) | (category[1:] != category[:-1])
    firsts = np.flatnonzero(is_first)
    rank = np.arange(len(order)) - np.repeat(firsts, np.diff(firsts, append=len(order)))
    kept: np.ndarray = order[rank < max_dets]
    return kept


def find_candidates(
    detections: Objects,
    truths: Objects,
    kind: IouKind,
    *,
    same_category: bool = True,
    min_iou: float = 0.5,
) -> Candidates:
    """All pairs of one image with an IoU of at least `min_iou`, found on all cores.

    Args:
        same_category: Only pairs of one category.
    """
    sides = (detections, truths)
    n_images = 1 + max((int(side.images[-1]) for side in sides if len(side)), default=-1)
    offsets = [np.searchsorted(side.images, np.arange(n_images + 1)) for side in sides]

    def find(images: range) -> tuple[np.ndarray, np.ndarray]:
        return _pairs_of_images(detections, truths, kind, same_category, min_iou, offsets, images)

    with ThreadPoolExecutor(n_cores(), "candidates") as pool:
        found = list(pool.map(find, _groups(detections, truths, offsets)))
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *(pairs for pairs, _ in found)])
    ious = np.concatenate([np.zeros(0), *(ious for _, ious in found)])
    return Candidates(pairs[:, 0], pairs[:, 1], ious)


def _groups(detections: Objects, truths: Objects, offsets: Sequence[np.ndarray]) -> Iterator[range]:
    """The images in groups, so that the masks of a group are not too long."""
    n_images = len(offsets[0]) - 1
    chars = detections.masks.offsets[offsets[0]] + truths.masks.offsets[offsets[1]]
    start = 0
    while start < n_images:
        stop = max(start + 1, int(np.searchsorted(chars, chars[start] + _MAX_CHARS, "right")) - 1)
        yield range(start, stop)
        start = stop


def _pairs_of_images(
    detections: Objects,
    truths: Objects,
    kind: IouKind,
    same_category: bool,
    min_iou: float,
    offsets: Sequence[np.ndarray],
    images: range,
) -> tuple[np.ndarray, np.ndarray]:
    """(P, 2) pairs of some images, and (P,) their IoU."""
    sides = (detections, truths)
    bases = [int(own[images.start]) for own in offsets]
    part = [
        own[images.start : images.stop + 1] - base for own, base in zip(offsets, bases, strict=True)
    ]
    boxes = [
        _boxes(side, kind)[base : base + int(own[-1])]
        for side, base, own in zip(sides, bases, part, strict=True)
    ]
    pairs = find_meeting_boxes(*boxes, *part) + np.array(bases)
    if same_category:
        categories = detections.categories[pairs[:, 0]], truths.categories[pairs[:, 1]]
        pairs = pairs[categories[0] == categories[1]]
    if kind == "mask":
        pairs = pairs[_iou_bound(detections, truths, pairs) >= min_iou]
        ious = iou(detections.masks, truths.masks, pairs, truths.is_crowd)
    else:
        ious = _box_ious(detections, truths, pairs)
    is_similar = ious >= min_iou
    return pairs[is_similar], ious[is_similar]


def _boxes(side: Objects, kind: IouKind) -> np.ndarray:
    return side.masks.measures.boxes if kind == "mask" else side.boxes


def _overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(P, 2) width and height of what pairs of boxes have in common."""
    ends = np.minimum(first[:, :2] + first[:, 2:], second[:, :2] + second[:, 2:])
    overlaps: np.ndarray = ends - np.maximum(first[:, :2], second[:, :2])
    return overlaps


def _iou_bound(detections: Objects, truths: Objects, pairs: np.ndarray) -> np.ndarray:
    """(P,) at least the IoU of pairs of masks, from their areas and boxes alone."""
    own, other = detections.masks.measures, truths.masks.measures
    rows, columns = pairs[:, 0], pairs[:, 1]
    box_pixels = _overlaps(own.boxes[rows], other.boxes[columns]).prod(axis=1)
    area, other_area = own.areas[rows], other.areas[columns]
    most = np.minimum(np.minimum(area, other_area), box_pixels)
    bound: np.ndarray = most / np.where(truths.is_crowd[columns], area, area + other_area - most)
    return bound


def _box_ious(detections: Objects, truths: Objects, pairs: np.ndarray) -> np.ndarray:
    first, second = detections.boxes[pairs[:, 0]], truths.boxes[pairs[:, 1]]
    # In the order of operations of pycocotools.
    common = _overlaps(first, second).prod(axis=1)
    area, other_area = first[:, 2] * first[:, 3], second[:, 2] * second[:, 3]
    ious: np.ndarray = common / np.where(
        truths.is_crowd[pairs[:, 1]], area, area + other_area - common
    )
    return ious


def match_detections(
    candidates: Candidates, ranked: np.ndarray, is_crowd: np.ndarray, is_ignored: np.ndarray
) -> np.ndarray:
    """The match of each detection, for each area range and threshold.

    Args:
        ranked: (D,) see `rank_detections`.
        is_crowd: (M,) bool.
        is_ignored: (A, M) bool: objects that do not count, for each area range.

    Returns:
        (A, T, D) int64: the object that each of `ranked` matches; -1 for none.
    """
    limits = np.minimum(IOU_THRESHOLDS, _ALMOST_ONE)
    n_ranges, n_truths = is_ignored.shape
    matches = np.full((n_ranges, len(limits), len(ranked)), -1, np.int64)
    if not len(candidates.detections):
        return matches
    place = np.full(int(max(candidates.detections[-1], ranked.max(initial=0))) + 1, -1)
    place[ranked] = np.arange(len(ranked))
    rows = place[candidates.detections]
    is_ranked = rows >= 0
    rows, truths, ious = rows[is_ranked], candidates.truths[is_ranked], candidates.ious[is_ranked]
    order = np.argsort(rows, kind="stable")
    rows, truths, ious = rows[order], truths[order], ious[order]
    is_alone = (np.bincount(rows, minlength=len(ranked))[rows] == 1) & (
        np.bincount(truths, minlength=n_truths)[truths] == 1
    )
    lone_rows, lone_truths = rows[is_alone], truths[is_alone]
    reaches = ious[is_alone] >= limits[:, None]
    matches[:, :, lone_rows] = np.where(reaches, lone_truths, -1)
    rest = ~is_alone
    if rest.any():
        columns = (np.ascontiguousarray(column[rest]) for column in (rows, truths, ious))
        _contested()(*columns, is_crowd, np.ascontiguousarray(is_ignored), limits, matches)
    return matches


@cache
def _contested() -> Callable[..., None]:
    if default_backend() == "compiled":
        from segcore.evaluation import numba_matching

        compiled: Callable[..., None] = numba_matching.match_contested
        return compiled
    return match_contested
