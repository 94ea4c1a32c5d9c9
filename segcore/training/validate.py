"""Measure weights in training with the same code that segments archives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from segcore.errors import UsageError
from segcore.evaluation.average_precision import Scores, mask_and_box_ap
from segcore.evaluation.ground_truth import GroundTruth, Id
from segcore.evaluation.remarks import shorten
from segcore.instances import Instances
from segcore.models.base import ModelOptions
from segcore.models.checkpoints import Checkpoint, CheckpointMeta
from segcore.models.yolo.model import YoloSegModel
from segcore.training.config import DataConfig, TrainConfig
from segcore.training.labelled_images import LabelledSet, read_labelled_set


def load_validation(data: DataConfig, training: GroundTruth) -> LabelledSet:
    """The validation set, with the classes of the training set.

    Raises:
        UsageError: A file is missing or damaged, or a class is not one of the training set.
    """
    labelled = read_labelled_set(data.val, data)
    trained = {category.id: category for category in training.categories}
    for category in labelled.truth.categories:
        if trained.get(category.id) != category:
            there = trained.get(category.id)
            raise UsageError(
                f"{data.val} has the class {shorten(category.name)} with the id "
                f"{shorten(category.id)}, but {data.train} has "
                + (f"{shorten(there.name)} with that id." if there else "no class with that id."),
                "Give both files the same categories.",
            )
    truth = replace(labelled.truth, categories=training.categories)
    return replace(labelled, truth=truth)


def measure_accuracy(
    config: TrainConfig, weights: dict[str, Tensor], labelled: LabelledSet
) -> Scores:
    """Mask and box AP of a state dict on a labelled set; thresholds from `config.validation`."""
    meta = CheckpointMeta(
        architecture=config.architecture,
        categories=tuple(checkpoint_categories(labelled.truth)),
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
    category_ids = dict(
        zip(
            (category["id"] for category in checkpoint_categories(labelled.truth)),
            (category.id for category in labelled.truth.categories),
            strict=True,
        )
    )
    detections = []
    with torch.inference_mode():
        for image_id, image in labelled.images.items():
            prepared = [model.preprocess(image)]
            (instances,) = model.postprocess(model.forward(prepared), prepared)
            detections += to_coco_results(image_id, instances, category_ids)
    max_det = meta.with_options(options).max_det
    return mask_and_box_ap(labelled.truth, labelled.images, detections, max_det)


def checkpoint_categories(truth: GroundTruth) -> list[dict[str, Any]]:
    """What a checkpoint keeps of the classes: id and name, ordered by id.

    Ids that a column of 32 bits does not hold (text, large numbers) become 1, 2, 3, ...
    """
    ids = [category.id for category in truth.categories]
    are_kept = all(isinstance(id_, int) and -(2**31) <= id_ < 2**31 for id_ in ids)
    return [
        {"id": category.id if are_kept else number, "name": category.name}
        for number, category in enumerate(truth.categories, start=1)
    ]


def to_coco_results(
    image_id: Id, instances: Instances, category_ids: Mapping[int, Id]
) -> list[dict[str, Any]]:
    """Instances of one image as COCO results; `category_ids` are those of the ground truth."""
    size = [instances.height, instances.width]
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[int(instances.category_ids[i])],
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
