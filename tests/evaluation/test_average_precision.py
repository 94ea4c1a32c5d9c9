"""AP equals the numbers of pycocotools, prints nothing, and does not truncate dense images."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segcore.errors import UsageError
from segcore.evaluation import coco_matching
from segcore.evaluation.average_precision import mask_and_box_ap, measure
from tests.masks.test_overlap import draw_mask


def _disc(height: int, width: int, x: float, y: float, radius: float) -> dict:
    rows, columns = np.mgrid[:height, :width]
    inside = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    return coco_mask.encode(np.asfortranarray(inside, np.uint8))


def _scene(seed: int, n_images: int = 6, n_classes: int = 3, crowd: bool = True):
    """Random overlapping discs of all three size classes, and disturbed copies as detections."""
    rng = np.random.default_rng(seed)
    truth = {
        "images": [{"id": 7 * i, "height": 240, "width": 320} for i in range(n_images)],
        "categories": [{"id": 3 * k + 1, "name": f"c{k}"} for k in range(n_classes)],
        "annotations": [],
    }
    detections = []
    for image in truth["images"]:
        for _ in range(int(rng.integers(0, 25))):
            x, y, r = rng.uniform(0, 320), rng.uniform(0, 240), 2 ** rng.uniform(2, 6.3)
            rle = _disc(240, 320, x, y, r)
            if not coco_mask.area(rle):
                continue
            category = int(rng.integers(n_classes)) * 3 + 1
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "segmentation": rle,
                    "area": float(coco_mask.area(rle)),
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "iscrowd": int(crowd and rng.random() < 0.1),
                }
            )
            for _ in range(int(rng.integers(0, 3))):
                dx, dy, dr = rng.normal(0, 0.12, 3) * r
                moved = _disc(240, 320, x + dx, y + dy, r + dr)
                detections.append(
                    {
                        "image_id": image["id"],
                        "category_id": category if rng.random() < 0.9 else 1,
                        "score": round(float(rng.random()), 2),  # ties on purpose
                        "segmentation": moved,
                        "bbox": coco_mask.toBbox(moved).tolist(),
                    }
                )
    return truth, detections


def _pycocotools_stats(
    truth: dict, detections: list[dict], kind: str
) -> tuple[np.ndarray, COCOeval]:
    coco = COCO()
    coco.dataset = copy.deepcopy(truth)
    coco.createIndex()
    results = copy.deepcopy(detections)
    if kind == "segm":
        for result in results:
            del result["bbox"]
    evaluation = COCOeval(coco, coco.loadRes(results), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats, evaluation


AP_FIELDS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


@pytest.mark.parametrize("seed", range(6))
def test_equals_pycocotools(seed: int) -> None:
    truth, detections = _scene(seed)
    scores = mask_and_box_ap(truth, [i["id"] for i in truth["images"]], detections, max_dets=100)
    for kind, precisions in (("segm", scores.mask), ("bbox", scores.box)):
        stats, evaluation = _pycocotools_stats(truth, detections, kind)
        numbers = [getattr(precisions, name) for name in AP_FIELDS]
        np.testing.assert_allclose(numbers, stats[:6], rtol=0, atol=1e-12)
        assert precisions.recall == pytest.approx(stats[8], abs=1e-12)
        for k, row in enumerate(scores.per_class):
            precision = evaluation.eval["precision"][:, :, k, 0, 2]
            row_ap = row.mask.ap if kind == "segm" else row.box.ap
            assert row_ap == pytest.approx(precision[precision > -1].mean(), abs=1e-12)
    assert 0.05 < scores.mask.ap < 0.95


def _small_scene(seed: int, density: float) -> tuple[dict, list[dict]]:
    """Masks of every kind on small canvases: many overlap, some are empty or equal, scores tie."""
    rng = np.random.default_rng(seed)
    categories = [{"id": 5 + k, "name": f"c{k}"} for k in range(3)]
    truth: dict = {"images": [], "annotations": [], "categories": categories}
    detections = []
    for image_id in range(4):
        height, width = rng.integers(8, 70, 2).tolist()
        truth["images"].append({"id": image_id, "height": height, "width": width})
        bitmaps = [draw_mask(rng, height, width) for _ in range(rng.integers(1, 6))]
        for number in range(rng.integers(0, int(12 * density) + 2)):
            bitmap = bitmaps[number % len(bitmaps)]
            if rng.random() < 0.7:
                bitmap = np.roll(bitmap, rng.integers(-1, 2, 2), (0, 1))
            rle = coco_mask.encode(np.asfortranarray(bitmap, np.uint8))
            row = {
                "image_id": image_id,
                "category_id": 5 + int(rng.integers(2)),
                "segmentation": rle,
                "bbox": [float(v) for v in coco_mask.toBbox(rle) + rng.choice([0, 0.3], 4)],
            }
            if rng.random() < 0.4:
                area = float(coco_mask.area(rle)) * rng.choice([1, 1, 3])
                truth["annotations"].append(
                    {**row, "id": len(truth["annotations"]) + 1, "area": area,
                     "iscrowd": int(rng.random() < 0.2)}
                )  # fmt: skip
            if rng.random() < 0.8:
                detections.append({**row, "score": round(float(rng.random()), 1)})
    return truth, detections


@pytest.mark.parametrize("backend", ["numpy", "compiled"])
@given(
    seed=st.integers(0, 2**32 - 1),
    density=st.sampled_from([0.3, 1.0, 4.0]),
    max_dets=st.sampled_from([1, 3, 100]),
)
def test_every_number_equals_pycocotools(
    backend: str, seed: int, density: float, max_dets: int
) -> None:
    truth, detections = _small_scene(seed, density)
    compiled = pytest.importorskip("numba") and coco_matching._contested()
    chosen = compiled if backend == "compiled" else coco_matching.match_contested
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_matching, "_contested", lambda: chosen)
        patch.setattr(coco_matching, "_MAX_CHARS", 40)
        measured = measure(truth, [0, 1, 2, 3], detections, max_dets)
    for kind, evaluation in (("segm", measured.mask), ("bbox", measured.box)):
        expected = _pycocotools_arrays(truth, detections, kind, max_dets)
        np.testing.assert_array_equal(evaluation.precision, expected["precision"][..., 0])
        np.testing.assert_array_equal(evaluation.recall, expected["recall"][..., 0])


def _pycocotools_arrays(
    truth: dict, detections: list[dict], kind: str, max_dets: int
) -> dict[str, np.ndarray]:
    """What COCOeval itself accumulates."""
    coco, results = COCO(), COCO()
    coco.dataset, results.dataset = copy.deepcopy(truth), copy.deepcopy(truth)
    rows = copy.deepcopy(detections)
    for number, row in enumerate(rows, start=1):
        box = row["bbox"]
        area = coco_mask.area(row["segmentation"]) if kind == "segm" else box[2] * box[3]
        row |= {"id": number, "area": float(area), "iscrowd": 0}
    results.dataset["annotations"] = rows
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        results.createIndex()
        evaluation = COCOeval(coco, results, kind)
        evaluation.params.maxDets = [max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval


def test_prints_nothing_and_changes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    truth, detections = _scene(1)
    before = copy.deepcopy((truth, detections))
    mask_and_box_ap(truth, [i["id"] for i in truth["images"]], detections)
    assert capfd.readouterr() == ("", "")
    assert (truth, detections) == before


def test_max_dets_of_100_truncates_dense_images() -> None:
    truth = {
        "images": [{"id": 1, "height": 300, "width": 300}],
        "categories": [{"id": 1, "name": "nucleus"}],
        "annotations": [],
    }
    detections = []
    for number in range(196):
        x, y = 20 * (number % 14) + 1, 20 * (number // 14) + 1
        # Ids from 0: pycocotools alone would read id 0 as "not matched".
        square = [[x, y, x + 10, y, x + 10, y + 10, x, y + 10]]
        truth["annotations"].append(
            {"id": number, "image_id": 1, "category_id": 1, "segmentation": square}
        )
        rle = coco_mask.merge(coco_mask.frPyObjects(square, 300, 300))
        detections.append(
            {
                "image_id": 1,
                "category_id": 1,
                "score": 0.5,
                "segmentation": rle,
                "bbox": [x, y, 10, 10],
            }
        )
    assert mask_and_box_ap(truth, [1], detections).mask.ap == pytest.approx(1.0)
    assert mask_and_box_ap(truth, [1], detections, max_dets=100).mask.ap == pytest.approx(
        52 / 101, abs=0.01
    )


def test_images_without_detections_lower_recall_and_absent_classes_are_nan() -> None:
    truth, _ = _scene(2, n_classes=1, crowd=False)
    truth["categories"].append({"id": 99, "name": "never"})
    perfect = [
        {k: a[k] for k in ("image_id", "category_id", "segmentation", "bbox")} | {"score": 0.9}
        for a in truth["annotations"]
    ]
    ids = [i["id"] for i in truth["images"]]
    assert mask_and_box_ap(truth, ids, perfect).mask.ap == pytest.approx(1.0)
    first = truth["annotations"][0]["image_id"]
    share = sum(a["image_id"] != first for a in perfect) / len(perfect)
    scores = mask_and_box_ap(truth, ids, [a for a in perfect if a["image_id"] != first])
    assert scores.mask.recall == pytest.approx(share)
    assert math.isnan(scores.per_class[1].mask.ap)
    assert scores.to_dict()["per_class"][1]["mask"]["ap"] is None
    json.dumps(scores.to_dict(), allow_nan=False)
    empty = mask_and_box_ap(truth, ids, [])
    assert empty.mask.ap == 0.0
    assert empty.n_detections == 0


def test_errors_name_the_wrong_value() -> None:
    truth, detections = _scene(3)
    ids = [i["id"] for i in truth["images"]]
    with pytest.raises(UsageError, match="4711"):
        mask_and_box_ap(truth, [4711], detections)
    with pytest.raises(UsageError, match="category id 5"):
        mask_and_box_ap(truth, ids, [detections[0] | {"category_id": 5}])
    with pytest.raises(UsageError, match=r"\(10, 10\)"):
        mask_and_box_ap(truth, ids, [detections[0] | {"segmentation": _disc(10, 10, 5, 5, 3)}])
