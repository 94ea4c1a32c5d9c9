"""Labelled images for training: COCO files in, augmented crops with targets out."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import Dataset

from segcore.errors import ImageError, UsageError
from segcore.evaluation.average_precision import to_rle
from segcore.images import decode_image
from segcore.training.augment import random_crop
from segcore.training.config import AugmentConfig
from segcore.training.targets import GroundTruth, Targets


@dataclass(frozen=True)
class LabelledImage:
    """One image with its instances.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) int32; value g + 1 belongs to instance g. Where masks overlap, the smaller
            instance is in front.
        classes: (G,) int64 class indices.
        weight: How often the image is drawn, relative to others.
    """

    image: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    weight: float


def read_coco(path: Path) -> dict:
    """The annotation file as a dictionary.

    Raises:
        UsageError: It cannot be read, is not JSON, or is not a COCO data set.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read the annotations {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    missing = [k for k in ("images", "annotations", "categories") if k not in document]
    if missing:
        raise UsageError(f"{path} is not a COCO data set: it has no {', '.join(missing)}")
    return document


def read_image(folder: Path, name: str, annotations: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB, decoded as archives are.

    Raises:
        UsageError: The image that `annotations` names cannot be read or decoded.
    """
    path = folder / Path(name).name
    try:
        return decode_image(path.read_bytes())
    except (OSError, ImageError) as error:
        raise UsageError(
            f"cannot read the image {path}, which is listed in {annotations}: {error}"
        ) from None


def load_images(annotations: Path, images: Path) -> tuple[list[LabelledImage], list[str]]:
    """All images of a COCO file, decoded, and the names of the classes in order of their ids.

    Crowd annotations are left out. Where image entries have the optional key `image_type`, images
    of rarer types are drawn more often (inversely to the square root of the type's share).

    Raises:
        UsageError: A file is missing or damaged, or there is no instance at all.
    """
    document = read_coco(annotations)
    categories = sorted(document["categories"], key=lambda c: c["id"])
    class_index = {c["id"]: i for i, c in enumerate(categories)}
    annotations_by_image: dict[int, list[dict]] = defaultdict(list)
    for annotation in document["annotations"]:
        if not annotation.get("iscrowd"):
            annotations_by_image[annotation["image_id"]].append(annotation)
    types = [entry.get("image_type", "") for entry in document["images"]]
    share = {type_: types.count(type_) / len(types) for type_ in set(types)}
    labelled = []
    for entry, type_ in zip(document["images"], types, strict=True):
        image = read_image(images, entry["file_name"], annotations)
        labels, classes = _draw_labels(
            annotations_by_image[entry["id"]], image.shape[0], image.shape[1], class_index
        )
        labelled.append(LabelledImage(image, labels, classes, share[type_] ** -0.5))
    if not any(len(item.classes) for item in labelled):
        raise UsageError(f"{annotations} has no instance to train on")
    return labelled, [c["name"] for c in categories]


def _draw_labels(
    annotations: list[dict], height: int, width: int, class_index: dict[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """`LabelledImage.labels` and `LabelledImage.classes`."""
    masks = [
        (a, coco_mask.decode(to_rle(a["segmentation"], height, width)).astype(bool))
        for a in annotations
    ]
    masks.sort(key=lambda item: -int(item[1].sum()))
    labels = np.zeros((height, width), np.int32)
    for g, (_, mask) in enumerate(masks):
        labels[mask] = g + 1
    return labels, np.array([class_index[a["category_id"]] for a, _ in masks], np.int64)


class CropDataset(Dataset):
    """Augmented crops; item i of epoch e is the same in every run with the same seed."""

    def __init__(
        self, images: Sequence[LabelledImage], config: AugmentConfig, samples: int, seed: int
    ) -> None:
        self.images = images
        self.config = config
        self.samples = samples
        self.seed = seed
        self.epoch = 0
        weights = np.array([item.weight for item in images])
        self.probabilities = weights / weights.sum()

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Image (3, S, S) uint8, labels (S, S) int32, boxes (G, 4) float32, classes (G,) int64."""
        rng = np.random.default_rng((self.seed, self.epoch, i))
        source = self.images[rng.choice(len(self.images), p=self.probabilities)]
        image, labels = random_crop(source.image, source.labels, self.config, rng)
        labels, boxes, kept = renumber_instances(labels, len(source.classes))
        return (
            torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            torch.from_numpy(labels),
            torch.from_numpy(boxes),
            torch.from_numpy(source.classes[kept]),
        )


def renumber_instances(
    labels: np.ndarray, n_instances: int, min_pixels: int = 8
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Renumber the instances that remain in a crop.

    Args:
        labels: (S, S) int32, values 0 ... n_instances.
        n_instances: Before cropping.
        min_pixels: Instances with fewer pixels become background.

    Returns:
        Labels with values 0 ... G, boxes (G, 4) float32 x1 y1 x2 y2, kept indices (G,).
    """
    y, x = np.nonzero(labels)
    instance = labels[y, x] - 1
    kept = np.flatnonzero(np.bincount(instance, minlength=n_instances) >= min_pixels)
    low = np.full((n_instances, 2), np.iinfo(np.int64).max)
    high = np.full((n_instances, 2), -1)
    for axis, position in enumerate((x, y)):
        np.minimum.at(low[:, axis], instance, position)
        np.maximum.at(high[:, axis], instance, position)
    boxes = np.concatenate((low[kept], high[kept] + 1), axis=1).astype(np.float32)
    new_labels = np.zeros(n_instances + 1, np.int32)
    new_labels[kept + 1] = np.arange(1, len(kept) + 1)
    return new_labels[labels], boxes, kept


def collate(items: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]]) -> tuple[Tensor, Targets]:
    """Crops -> images (B, 3, S, S) uint8 and padded targets."""
    n_slots = max(1, *(len(boxes) for _, _, boxes, _ in items))
    truth = GroundTruth(
        boxes=torch.zeros(len(items), n_slots, 4),
        classes=torch.zeros(len(items), n_slots, dtype=torch.int64),
        valid=torch.zeros(len(items), n_slots, dtype=torch.bool),
    )
    for b, (_, _, boxes, classes) in enumerate(items):
        truth.boxes[b, : len(boxes)] = boxes
        truth.classes[b, : len(boxes)] = classes
        truth.valid[b, : len(boxes)] = True
    images = torch.stack([image for image, _, _, _ in items])
    labels = torch.stack([labels for _, labels, _, _ in items])
    return images, Targets(truth, labels)
