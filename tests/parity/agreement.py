"""How far two programs agree on instances; used in segcore's environment and in the peers'."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from pycocotools import mask as coco

from segcore.instances import Instances

# The promise: scores and boxes (pixels) of matching instances differ by less than this, and this
# share of their masks has at least this IoU.
MAX_SCORE_DIFFERENCE, MAX_BOX_DIFFERENCE_PX, MIN_IOU, MIN_SHARE = 1e-3, 0.05, 0.999, 0.995
MIN_DETECTIONS = 100  # of the peer in all images; with fewer, agreement says little


class Detections(NamedTuple):
    """Instances of one image: N masks on a canvas of (height, width)."""

    size: tuple[int, int]
    boxes: np.ndarray  # (N, 4) x1 y1 x2 y2, pixels
    scores: np.ndarray
    classes: np.ndarray
    counts: list[bytes]

    @classmethod
    def from_instances(cls, instances: Instances) -> Detections:
        """From those of segcore, whose boxes are x, y, width, height."""
        boxes = instances.boxes + np.pad(instances.boxes[:, :2], ((0, 0), (2, 0)))
        size = (instances.height, instances.width)
        return cls(size, boxes, instances.scores, instances.category_ids, instances.counts)

    def to_json(self) -> dict[str, Any]:
        """JSON without loss: float32 values survive as decimals."""
        return {
            "size": self.size,
            "boxes": np.asarray(self.boxes, float).tolist(),
            "scores": np.asarray(self.scores, float).tolist(),
            "classes": np.asarray(self.classes, int).tolist(),
            "counts": [c.decode("ascii") for c in self.counts],
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Detections:
        """From what `to_json` returned."""
        return cls(
            tuple(row["size"]),
            np.array(row["boxes"], np.float32).reshape(-1, 4),
            np.array(row["scores"], np.float32),
            np.array(row["classes"], int),
            [c.encode("ascii") for c in row["counts"]],
        )


def read_rgb(path: Path) -> np.ndarray:
    """(H, W, 3) uint8, by the decoder that the peers use."""
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def save_detections(
    path: Path, images: Mapping[str, Detections], checkpoint: Path, settings: Mapping[str, Any]
) -> None:
    """Writes what a program detected with this checkpoint, by file name of the image."""
    document = {
        "checkpoint": checkpoint.name,
        "settings": dict(settings),
        "images": {name: detections.to_json() for name, detections in images.items()},
    }
    path.write_text(json.dumps(document) + "\n")


def match_instances(reference: Detections, detections: Detections) -> list[tuple[int, int]]:
    """Instances of both with one class and nearly the same score and box; each at most once."""
    matches, unmatched = [], list(range(len(detections.counts)))
    for i in range(len(reference.counts)):
        candidates = [
            (float(np.abs(reference.boxes[i] - detections.boxes[j]).max()), j)
            for j in unmatched
            if reference.classes[i] == detections.classes[j]
            and abs(float(reference.scores[i]) - float(detections.scores[j])) < MAX_SCORE_DIFFERENCE
        ]
        distance, j = min(candidates, default=(MAX_BOX_DIFFERENCE_PX, -1))
        if distance < MAX_BOX_DIFFERENCE_PX:
            matches.append((i, j))
            unmatched.remove(j)
    return matches


def compare_image(reference: Detections, detections: Detections) -> dict[str, Any]:
    """Counts and worst cases of one image, and by how much masks differ that are not equal."""
    rles = [
        [{"size": list(d.size), "counts": c} for c in d.counts] for d in (reference, detections)
    ]
    # segcore drops masks without a pixel.
    not_empty = [i for i, rle in enumerate(rles[0]) if coco.area(rle)]
    rank = {i: n for n, i in enumerate(not_empty)}
    matches = [(i, j) for i, j in match_instances(reference, detections) if i in rank]
    out: dict[str, Any] = {
        "peer": len(not_empty),
        "segcore": len(detections.counts),
        "matched": len(matches),
        "same_rank": sum(rank[i] == j for i, j in matches),
        "same_strings": 0,
        "iou_0.999": 0,
        "score": 0.0,
        "box_px": 0.0,
        "iou": 1.0,
        "differences": [],
    }
    for i, j in matches:
        box_difference = np.abs(reference.boxes[i] - detections.boxes[j]).max()
        out["box_px"] = max(out["box_px"], float(box_difference))
        score_difference = abs(float(reference.scores[i]) - float(detections.scores[j]))
        out["score"] = max(out["score"], score_difference)
        a, b = rles[0][i], rles[1][j]
        iou = 1.0
        if a["counts"] == b["counts"]:
            out["same_strings"] += 1
        else:
            iou = float(coco.iou([a], [b], [0])[0, 0])
            out["differences"].append(
                describe_difference(a, b, reference.boxes[i], detections.boxes[j], iou)
            )
        out["iou"] = min(out["iou"], iou)
        out["iou_0.999"] += iou >= MIN_IOU
    return out


def describe_difference(
    a: dict[str, Any], b: dict[str, Any], box: np.ndarray, other: np.ndarray, iou: float
) -> dict[str, Any]:
    """Two masks whose strings differ; `other_crop`: a box coordinate rounds to another pixel."""
    return {
        "iou": iou,
        "pixels": int((coco.decode(a) != coco.decode(b)).sum()),
        "area": int(coco.area(a)),
        "other_crop": bool((np.ceil(box) != np.ceil(other)).any()),
        "box": np.asarray(box, float).tolist(),
        "other_box": np.asarray(other, float).tolist(),
    }


def sum_images(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums and worst cases over the images."""
    sums = ("peer", "segcore", "matched", "same_rank", "same_strings", "iou_0.999")
    return {
        **{key: sum(row[key] for row in rows) for key in sums},
        **{key: max(row[key] for row in rows) for key in ("score", "box_px")},
        "iou": min(row["iou"] for row in rows),
        "differences": [d for row in rows for d in row["differences"]],
    }


def broken_promises(sums: Mapping[str, Any]) -> list[str]:
    """Promises about the end-to-end results that do not hold.

    Scores and boxes are part of matching.
    """
    checks = {
        "hundreds of detections": sums["peer"] >= MIN_DETECTIONS,
        "end to end": sums["peer"] == sums["segcore"] == sums["matched"],
        "end to end: masks": sums["iou_0.999"] >= MIN_SHARE * sums["matched"],
    }
    return [name for name, holds in checks.items() if not holds]


HEADING = "peer/ours/match  same RLE  IoU>=.999  d score  d box px  min IoU"


def format_row(sums: Mapping[str, Any]) -> str:
    """A row of the table under `HEADING`."""
    return (
        f"{sums['peer']:4}/{sums['segcore']:4}/{sums['matched']:4}   {sums['same_strings']:8}"
        f"  {sums['iou_0.999']:9}  {sums['score']:.1e}   {sums['box_px']:.1e}  {sums['iou']:.5f}"
    )


def relative_difference(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference over the largest value; infinity for different shapes."""
    if reference.shape != other.shape:
        return float("inf")
    return float((reference - other).abs().max() / reference.abs().max())
