"""Measure weights in training with the same code that segments archives."""

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
    """A COCO file and its images, decoded.

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
    """Mask and box AP of a state dict on a labelled set; thresholds from `config.validation`."""
    meta = CheckpointMeta(
        architecture=config.architecture,
        categories=tuple(checkpoint_categories(labelled.document)),
        name=config.name,
    )
    options = ModelOptions(
        imgsz=config.validation.imgsz,
        conf=config.validation.conf,
        iou=config.validation.iou,
        max_det=config.validation.max_det,
        device=config.device,
    )
    state = {name: tensor.detach().cpu() for name, tensor in weights.items()}
    model = YoloSegModel(Checkpoint(meta, state, sha256="", source="weights in training"), options)
    detections = []
    with torch.inference_mode():
        for image_id, image in labelled.images.items():
            prepared = [model.preprocess(image)]
            (instances,) = model.postprocess(model.forward(prepared), prepared)
            detections += to_coco_results(image_id, instances)
    return mask_and_box_ap(
        labelled.document, labelled.images, detections, config.validation.max_det
    )


def checkpoint_categories(document: dict[str, Any]) -> list[dict[str, Any]]:
    """What a checkpoint keeps of the categories of a COCO document: id and name, ordered by id."""
    categories = sorted(document["categories"], key=lambda c: c["id"])
    return [{"id": int(c["id"]), "name": str(c["name"])} for c in categories]


def to_coco_results(image_id: int, instances: Instances) -> list[dict[str, Any]]:
    """Instances of one image as COCO results."""
    size = [instances.height, instances.width]
    return [
        {
            "image_id": image_id,
            "category_id": int(instances.category_ids[i]),
            "score": float(instances.scores[i]),
            "bbox": instances.boxes[i].tolist(),
            "segmentation": {"size": size, "counts": instances.counts[i].decode()},
        }
        for i in range(len(instances))
    ]


def summarize_scores(scores: Scores) -> dict[str, float]:
    """The scores that go into the log and the card of a run."""
    return {
        f"{kind}_{name}": round(float(getattr(getattr(scores, kind), name)), 5)
        for kind in ("mask", "box")
        for name in ("ap", "ap50", "ap75")
    }
