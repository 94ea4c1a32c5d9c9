"""A data set and a configuration that train in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from segcore.training.config import TrainConfig


@pytest.fixture
def tiny_config(tmp_path: Path) -> TrainConfig:
    """Six images with bright discs on dark ground, as a COCO data set."""
    rng = np.random.default_rng(0)
    document: dict = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "disc"}]}
    for i in range(6):
        image = np.full((96, 96), 20, np.uint8)
        for _ in range(3):
            mask = np.zeros((96, 96), np.uint8)
            centre = [int(v) for v in rng.integers(15, 80, 2)]
            cv2.circle(mask, centre, int(rng.integers(7, 14)), 1, -1)
            image[mask > 0] = 220
            rle = coco_mask.encode(np.asfortranarray(mask))
            rle["counts"] = rle["counts"].decode()
            entry = {"id": len(document["annotations"]) + 1, "image_id": i, "category_id": 7}
            document["annotations"].append({**entry, "segmentation": rle, "iscrowd": 0})
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
        document["images"].append({"id": i, "file_name": f"{i}.png", "height": 96, "width": 96})
    (tmp_path / "gt.json").write_text(json.dumps(document))
    return TrainConfig.model_validate(
        {
            "name": "tiny",
            "licence": "CC0-1.0",
            "output": tmp_path / "run",
            "data": {
                "images": tmp_path,
                "train": tmp_path / "gt.json",
                "val": tmp_path / "gt.json",
            },
            "augment": {"crop": 96, "min_side": 96, "max_side": 96},
            "optimizer": {"warmup_steps": 2},
            "epochs": 4,
            "batch_size": 3,
            "device": "cpu",
        }
    )
