"""Average precision of masks and boxes by the COCO protocol, without files and without printing.

The protocol (Lin et al., "Microsoft COCO: Common Objects in Context", 2014) and its numbers are
those of pycocotools, in all digits: IoU thresholds 0.50:0.05:0.95, 101 recall points, greedy
matching by score. `max_dets` defaults to 500, because the usual 100 truncates dense images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from segcore.errors import UsageError
from segcore.evaluation.coco_matching import (
    AREA_RANGES,
    IOU_THRESHOLDS,
    Candidates,
    IouKind,
    find_candidates,
    match_detections,
    rank_detections,
)
from segcore.evaluation.ground_truth import GroundTruth, Id
from segcore.evaluation.objects import (
    Detections,
    Objects,
    detected_objects,
    number_images,
    truth_objects,
)
from segcore.evaluation.truth_file import check_ground_truth

RECALLS = np.linspace(0.0, 1.0, 101)
DEFAULT_MAX_DETS = 500


@dataclass(frozen=True)
class AveragePrecision:
    """AP and recall, in [0, 1]; NaN where there is no ground truth to measure against.

    Attributes:
        ap: Mean over IoU 0.50:0.05:0.95, all sizes.
        ap50, ap75: At one IoU threshold.
        ap_small, ap_medium, ap_large: Areas under 32^2, 32^2 to 96^2, over 96^2 pixels.
        recall: Mean over IoU thresholds of the highest recall reached (AR at `max_dets`).
        recall50: The highest recall reached at IoU 0.50.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    recall: float
    recall50: float


def format_score(value: float | None) -> str:
    """Three decimals, or a dash where there is nothing to measure."""
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


@dataclass(frozen=True)
class ClassScores:
    """One category: counts without crowd regions, and both kinds of AP."""

    category_id: Id
    name: str
    n_ground_truth: int
    n_detections: int
    mask: AveragePrecision
    box: AveragePrecision


