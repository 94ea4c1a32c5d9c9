"""AP of ground truth with fields in any state, against hotcoco: `python -m tests.grid coco`.

hotcoco is an independent implementation of COCO's protocol in Rust. As in
tests/evaluation/test_coco_states.py it reads the document that is right for each state.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np

from segcore.errors import UsageError
from tests.evaluation.test_coco_states import (
    DETECTIONS,
    NAMES,
    STATES,
    _collide,
    pairs,
    segcore_ap,
)
from tests.support.coco_states import State, changed, expected


def hotcoco_ap(document: dict[str, Any], folder: Path) -> dict[str, list[float]]:
    """The numbers of `segcore_ap` by hotcoco."""
    images = {image["file_name"]: image["id"] for image in document["images"]}
    classes = {c["name"].strip().casefold(): c["id"] for c in document["categories"]}
    results = [
        {
            "image_id": images[d["image"]],
            "category_id": classes[d["category"]],
            "score": d["score"],
            "bbox": d["bbox"],
            "segmentation": {**d["segmentation"], "counts": d["segmentation"]["counts"].decode()},
        }
        for d in DETECTIONS
        if d["category"] in classes
    ]
    truth_file = folder / "truth.json"
    truth_file.write_text(json.dumps(document))
    numbers = {}
    for kind, name in (("segm", "mask"), ("bbox", "box")):
        keys = ("image_id", "category_id", "score", "segmentation" if kind == "segm" else "bbox")
        results_file = folder / "results.json"
        results_file.write_text(json.dumps([{key: r[key] for key in keys} for r in results]))
        coco = hotcoco.COCO(str(truth_file))
        evaluation = hotcoco.COCOeval(coco, coco.loadRes(str(results_file)), kind)
        evaluation.params.maxDets = [500]
        evaluation.evaluate()
        evaluation.accumulate()
        precision = np.asarray(evaluation.eval["precision"])[..., 0]
        recall = np.asarray(evaluation.eval["recall"])[..., 0]
        parts = [precision[..., 0], precision[0, ..., 0], precision[5, ..., 0]]
        parts += [precision[..., size] for size in (1, 2, 3)] + [recall[..., 0], recall[0, :, 0]]
        numbers[name] = [p[p > -1].mean() if (p > -1).any() else math.nan for p in parts]
    return numbers


def main() -> int:
    """Compare all states and some pairs; returns the exit code."""
    chosen: list[tuple[State, ...]] = [(state,) for state in STATES]
    chosen += [pair for pair in random.Random(3).sample(pairs(), 600) if not _collide(*pair)]
    cached: dict[str, dict[str, list[float]]] = {}
    n_same = n_refused = n_unread = n_different = 0
    with tempfile.TemporaryDirectory() as name:
        for states in chosen:
            apart = len(states) == 2 and states[0].field == states[1].field
            right = expected(*states, apart=apart)
            try:
                numbers, _ = segcore_ap(changed(*states, apart=apart))
            except UsageError:
                n_refused += 1
                n_different += right is not None
                continue
            key = json.dumps(right)
            try:
                if key not in cached:
                    cached[key] = hotcoco_ap(json.loads(key), Path(name))
            except ValueError:  # it does not read the JSON: half of a surrogate pair
                n_unread += 1
                continue
            is_same = right is not None and all(
                np.allclose(numbers[kind], cached[key][kind], rtol=0, atol=1e-9, equal_nan=True)
                for kind in ("mask", "box")
            )
            n_same += is_same
            n_different += not is_same
            if not is_same:
                print(
                    " and ".join(map(str, states)), dict(zip(NAMES, numbers["mask"], strict=True))
                )
    print(
        f"coco: {len(chosen)} documents, {n_same} with hotcoco's numbers, {n_refused} refused, "
        f"{n_unread} not read by hotcoco"
    )
    print(f"coco: {n_different} different")
    return 1 if n_different else 0
