"""Labelled images for training: COCO files in, augmented crops with targets out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import Dataset

from segcore.errors import ImageError, UsageError
from segcore.images import decode_image
from segcore.training.augment import random_crop
from segcore.training.config import AugmentConfig
from segcore.training.loss import Targets


@dataclass(frozen=True)
class LabelledImage:
    """One image with its instances.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) int32; value g + 1 belongs to instance g. Where masks overlap the smaller
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
        UsageError: It cannot be read, is no JSON, or is no COCO data set.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read the annotations {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    lacking = [k for k in ("images", "annotations", "categories") if k not in document]
    if lacking:
        raise UsageError(f"{path} is not a COCO data set: it has no {', '.join(lacking)}")
    return document


def read_image(folder: Path, name: str, annotations: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB, decoded as archives are.

    Raises:
        UsageError: The image that `annotations` names cannot be read or decoded.
    """
    file = folder / Path(name).name
    try:
        return decode_image(file.read_bytes())
    except (OSError, ImageError) as error:
        raise UsageError(
            f"cannot read the image {file}, which {annotations} names: {error}"
        ) from None


def _mask(annotation: dict, height: int, width: int) -> np.ndarray:
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(segmentation).astype(bool)


def load_images(annotations: Path, images: Path) -> tuple[list[LabelledImage], list[str]]:
    """All images of a COCO file, decoded, and the names of the classes in order of their ids.

    Crowd annotations are left out. An optional `image_type` key of an image entry makes rarer
    types be drawn more often (square root of the share).

    Raises:
        UsageError: A file is missing or damaged, or there is no instance at all.
    """
    document = read_coco(annotations)
    categories = sorted(document["categories"], key=lambda c: c["id"])
    index = {c["id"]: i for i, c in enumerate(categories)}
    by_image: dict[int, list[dict]] = {}
    for annotation in document["annotations"]:
        if not annotation.get("iscrowd"):
            by_image.setdefault(annotation["image_id"], []).append(annotation)
    kinds = [entry.get("image_type", "") for entry in document["images"]]
    share = {kind: kinds.count(kind) / len(kinds) for kind in set(kinds)}
    result = []
    for entry, kind in zip(document["images"], kinds, strict=True):
        image = read_image(images, entry["file_name"], annotations)
        height, width = image.shape[:2]
        labels = np.zeros((height, width), np.int32)
        masks = [(a, _mask(a, height, width)) for a in by_image.get(entry["id"], [])]
        masks.sort(key=lambda pair: -int(pair[1].sum()))
        for g, (_, mask) in enumerate(masks):
            labels[mask] = g + 1
        classes = np.array([index[a["category_id"]] for a, _ in masks], np.int64)
        result.append(LabelledImage(image, labels, classes, share[kind] ** -0.5))
    if not any(len(item.classes) for item in result):
        raise UsageError(f"{annotations} holds no instance to learn from")
    return result, [c["name"] for c in categories]


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
        """-> image (3, S, S) uint8, labels (S, S) int32, boxes (G, 4) float32, classes (G,)."""
        rng = np.random.default_rng((self.seed, self.epoch, i))
        item = self.images[rng.choice(len(self.images), p=self.probabilities)]
        image, labels = random_crop(item.image, item.labels, self.config, rng)
        labels, boxes, kept = compact(labels, len(item.classes))
        return (
            torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            torch.from_numpy(labels),
            torch.from_numpy(boxes),
            torch.from_numpy(item.classes[kept]),
        )


def compact(
    labels: np.ndarray, count: int, min_pixels: int = 8
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Renumber the instances left in a crop.

    Args:
        labels: (S, S) int32, values 0 ... count.
        count: Number of instances before cropping.
        min_pixels: Instances with fewer pixels become background.

    Returns:
        Labels with values 0 ... G, boxes (G, 4) float32 x1 y1 x2 y2, kept indices (G,).
    """
    y, x = np.nonzero(labels)
    value = labels[y, x] - 1
    kept = np.flatnonzero(np.bincount(value, minlength=count) >= min_pixels)
    low = np.full((count, 2), np.iinfo(np.int64).max)
    high = np.full((count, 2), -1)
    for axis, position in enumerate((x, y)):
        np.minimum.at(low[:, axis], value, position)
        np.maximum.at(high[:, axis], value, position)
    boxes = np.concatenate((low[kept], high[kept] + 1), axis=1).astype(np.float32)
    renumber = np.zeros(count + 1, np.int32)
    renumber[kept + 1] = np.arange(1, len(kept) + 1)
    return renumber[labels], boxes, kept


def collate(items: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]]) -> tuple[Tensor, Targets]:
    """Crops -> images (B, 3, S, S) uint8 and padded targets."""
    slots = max(1, *(len(boxes) for _, _, boxes, _ in items))
    boxes = torch.zeros(len(items), slots, 4)
    classes = torch.zeros(len(items), slots, dtype=torch.int64)
    valid = torch.zeros(len(items), slots, dtype=torch.bool)
    for b, (_, _, box, cls) in enumerate(items):
        boxes[b, : len(box)] = box
        classes[b, : len(box)] = cls
        valid[b, : len(box)] = True
    labels = torch.stack([labels for _, labels, _, _ in items])
    return torch.stack([image for image, _, _, _ in items]), Targets(boxes, classes, valid, labels)