@dataclass(frozen=True)
class Scores:
    """Result of `mask_and_box_ap`; the overall numbers are means over categories."""

    mask: AveragePrecision
    box: AveragePrecision
    per_class: tuple[ClassScores, ...]
    n_images: int
    n_ground_truth: int
    n_detections: int
    max_dets: int

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON; NaN becomes None."""
        return _without_nan(asdict(self))


def mask_and_box_ap(
    ground_truth: GroundTruth | Mapping[str, Any],
    image_ids: Iterable[Id],
    detections: Detections | Iterable[Mapping[str, Any]],
    max_dets: int = DEFAULT_MAX_DETS,
) -> Scores:
    """COCO average precision of masks and of boxes; arguments and errors as for `measure`."""
    return measure(ground_truth, image_ids, detections, max_dets).scores


@dataclass(frozen=True)
class Measurement:
    """The scores and what they come from.

    Attributes:
        truths, detections: Their images and categories are numbers: places in `image_ids` and
            in `scores.per_class`.
        pairs: With an IoU of masks of 0.5 or more, whatever their categories.
        mask, box: Matches by IoU of masks, and of boxes.
    """

    scores: Scores
    image_ids: tuple[Id, ...]
    truths: Objects
    detections: Objects
    pairs: Candidates
    mask: Evaluation
    box: Evaluation


def measure(
    ground_truth: GroundTruth | Mapping[str, Any],
    image_ids: Iterable[Id],
    detections: Detections | Iterable[Mapping[str, Any]],
    max_dets: int = DEFAULT_MAX_DETS,
) -> Measurement:
    """COCO average precision of masks and of boxes, with the matches behind it.

    Args:
        ground_truth: What `check_ground_truth` gave, whose remarks tell what was left out; or a
            COCO instances dict of which every annotation must be usable. Not changed.
        image_ids: Images that count; those without detections lower recall.
        detections: As columns; or as COCO results, each with image_id, category_id, score,
            segmentation (compressed RLE dict on the image's canvas) and bbox (x, y, w, h in
            pixels). Not changed.
        max_dets: Detections that count, per image and category, best score first.

    Raises:
        UsageError: An image or category is not in `ground_truth`, a mask has another canvas or
            cannot be read, or an annotation of a dict cannot be used.
    """
    if isinstance(ground_truth, GroundTruth):
        truth, every_one_counts = ground_truth, False
    else:
        truth, every_one_counts = check_ground_truth(ground_truth), True
    images = number_images(truth, image_ids)
    categories = {category.id: k for k, category in enumerate(truth.categories)}
    truths = truth_objects(truth, images, categories)
    if every_one_counts and truth.remarks.n_left_out:
        raise UsageError(" ".join(truth.remarks.sentences()))
    if not isinstance(detections, Detections):
        detections = Detections.of_dicts(detections)
    detected = detected_objects(detections, truth, images, categories)
    known = truth.categories
    del detections, ground_truth, truth  # whose strings are gone then, where nobody else has them
    pairs = find_candidates(detected, truths, "mask", same_category=False)
    masks = _evaluate(detected, truths, "mask", pairs.of_one_category(detected, truths),
                      len(categories), max_dets)  # fmt: skip
    boxes = _evaluate(detected, truths, "box", find_candidates(detected, truths, "box"),
                      len(categories), max_dets)  # fmt: skip
    n_truths = np.bincount(truths.categories[~truths.is_crowd], minlength=len(categories))
    n_detections = np.bincount(detected.categories, minlength=len(categories))
    per_class = tuple(
        ClassScores(
            category_id=category.id,
            name=category.name,
            n_ground_truth=int(n_truths[k]),
            n_detections=int(n_detections[k]),
            mask=_summarize(masks, [k]),
            box=_summarize(boxes, [k]),
        )
        for k, category in enumerate(known)
    )
    all_classes = list(range(len(categories)))
    scores = Scores(
        mask=_summarize(masks, all_classes),
        box=_summarize(boxes, all_classes),
        per_class=per_class,
        n_images=len(images),
        n_ground_truth=int(n_truths.sum()),
        n_detections=len(detected),
        max_dets=max_dets,
    )
    return Measurement(scores, tuple(images), truths, detected, pairs, masks, boxes)


@dataclass(frozen=True)
class Evaluation:
    """Matches and what follows from them, for T thresholds, R recalls, K categories, A area ranges.

    Attributes:
        candidates: Pairs of one category with IoU 0.5 or more.
        ranked: (D,) the detections that count, by category, image and score.
        matches: (A, T, D) the object that each matches; -1 for none.
        precision: (T, R, K, A); -1 where there is nothing to find.
        recall: (T, K, A); -1 likewise.
    """

    candidates: Candidates
    ranked: np.ndarray
    matches: np.ndarray
    precision: np.ndarray
    recall: np.ndarray


def _evaluate(
    detections: Objects,
    truths: Objects,
    kind: IouKind,
    candidates: Candidates,
    n_categories: int,
    max_dets: int,
) -> Evaluation:
    ranked = rank_detections(detections, max_dets)
    low, high = AREA_RANGES[:, :1], AREA_RANGES[:, 1:]
    is_ignored = truths.is_crowd | (truths.areas < low) | (truths.areas > high)
    matches = match_detections(candidates, ranked, truths.is_crowd, is_ignored)
    areas = detections.areas if kind == "mask" else detections.boxes[:, 2] * detections.boxes[:, 3]
    areas = areas[ranked]
    is_outside = (areas < low) | (areas > high)
    precision = -np.ones((len(IOU_THRESHOLDS), len(RECALLS), n_categories, len(AREA_RANGES)))
    recall = -np.ones((len(IOU_THRESHOLDS), n_categories, len(AREA_RANGES)))
    starts = np.searchsorted(detections.categories[ranked], np.arange(n_categories + 1))
    for a, of_range in enumerate(matches):
        n_truths = np.bincount(truths.categories[~is_ignored[a]], minlength=n_categories)
        ignores = np.append(is_ignored[a], False)  # which -1 reads
        for k in np.flatnonzero(n_truths).tolist():
            rows = np.arange(starts[k], starts[k + 1])
            rows = rows[np.argsort(-detections.scores[ranked[rows]], kind="stable")]
            match = of_range[:, rows]
            is_left_out = np.where(match < 0, is_outside[a, rows], ignores[match])
            precision[:, :, k, a], recall[:, k, a] = _curves(match, is_left_out, int(n_truths[k]))
    return Evaluation(candidates, ranked, matches, precision, recall)


def _curves(
    match: np.ndarray, is_left_out: np.ndarray, n_truths: int
) -> tuple[np.ndarray, np.ndarray]:
    """Precision at each of `RECALLS`, (T, R), and the highest recall, (T,).

    Args:
        match: (T, D) of detections by descending score; -1 for none.
        is_left_out: (T, D) bool: neither right nor wrong.
    """
    right = np.cumsum((match >= 0) & ~is_left_out, axis=1).astype(float)
    wrong = np.cumsum((match < 0) & ~is_left_out, axis=1).astype(float)
    recalls = right / n_truths
    precisions = right / (wrong + right + np.spacing(1))
    precisions = np.maximum.accumulate(precisions[:, ::-1], axis=1)[:, ::-1]
    at_recalls = np.zeros((len(match), len(RECALLS)))
    for t in range(len(match)):
        places = np.searchsorted(recalls[t], RECALLS, side="left")
        is_reached = places < match.shape[1]
        at_recalls[t, is_reached] = precisions[t, places[is_reached]]
    highest = recalls[:, -1] if match.shape[1] else np.zeros(len(match))
    return at_recalls, highest


def _summarize(evaluation: Evaluation, classes: list[int]) -> AveragePrecision:
    """Means over the classes at these indices."""
    precision = evaluation.precision[:, :, classes]  # IoU, recall, class, size
    recall = evaluation.recall[:, classes]  # IoU, class, size
    index = {round(iou * 100): i for i, iou in enumerate(IOU_THRESHOLDS)}
    return AveragePrecision(
        ap=_mean_known(precision[..., 0]),
        ap50=_mean_known(precision[index[50], ..., 0]),
        ap75=_mean_known(precision[index[75], ..., 0]),
        ap_small=_mean_known(precision[..., 1]),
        ap_medium=_mean_known(precision[..., 2]),
        ap_large=_mean_known(precision[..., 3]),
        recall=_mean_known(recall[..., 0]),
        recall50=_mean_known(recall[index[50], ..., 0]),
    )


def _mean_known(values: np.ndarray) -> float:
    """Mean without the -1 that pycocotools writes where there is no ground truth."""
    known = values[values > -1]
    return float(known.mean()) if known.size else math.nan


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
