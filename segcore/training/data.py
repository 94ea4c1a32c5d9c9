"""Labelled images for training: pixels and masks in, augmented crops with targets out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import Dataset

from segcore.errors import UsageError
from segcore.evaluation.ground_truth import Id, LabelledObject
from segcore.evaluation.truth_masks import mask_area
from segcore.text import plural
from segcore.training.augment import random_crop
from segcore.training.config import AugmentConfig
from segcore.training.labelled_images import LabelledSet
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


def label_images(labelled: LabelledSet) -> list[LabelledImage]:
    """Draw the labels of all images; classes are numbered in the order of their ids.

    Crowd annotations are left out. Where image entries have the optional key `image_type`, images
    of rarer types are drawn more often (inversely to the square root of the type's share).

    Raises:
        UsageError: There is no instance at all.
    """
    truth = labelled.truth
    class_index = {category.id: i for i, category in enumerate(truth.categories)}
    n_of_type = Counter(truth.images[image_id].image_type for image_id in labelled.images)
    images = []
    for image_id, image in labelled.images.items():
        objects = [item for item in truth.objects(image_id) if not item.is_crowd]
        labels, classes = _draw_labels(objects, image.shape[0], image.shape[1], class_index)
        share = n_of_type[truth.images[image_id].image_type] / len(labelled.images)
        images.append(LabelledImage(image, labels, classes, share**-0.5))
    if not any(len(item.classes) for item in images):
        raise UsageError(f"{truth.name} has no instance to train on")
    return images


def training_notes(labelled: LabelledSet) -> list[str]:
    """Sentences for people about what is not trained on, or taken otherwise than written."""
    truth = labelled.truth
    n_crowds = sum(item.is_crowd for i in labelled.images for item in truth.objects(i))
    crowds = f"{truth.name}: {plural(n_crowds, 'crowd region')} not trained on."
    return [*labelled.notes, *([crowds] if n_crowds else [])]


def _draw_labels(
    objects: Sequence[LabelledObject], height: int, width: int, class_index: dict[Id, int]
) -> tuple[np.ndarray, np.ndarray]:
    """`LabelledImage.labels` and `LabelledImage.classes`."""
    ordered = sorted(objects, key=lambda item: -mask_area(item.rle))
    labels = np.zeros((height, width), np.int32)
    for g, item in enumerate(ordered):
        labels[coco_mask.decode(item.rle).astype(bool)] = g + 1
    return labels, np.array([class_index[item.category_id] for item in ordered], np.int64)


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
