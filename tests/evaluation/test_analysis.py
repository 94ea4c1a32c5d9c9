"""Curves, thresholds, calibration, confusion and worst images against plain loops."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from segcore.evaluation.analysis import analyse
from segcore.evaluation.average_precision import measure
from tests.evaluation.test_average_precision import _pycocotools_arrays, _small_scene

IMAGES = [0, 1, 2, 3]


def _plain_outcomes(truth: dict, detections: list[dict]) -> list[tuple[dict, str, dict | None]]:
    """Each detection, whether it is right, wrong or neither, and its object, by COCO's rule."""
    outcomes = []
    taken: set[int] = set()
    for detection in sorted(detections, key=lambda d: -d["score"]):
        best: dict | None = None
        best_iou = 0.5
        for crowd in (0, 1):
            for annotation in truth["annotations"]:
                keys = ("image_id", "category_id")
                fits = all(annotation[k] == detection[k] for k in keys)
                if not fits or annotation["iscrowd"] != crowd or annotation["id"] in taken:
                    continue
                if best is not None and not best["iscrowd"] and crowd:
                    continue
                iou = _iou(detection, annotation)
                if iou >= best_iou:
                    best, best_iou = annotation, iou
            if best is not None:
                break
        if best is None:
            outcomes.append((detection, "wrong", None))
        elif best["iscrowd"]:
            outcomes.append((detection, "neither", best))
        else:
            taken.add(best["id"])
            outcomes.append((detection, "right", best))
    return outcomes


def _iou(detection: dict, annotation: dict) -> float:
    rles = [detection["segmentation"]], [annotation["segmentation"]]
    return float(coco_mask.iou(*rles, [annotation["iscrowd"]])[0, 0])


def _f1(outcomes: list[tuple[dict, str, Any]], n_truths: int, score: float) -> float:
    kept = [what for detection, what, _ in outcomes if detection["score"] >= score]
    return 2 * kept.count("right") / (kept.count("right") + kept.count("wrong") + n_truths)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), density=st.sampled_from([0.3, 1.0, 3.0]))
def test_equals_plain_loops(seed: int, density: float) -> None:
    truth, detections = _small_scene(seed, density)
    # Areas out of COCO's ranges are ignored there; no such object is in these scenes.
    found = analyse(measure(truth, IMAGES, detections))
    outcomes = _plain_outcomes(truth, detections)
    thresholds: dict[int, float] = {}
    expected_curves = _pycocotools_arrays(truth, detections, "segm", 500)["precision"]
    for k, one in enumerate(found.per_class):
        own = [o for o in outcomes if o[0]["category_id"] == one.category_id]
        n_truths = sum(
            a["category_id"] == one.category_id and not a["iscrowd"] for a in truth["annotations"]
        )
        if not n_truths:
            assert (one.best, one.precision) == (None, {})
            continue
        for iou, place in ((50, 0), (75, 5)):
            assert one.precision[iou] == expected_curves[place, :, k, 0, 0].tolist()
        assert one.best is not None
        scores = sorted({d["score"] for d, what, _ in own if what != "neither"}, reverse=True)
        values = [_f1(own, n_truths, score) for score in scores]
        if not values or max(values) == 0:
            assert one.best.score is None
            continue
        assert one.best.f1 == pytest.approx(max(values))
        assert one.best.score == scores[int(np.argmax(np.round(values, 12)))]
        thresholds[one.category_id] = one.best.score
        kept = [what for d, what, _ in own if d["score"] >= one.best.score]
        n_right = kept.count("right")
        assert one.best.recall == pytest.approx(n_right / n_truths)
        assert one.best.precision == pytest.approx(n_right / (n_right + kept.count("wrong")))
    _check_calibration(found, outcomes)
    _check_images(found, truth, outcomes, thresholds)
    _check_confusions(found, truth, detections, thresholds)
    json.dumps(found.to_dict({0: "a.png"}), allow_nan=False)


def _check_calibration(found: Any, outcomes: list) -> None:
    rows = [(d["score"], what == "right") for d, what, _ in outcomes if what != "neither"]
    assert sum(one.n_detections for one in found.calibration) == len(rows)
    error = 0.0
    for place, one in enumerate(found.calibration):
        own = [r for r in rows if min(int(round(r[0], 6) * 10 + 1e-9), 9) == place]
        assert one.n_detections == len(own)
        if own:
            mean, right = (float(np.mean([r[i] for r in own])) for i in (0, 1))
            assert (one.mean_score, one.precision) == (pytest.approx(mean), pytest.approx(right))
            error += len(own) / len(rows) * abs(mean - right)
    assert found.calibration_error == (pytest.approx(error) if rows else None)


def _check_images(found: Any, truth: dict, outcomes: list, thresholds: dict[int, float]) -> None:
    expected = {}
    for image_id in IMAGES:
        kept = [
            what
            for d, what, _ in outcomes
            if d["image_id"] == image_id and d["score"] >= thresholds.get(d["category_id"], 2)
        ]
        n_truths = sum(a["image_id"] == image_id and not a["iscrowd"] for a in truth["annotations"])
        right, wrong = kept.count("right"), kept.count("wrong")
        if n_truths - right + wrong:
            expected[image_id] = (right, n_truths - right, wrong)
    worst = {one.image_id: (one.right, one.missed, one.wrong) for one in found.worst_images}
    assert worst == expected
    errors = [one.missed + one.wrong for one in found.worst_images]
    assert errors == sorted(errors, reverse=True)


def _check_confusions(
    found: Any, truth: dict, detections: list[dict], thresholds: dict[int, float]
) -> None:
    names = {c["id"]: c["name"] for c in truth["categories"]}
    counts: Counter[tuple[str, str]] = Counter()
    for image_id in IMAGES:
        own = [
            d
            for d in detections
            if d["image_id"] == image_id and d["score"] >= thresholds.get(d["category_id"], 2)
        ]
        objects = [a for a in truth["annotations"] if a["image_id"] == image_id]
        pairs = sorted(
            (-_iou(d, a), i, j) for i, d in enumerate(own) for j, a in enumerate(objects)
            if not a["iscrowd"] and _iou(d, a) >= 0.5
        )  # fmt: skip
        free, left = set(range(len(own))), {j for j, a in enumerate(objects) if not a["iscrowd"]}
        for _, i, j in pairs:
            if i in free and j in left:
                free.remove(i)
                left.remove(j)
                counts[names[objects[j]["category_id"]], names[own[i]["category_id"]]] += 1
        counts.update((names[objects[j]["category_id"]], "") for j in left)
        for i in free:
            if not any(a["iscrowd"] and _iou(own[i], a) >= 0.5 for a in objects):
                counts["", names[own[i]["category_id"]]] += 1
    assert {(one.truth, one.found): one.n for one in found.confusions} == dict(counts)
    numbers = [one.n for one in found.confusions]
    assert numbers == sorted(numbers, reverse=True)
