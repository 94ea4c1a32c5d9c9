"""Average precision of masks and boxes by the COCO protocol, without files and without printing.

The protocol (Lin et al., "Microsoft COCO: Common Objects in Context", 2014) and its numbers are
those of pycocotools: IoU thresholds 0.50:0.05:0.95, 101 recall points, greedy matching by score.
Two things differ from `COCOeval.summarize`: `max_dets` defaults to 500, because the usual 100
truncates dense images, and matching visits only the ground truths that reach the threshold, which
gives the same matches in a fraction of the time.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segcore.errors import UsageError
from segcore.evaluation.ground_truth import GroundTruth, Id, id_order
from segcore.evaluation.truth_file import check_ground_truth

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


def format_score(value: float) -> str:
    """Three decimals, or a dash where there is nothing to measure."""
    return "-" if math.isnan(value) else f"{value:.3f}"


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
    detections: Iterable[Mapping[str, Any]],
    max_dets: int = DEFAULT_MAX_DETS,
) -> Scores:
    """COCO average precision of masks and of boxes.

    Args:
        ground_truth: What `check_ground_truth` gave, whose remarks tell what was left out; or a
            COCO instances dict of which every annotation must be usable. Not changed.
        image_ids: Images that count; those without detections lower recall.
        detections: Each with image_id, category_id, score, segmentation (compressed RLE dict on
            the image's canvas) and bbox (x, y, w, h in pixels). Not changed.
        max_dets: Detections that count, per image and category, best score first.

    Raises:
        UsageError: An image or category is not in `ground_truth`, a mask has another canvas, or an
            annotation of a dict cannot be used.
    """
    if isinstance(ground_truth, GroundTruth):
        truth, every_one_counts = ground_truth, False
    else:
        truth, every_one_counts = check_ground_truth(ground_truth), True
    images = _number_images(truth, image_ids)
    categories = {category.id: k for k, category in enumerate(truth.categories, start=1)}
    annotations = _coco_annotations(truth, images, categories)
    if every_one_counts and truth.remarks.n_left_out:
        raise UsageError(" ".join(truth.remarks.sentences()))
    results = _coco_results(detections, truth, images, categories)
    sizes = [truth.canvas(image_id) for image_id in images]
    dataset = {
        "images": [
            {"id": number, "height": height, "width": width}
            for number, (height, width) in enumerate(sizes, start=1)
        ],
        "categories": [{"id": k} for k in categories.values()],
    }
    masks = _run_pycocotools(dataset, annotations, results, "segm", max_dets)
    boxes = _run_pycocotools(dataset, annotations, results, "bbox", max_dets)
    n_truths = Counter(a["category_id"] for a in annotations if not a["iscrowd"])
    n_results = Counter(r["category_id"] for r in results)
    per_class = tuple(
        ClassScores(
            category_id=category.id,
            name=category.name,
            n_ground_truth=n_truths[k + 1],
            n_detections=n_results[k + 1],
            mask=_summarize(masks, [k]),
            box=_summarize(boxes, [k]),
        )
        for k, category in enumerate(truth.categories)
    )
    all_classes = list(range(len(categories)))
    return Scores(
        mask=_summarize(masks, all_classes),
        box=_summarize(boxes, all_classes),
        per_class=per_class,
        n_images=len(images),
        n_ground_truth=n_truths.total(),
        n_detections=len(results),
        max_dets=max_dets,
    )


def _number_images(truth: GroundTruth, image_ids: Iterable[Id]) -> dict[Id, int]:
    """Ids of any kind -> the whole numbers from 1 that pycocotools computes with, in their order.

    Raises:
        UsageError: An image is not in the ground truth.
    """
    selected = list(dict.fromkeys(image_ids))
    missing = [image_id for image_id in selected if image_id not in truth.images]
    if missing:
        raise UsageError(f"image id {missing[0]} is not in the ground truth")
    return {id_: number for number, id_ in enumerate(sorted(selected, key=id_order), start=1)}


def _coco_annotations(
    truth: GroundTruth, images: Mapping[Id, int], categories: Mapping[Id, int]
) -> list[dict[str, Any]]:
    """Ground truth of these images; ids from 1, as pycocotools reads id 0 as 'not matched'."""
    annotations: list[dict[str, Any]] = []
    for image_id, image_number in images.items():
        for item in truth.objects(image_id):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_number,
                    "category_id": categories[item.category_id],
                    "iscrowd": int(item.is_crowd),
                    "segmentation": item.rle,
                    "area": item.area,
                    "bbox": list(item.bbox),
                }
            )
    return annotations


def _coco_results(
    detections: Iterable[Mapping[str, Any]],
    truth: GroundTruth,
    images: Mapping[Id, int],
    categories: Mapping[Id, int],
) -> list[dict[str, Any]]:
    """Detections of the selected images as pycocotools wants them; ids from 1."""
    results: list[dict[str, Any]] = []
    for number, detection in enumerate(detections, start=1):
        image_id, category_id = detection["image_id"], detection["category_id"]
        if image_id not in truth.images:
            raise UsageError(
                f"a detection has image id {image_id}, which is not in the ground truth"
            )
        if category_id not in categories:
            raise UsageError(
                f"a detection has category id {category_id}, which is not in the ground truth"
            )
        if image_id not in images:
            continue
        canvas = truth.canvas(image_id)
        rle = dict(detection["segmentation"])
        if tuple(rle["size"]) != canvas:
            raise UsageError(
                f"a mask of image id {image_id} is {tuple(rle['size'])} (height, width), "
                f"but the ground truth says {canvas}"
            )
        results.append(
            {
                "id": number,
                "image_id": images[image_id],
                "category_id": categories[category_id],
                "score": float(detection["score"]),
                "segmentation": rle,
                "bbox": [float(v) for v in detection["bbox"]],
            }
        )
    return results


class _Evaluation(COCOeval):
    """pycocotools' evaluation; a detection only looks at ground truths over the threshold.

    The names of the method, its arguments and its result are those of pycocotools.
    """

    def evaluateImg(
        self, imgId: int, catId: int, aRng: Sequence[float], maxDet: int
    ) -> dict[str, Any] | None:
        truths, detections = self._gts[imgId, catId], self._dts[imgId, catId]
        if not truths and not detections:
            return None
        ignored = [bool(t["ignore"] or not aRng[0] <= t["area"] <= aRng[1]) for t in truths]
        order = np.argsort(ignored, kind="mergesort")  # ground truths that do not count come last
        truths = [truths[i] for i in order]
        ignored = [ignored[i] for i in order]
        ranking = np.argsort([-d["score"] for d in detections], kind="mergesort")[:maxDet]
        detections = [detections[i] for i in ranking]
        ious = self.ious[imgId, catId]
        ious = ious[:, order] if len(ious) else np.zeros((len(detections), len(truths)))
        min_iou = min(*self.params.iouThrs, 1 - 1e-10)
        candidates = [
            [(int(g), float(row[g])) for g in np.flatnonzero(row >= min_iou)] for row in ious
        ]
        is_crowd = [bool(t["iscrowd"]) for t in truths]
        matches = [_match(candidates, is_crowd, ignored, iou) for iou in self.params.iouThrs]
        # (IoU thresholds, detections) and (IoU thresholds, ground truths)
        truth_of_detection = np.array([m for m, _ in matches], int)
        truth_of_detection = truth_of_detection.reshape(len(matches), len(detections))
        detection_of_truth = np.array([m for _, m in matches], int)
        detection_of_truth = detection_of_truth.reshape(len(matches), len(truths))
        truth_ids = np.array([0] + [t["id"] for t in truths])
        detection_ids = np.array([0] + [d["id"] for d in detections])
        match_ignored = np.array([*ignored, False])[truth_of_detection]  # -1 reads the last
        out_of_range = np.array([not aRng[0] <= d["area"] <= aRng[1] for d in detections], bool)
        return {
            "image_id": imgId,
            "category_id": catId,
            "aRng": aRng,
            "maxDet": maxDet,
            "dtIds": [d["id"] for d in detections],
            "gtIds": [t["id"] for t in truths],
            "dtMatches": truth_ids[truth_of_detection + 1],
            "gtMatches": detection_ids[detection_of_truth + 1],
            "dtScores": [d["score"] for d in detections],
            "gtIgnore": np.array(ignored, int),
            "dtIgnore": np.where(truth_of_detection < 0, out_of_range[None, :], match_ignored),
        }


def _match(
    candidates: Sequence[Sequence[tuple[int, float]]],
    is_crowd: Sequence[bool],
    ignored: Sequence[bool],
    threshold: float,
) -> tuple[list[int], list[int]]:
    """Greedy matching at one threshold, detections by descending score.

    Args:
        candidates: For each detection the (ground truth, IoU) pairs that can match; ignored
            ground truths last.
        is_crowd, ignored: For each ground truth. A crowd region may be matched many times.
        threshold: IoU that a match needs.

    Returns:
        For each detection the index of its ground truth, for each ground truth that of its
        detection; -1 for none.
    """
    truth_of_detection, detection_of_truth = [-1] * len(candidates), [-1] * len(is_crowd)
    for d, pairs in enumerate(candidates):
        best_iou, match = min(threshold, 1 - 1e-10), -1
        for g, iou in pairs:
            if detection_of_truth[g] >= 0 and not is_crowd[g]:
                continue
            if match >= 0 and not ignored[match] and ignored[g]:
                break  # a match that counts is not given up for one that does not
            if iou >= best_iou:
                best_iou, match = iou, g
        if match >= 0:
            truth_of_detection[d], detection_of_truth[match] = match, d
    return truth_of_detection, detection_of_truth


def _run_pycocotools(
    dataset: Mapping[str, Any],
    annotations: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    kind: str,
    max_dets: int,
) -> COCOeval:
    """Run pycocotools on copies, because it changes its arguments, with its prints suppressed."""
    detections = [dict(result) for result in results]
    for result in detections:  # the size classes of AP go by the mask's area, or by that of the box
        box = result["bbox"]
        is_mask = kind == "segm"
        area = float(coco_mask.area(result["segmentation"])) if is_mask else box[2] * box[3]
        result |= {"area": area, "iscrowd": 0}
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _Evaluation(
            _index_dataset(dataset, [dict(a) for a in annotations]),
            _index_dataset(dataset, detections),
            kind,
        )
        evaluation.params.maxDets = [max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _index_dataset(dataset: Mapping[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {**dataset, "annotations": annotations}
    coco.createIndex()
    return coco


def _summarize(evaluation: COCOeval, classes: list[int]) -> AveragePrecision:
    """Means over the classes at these indices."""
    precision = evaluation.eval["precision"][..., 0][:, :, classes]  # IoU, recall, class, size
    recall = evaluation.eval["recall"][..., 0][:, classes]  # IoU, class, size
    index = {round(iou * 100): i for i, iou in enumerate(evaluation.params.iouThrs)}
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
