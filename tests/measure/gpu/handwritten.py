"""What a user would write without segcore: Ray Data, ultralytics and pycocotools.

    python -m tests.measure.gpu.handwritten FOLDER OUTPUT --model FILE.pt [--device cuda]

FOLDER holds JPEG files, OUTPUT gets Parquet files. Prints one JSON object with images/s, start of
the workers included. It commits nothing atomically, resumes nothing, and one bad image ends it; it
is the baseline for `whole_job`. Needs ultralytics; see `tests.measure.gpu`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from tests.measure.gpu.peer import require_ultralytics
from tests.support.paths import PYTHONPATH

BATCH_SIZE = 32


class Predictor:
    """The model in a worker of Ray Data: batches of pixels -> one row for each instance."""

    def __init__(self, weights: str, on_gpu: bool) -> None:
        self._model = require_ultralytics().YOLO(weights)
        self._settings = {
            **{"imgsz": 640, "conf": 0.25, "iou": 0.7, "max_det": 50, "retina_masks": True},
            **{"device": 0 if on_gpu else "cpu", "verbose": False},
            **({"half": True} if on_gpu else {}),
        }

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """One row for each mask; images without one have none."""
        images = [np.ascontiguousarray(image[:, :, ::-1]) for image in batch["image"]]
        columns: dict[str, list[Any]] = {"path": [], "class": [], "score": [], "counts": []}
        results = self._model.predict(images, **self._settings)
        for path, result in zip(batch["path"], results, strict=True):
            if result.masks is None:
                continue
            masks = result.masks.data.cpu().numpy().astype(np.uint8)
            classes, scores = result.boxes.cls.cpu().numpy(), result.boxes.conf.cpu().numpy()
            for mask, category, score in zip(masks, classes, scores, strict=True):
                columns["path"].append(path)
                columns["class"].append(int(category))
                columns["score"].append(float(score))
                rle = coco_mask.encode(np.asfortranarray(mask))
                columns["counts"].append(rle["counts"].decode())
        return columns


def run(folder: Path, output: Path, weights: Path, device: str) -> dict[str, Any]:
    """Segment all files of the folder; images/s."""
    import ray
    import ray.data

    on_gpu = device.startswith("cuda")
    os.environ["PYTHONPATH"] = PYTHONPATH + os.pathsep + os.environ.get("PYTHONPATH", "")
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    started = time.monotonic()
    images = ray.data.read_images(str(folder), mode="RGB", include_paths=True)
    instances = images.map_batches(
        Predictor,
        fn_constructor_args=(str(weights), on_gpu),
        batch_size=BATCH_SIZE,
        concurrency=1,
        **({"num_gpus": 1} if on_gpu else {}),
    )
    instances.write_parquet(str(output))
    seconds = time.monotonic() - started
    ray.shutdown()
    n_images = len(list(folder.glob("*.jpg")))
    return {"images": n_images, "seconds": round(seconds, 1), "images_s": n_images / seconds}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint of YOLO11-seg")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    require_ultralytics()
    print(json.dumps(run(options.folder, options.output, options.model, options.device)))


if __name__ == "__main__":
    main()
