"""Measure weights in training with the very code that segments archives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segcore.evaluation.average_precision import Scores, mask_and_box_ap
from segcore.instances import Instances
from segcore.models.base import ModelOptions
from segcore.models.checkpoints import Checkpoint, CheckpointMeta
from segcore.models.yolo.model import YoloSegModel
from segcore.training.config import DataConfig, TrainConfig
from segcore.training.data import read_coco, read_image


@dataclass(frozen=True)
class LabelledSet:
    """Images of a COCO file, decoded, with the file itself.

    Attributes:
        document: The COCO data set.
        images: (H, W, 3) uint8 RGB by image id.
    """

    document: dict[str, Any]
    images: dict[int, np.ndarray]


def load_validation(data: DataConfig) -> LabelledSet:
    """The validation set.

    Raises:
        UsageError: A file is missing or damaged.
    """
    document = read_coco(data.val)
    images = {}
    for entry in document["images"]:
        images[int(entry["id"])] = read_image(data.images, entry["file_name"], data.val)
    return LabelledSet(document, images)


def measure_accuracy(
    config: TrainConfig, weights: dict[str, Tensor], labelled: LabelledSet
) -> Scores:
    """Mask and box AP of a state dict on a labelled set, thresholds as `config.validation`."""
    categories = sorted(labelled.document["categories"], key=lambda c: c["id"])
    meta = CheckpointMeta(
        architecture=config.architecture,
        categories=tuple(categories_meta(categories)),
        name=config.name,
    )
    v = config.validation
    options = ModelOptions(
        imgsz=v.imgsz, conf=v.conf, iou=v.iou, max_det=v.max_det, device=config.device
    )
    state = {name: tensor.detach().cpu() for name, tensor in weights.items()}
    model = YoloSegModel(Checkpoint(meta, state, sha256="", source="weights in training"), options)
    detections = []
    with torch.inference_mode():
        for image_id, image in labelled.images.items():
            prepared = [model.preprocess(image)]
            (found,) = model.postprocess(model.forward(prepared), prepared)
            detections += as_detections(image_id, found)
    return mask_and_box_ap(labelled.document, labelled.images, detections, v.max_det)


def categories_meta(categories: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The two fields that a checkpoint keeps of each COCO category."""
    return [{"id": int(c["id"]), "name": str(c["name"])} for c in categories]


def as_detections(image_id: int, found: Instances) -> list[dict[str, Any]]:
    """Instances of one image as COCO result entries."""
    size = [found.height, found.width]
    return [
        {
            "image_id": image_id,
            "category_id": int(found.category_ids[i]),
            "score": float(found.scores[i]),
            "bbox": found.boxes[i].tolist(),
            "segmentation": {"size": size, "counts": found.counts[i].decode()},
        }
        for i in range(len(found))
    ]


def short(scores: Scores) -> dict[str, float]:
    """The numbers that go into the log of a run."""
    return {
        f"{kind}_{name}": round(float(getattr(getattr(scores, kind), name)), 5)
        for kind in ("mask", "box")
        for name in ("ap", "ap50", "ap75")
    }
