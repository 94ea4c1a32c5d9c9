"""Where an output is wrong: curves, best score thresholds, calibration, confusion, worst images.

All of it is about masks at IoU 0.50, with objects of all sizes. A detection counts as right or
wrong as in average precision: one that matches a crowd region is neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from segcore.evaluation.average_precision import RECALLS, Measurement
from segcore.evaluation.coco_matching import IOU_THRESHOLDS
from segcore.evaluation.ground_truth import Id

_N_BINS = 10
_MAX_IMAGES = 50
_CURVE_IOUS = (50, 75)  # percent


@dataclass(frozen=True)
class BestThreshold:
    """The score from which on detections of a category are best kept.

    Attributes:
        score: Detections with this score or a higher one are kept; None where nothing was right.
        f1, precision, recall: Of these detections; F1 is the highest that a threshold gives.
    """

    score: float | None
    f1: float
    precision: float
    recall: float


@dataclass(frozen=True)
class CalibrationBin:
    """Detections whose score is in [low, low + 0.1); the last bin includes 1."""

    low: float
    n_detections: int
    mean_score: float | None
    precision: float | None


@dataclass(frozen=True)
class Confusion:
    """How many objects of one class were found as another; "" for missed, or for no object."""

    truth: str
    found: str
    n: int


@dataclass(frozen=True)
class ImageErrors:
    """Objects found, missed and invented in one image, at the best threshold of each class."""

    image_id: Id
    right: int
    missed: int
    wrong: int


@dataclass(frozen=True)
class ClassAnalysis:
    """One class.

    Attributes:
        precision: At each recall of `RECALLS`, by IoU in percent; empty where it has no objects.
        best: None where it has no objects.
    """

    category_id: Id
    name: str
    precision: Mapping[int, list[float]]
    best: BestThreshold | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "category_id": self.category_id,
            "name": self.name,
            "precision_at_recalls": {f"iou{iou}": row for iou, row in self.precision.items()},
            "best_threshold": self.best and asdict(self.best),
        }


@dataclass(frozen=True)
class Analysis:
    """Where an output is wrong.

    Attributes:
        per_class: In the order of the scores by class.
        calibration: Scores against the share that is right, over all classes.
        calibration_error: Mean distance of the two, by detections; None without detections.
        confusions: Most frequent first.
        worst_images: With most objects missed or invented, the worst first; at most 50.
    """

    per_class: tuple[ClassAnalysis, ...]
    calibration: tuple[CalibrationBin, ...]
    calibration_error: float | None
    confusions: tuple[Confusion, ...]
    worst_images: tuple[ImageErrors, ...]

    def to_dict(self, names: Mapping[Id, str]) -> dict[str, Any]:
        """Plain JSON values.

        Args:
            names: Image of the ground truth -> image_id of the output.
        """
        return {
            "recalls": [round(float(recall), 2) for recall in RECALLS],
            "per_class": [one.to_dict() for one in self.per_class],
            "calibration": [asdict(one) for one in self.calibration],
            "calibration_error": self.calibration_error,
            "confusions": [
                {"truth": one.truth or None, "found": one.found or None, "n": one.n}
                for one in self.confusions
            ],
            "worst_images": [
                {**asdict(one), "image_id": names.get(one.image_id, one.image_id)}
                for one in self.worst_images
            ],
        }


@dataclass(frozen=True)
class _Outcomes:
    """D ranked detections: what each is, at IoU 0.50.

    Attributes:
        rows: (D,) places among the detections.
        is_right, is_wrong: (D,) bool; neither where it matches a crowd region.
    """

    rows: np.ndarray
    is_right: np.ndarray
    is_wrong: np.ndarray


def analyse(measurement: Measurement) -> Analysis:
    """Look closer at what was measured."""
    detections, truths = measurement.detections, measurement.truths
    names = [one.name for one in measurement.scores.per_class]
    match = measurement.mask.matches[0, 0]
    is_crowd = np.append(truths.is_crowd, False)[match] & (match >= 0)
    outcomes = _Outcomes(measurement.mask.ranked, (match >= 0) & ~is_crowd, match < 0)
    scores, categories = detections.scores[outcomes.rows], detections.categories[outcomes.rows]
    n_truths = np.bincount(truths.categories[~truths.is_crowd], minlength=len(names))
    thresholds: list[BestThreshold | None] = []
    for k, n in enumerate(n_truths.tolist()):
        own = (categories == k) & (outcomes.is_right | outcomes.is_wrong)
        thresholds.append(_best_threshold(scores[own], outcomes.is_right[own], n) if n else None)
    lowest = np.array([np.inf if b is None or b.score is None else b.score for b in thresholds])
    bins, error = _calibrate(scores, outcomes)
    percents = [round(iou * 100) for iou in IOU_THRESHOLDS]
    per_class = []
    for k, one in enumerate(measurement.scores.per_class):
        precision = {
            iou: measurement.mask.precision[percents.index(iou), :, k, 0].tolist()
            for iou in (_CURVE_IOUS if n_truths[k] else ())
        }
        per_class.append(ClassAnalysis(one.category_id, one.name, precision, thresholds[k]))
    is_kept = scores >= lowest[categories]
    return Analysis(
        per_class=tuple(per_class),
        calibration=bins,
        calibration_error=error,
        confusions=_confuse(measurement, outcomes.rows[is_kept], names),
        worst_images=_worst_images(measurement, outcomes, is_kept),
    )


def _best_threshold(scores: np.ndarray, is_right: np.ndarray, n_truths: int) -> BestThreshold:
    """The threshold of the highest F1; of several the highest."""
    if not is_right.any():
        return BestThreshold(None, 0.0, 0.0, 0.0)
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], np.cumsum(is_right[order])
    n_kept = np.arange(1, len(scores) + 1)
    f1 = 2 * right / (n_kept + n_truths)
    is_last = np.append(scores[1:] != scores[:-1], True)  # of detections with the same score
    best = int(np.argmax(np.where(is_last, f1, -1.0)))
    return BestThreshold(
        float(scores[best]),
        float(f1[best]),
        float(right[best] / n_kept[best]),
        float(right[best] / n_truths),
    )


def _calibrate(
    scores: np.ndarray, outcomes: _Outcomes
) -> tuple[tuple[CalibrationBin, ...], float | None]:
    counts = outcomes.is_right | outcomes.is_wrong
    scores, is_right = scores[counts], outcomes.is_right[counts]
    # As decimal numbers read: 0.7 in float32 is a little less.
    places = np.clip(np.floor(np.round(scores, 6) * _N_BINS), 0, _N_BINS - 1).astype(int)
    bins = []
    error = 0.0
    for place in range(_N_BINS):
        chosen = places == place
        n = int(chosen.sum())
        mean = float(scores[chosen].mean()) if n else None
        precision = float(is_right[chosen].mean()) if n else None
        if mean is not None and precision is not None:
            error += n / len(scores) * abs(mean - precision)
        bins.append(CalibrationBin(place / _N_BINS, n, mean, precision))
    return tuple(bins), error if len(scores) else None


def _confuse(measurement: Measurement, kept: np.ndarray, names: list[str]) -> tuple[Confusion, ...]:
    """Matches one to one by IoU, whatever the classes; crowd regions are left out."""
    detections, truths = measurement.detections, measurement.truths
    pairs = measurement.pairs
    is_kept = np.zeros(len(detections), bool)
    is_kept[kept] = True
    found_of = np.full(len(truths), -1)
    is_used = np.zeros(len(detections), bool)
    order = np.lexsort((pairs.truths, pairs.detections, -pairs.ious))
    counts = is_kept[pairs.detections[order]] & ~truths.is_crowd[pairs.truths[order]]
    order = order[counts]
    found: dict[int, int] = {}  # object -> detection
    used: set[int] = set()
    for d, g in zip(pairs.detections[order].tolist(), pairs.truths[order].tolist(), strict=True):
        if d not in used and g not in found:
            found[g] = d
            used.add(d)
    rows = np.fromiter(found.values(), np.int64, len(found))
    found_of[np.fromiter(found, np.int64, len(found))] = rows
    is_used[rows] = True
    in_crowd = np.zeros(len(detections), bool)
    in_crowd[pairs.detections[truths.is_crowd[pairs.truths]]] = True
    counted = np.flatnonzero(~truths.is_crowd)
    classes = np.append(detections.categories, -1)  # which -1 reads
    before = [truths.categories[counted], np.full(int((is_kept & ~is_used & ~in_crowd).sum()), -1)]
    after = [classes[found_of[counted]], detections.categories[is_kept & ~is_used & ~in_crowd]]
    named = [*names, ""]  # whose last one -1 reads
    cells, numbers = np.unique(
        np.concatenate(before) * len(named) + np.concatenate(after) + 1, return_counts=True
    )
    confusions = [
        Confusion(named[cell // len(named)], named[cell % len(named) - 1], n)
        for cell, n in zip(cells.tolist(), numbers.tolist(), strict=True)
    ]
    return tuple(sorted(confusions, key=lambda one: (-one.n, one.truth, one.found)))


def _worst_images(
    measurement: Measurement, outcomes: _Outcomes, is_kept: np.ndarray
) -> tuple[ImageErrors, ...]:
    n_images = len(measurement.image_ids)
    images = measurement.detections.images[outcomes.rows]
    right = np.bincount(images[outcomes.is_right & is_kept], minlength=n_images)
    wrong = np.bincount(images[outcomes.is_wrong & is_kept], minlength=n_images)
    truths = measurement.truths
    missed = np.bincount(truths.images[~truths.is_crowd], minlength=n_images) - right
    errors = missed + wrong
    worst = np.argsort(-errors, kind="stable")[:_MAX_IMAGES]
    return tuple(
        ImageErrors(measurement.image_ids[i], int(right[i]), int(missed[i]), int(wrong[i]))
        for i in worst.tolist()
        if errors[i]
    )
