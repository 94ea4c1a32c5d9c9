"""How far two programs agree on instances; for segcore's environment and the peers'."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco

from segcore.instances import Instances

SCORE, BOX_PX, IOU, SHARE = 1e-3, 0.05, 0.999, 0.995


class Detections(NamedTuple):
    """Instances of one image: N masks on a canvas of (height, width)."""

    size: tuple[int, int]
    boxes: np.ndarray  # (N, 4) x1 y1 x2 y2, pixels
    scores: np.ndarray
    classes: np.ndarray
    counts: list[bytes]

    @classmethod
    def of(cls, found: Instances) -> Detections:
        """segcore's, whose boxes are x, y, width, height."""
        boxes = found.boxes + np.pad(found.boxes[:, :2], ((0, 0), (2, 0)))
        size = (found.height, found.width)
        return cls(size, boxes, found.scores, found.category_ids, found.counts)

    def to_json(self) -> dict[str, Any]:
        """Exact: fp32 survives the way through decimals."""
        return {
            "size": self.size,
            "boxes": np.asarray(self.boxes, float).tolist(),
            "scores": np.asarray(self.scores, float).tolist(),
            "classes": np.asarray(self.classes, int).tolist(),
            "counts": [c.decode("ascii") for c in self.counts],
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Detections:
        """What `to_json` gave."""
        return cls(
            tuple(row["size"]),
            np.array(row["boxes"], np.float32).reshape(-1, 4),
            np.array(row["scores"], np.float32),
            np.array(row["classes"], int),
            [c.encode("ascii") for c in row["counts"]],
        )


def save(
    path: Path, images: Mapping[str, Detections], checkpoint: Path, settings: Mapping[str, Any]
) -> None:
    """Writes what a program found with this checkpoint, by file name of the image."""
    document = {
        "checkpoint": checkpoint.name,
        "settings": dict(settings),
        "images": {name: found.to_json() for name, found in images.items()},
    }
    path.write_text(json.dumps(document) + "\n")


def pairs(reference: Detections, found: Detections) -> list[tuple[int, int]]:
    """Instances of both with one class and nearly the same score and box; each at most once."""
    out, free = [], list(range(len(found.counts)))
    for i in range(len(reference.counts)):
        near = [
            (float(np.abs(reference.boxes[i] - found.boxes[j]).max()), j)
            for j in free
            if reference.classes[i] == found.classes[j]
            and abs(float(reference.scores[i]) - float(found.scores[j])) < SCORE
        ]
        distance, j = min(near, default=(BOX_PX, -1))
        if distance < BOX_PX:
            out.append((i, j))
            free.remove(j)
    return out


def compare(reference: Detections, found: Detections) -> dict[str, Any]:
    """Counts and worst cases of one image; of masks that differ, by how much."""
    rles = [[{"size": list(d.size), "counts": c} for c in d.counts] for d in (reference, found)]
    # segcore drops masks without a pixel.
    kept = [i for i, rle in enumerate(rles[0]) if coco.area(rle)]
    place = {i: n for n, i in enumerate(kept)}
    matched = [(i, j) for i, j in pairs(reference, found) if i in place]
    out: dict[str, Any] = {
        "peer": len(kept),
        "segcore": len(found.counts),
        "matched": len(matched),
        "same_place": sum(place[i] == j for i, j in matched),
        "same_strings": 0,
        "iou_0.999": 0,
        "score": 0.0,
        "box_px": 0.0,
        "iou": 1.0,
        "differences": [],
    }
    for i, j in matched:
        box = np.abs(reference.boxes[i] - found.boxes[j]).max()
        out["box_px"] = max(out["box_px"], float(box))
        score = abs(float(reference.scores[i]) - float(found.scores[j]))
        out["score"] = max(out["score"], score)
        a, b = rles[0][i], rles[1][j]
        iou = 1.0
        if a["counts"] == b["counts"]:
            out["same_strings"] += 1
        else:
            iou = float(coco.iou([a], [b], [0])[0, 0])
            out["differences"].append(difference(a, b, reference.boxes[i], found.boxes[j], iou))
        out["iou"] = min(out["iou"], iou)
        out["iou_0.999"] += iou >= IOU
    return out


def difference(
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


def total(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums and worst cases over the images."""
    sums = ("peer", "segcore", "matched", "same_place", "same_strings", "iou_0.999")
    return {
        **{key: sum(row[key] for row in rows) for key in sums},
        **{key: max(row[key] for row in rows) for key in ("score", "box_px")},
        "iou": min(row["iou"] for row in rows),
        "differences": [d for row in rows for d in row["differences"]],
    }


def broken(sums: Mapping[str, Any]) -> list[str]:
    """Promises about whole images that do not hold; scores and boxes are part of matching."""
    checks = {
        "hundreds of detections": sums["peer"] >= 100,
        "whole": sums["peer"] == sums["segcore"] == sums["matched"],
        "whole: masks": sums["iou_0.999"] >= SHARE * sums["matched"],
    }
    return [name for name, holds in checks.items() if not holds]


HEADING = "peer/ours/match  same RLE  IoU>=.999  d score  d box px  min IoU"


def line(sums: Mapping[str, Any]) -> str:
    """A row of the table under `HEADING`."""
    return (
        f"{sums['peer']:4}/{sums['segcore']:4}/{sums['matched']:4}   {sums['same_strings']:8}"
        f"  {sums['iou_0.999']:9}  {sums['score']:.1e}   {sums['box_px']:.1e}  {sums['iou']:.5f}"
    )
