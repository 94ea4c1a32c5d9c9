"""Task-aligned assignment of ground truth to anchors (Feng et al., TOOD, arXiv:2108.07755)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from segcore.training.targets import GroundTruth


class Predictions(NamedTuple):
    """What the network predicts at its anchors.

    Attributes:
        scores: (B, A, C) class probabilities.
        boxes: (B, A, 4) x1 y1 x2 y2, input pixels.
        centres: (A, 2) x y of the anchors, input pixels.
    """

    scores: Tensor
    boxes: Tensor
    centres: Tensor


class AssignOptions(NamedTuple):
    """How anchors are chosen.

    Attributes:
        topk: Anchors for each ground truth, at most.
        alpha, beta: Exponents of score and IoU in the alignment metric.
        min_side: Width and height that a box has at least in `find_candidates`, input pixels: the
            finest stride.
    """

    topk: int = 10
    alpha: float = 0.5
    beta: float = 6.0
    min_side: float = 8.0


class Assignment(NamedTuple):
    """P positive (image, anchor, ground truth) triples; an anchor occurs at most once.

    Attributes:
        image, anchor, truth: (P,) int64 indices; `truth` counts within the image.
        quality: (P,) float32 in [0, 1], the soft class target of the anchor.
    """

    image: Tensor
    anchor: Tensor
    truth: Tensor
    quality: Tensor


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes (P, 4) x1 y1 x2 y2, pair by pair -> (P,)."""
    size = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    intersection = size[:, 0] * size[:, 1]
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    return intersection / (area_a + area_b - intersection).clamp(min=1e-9)


def find_candidates(centres: Tensor, truth: GroundTruth, min_side: float) -> Tensor:
    """Pairs of a box and an anchor whose centre lies in it -> (P, 3) of image, truth, anchor.

    A box narrower than `min_side` pixels is treated as that wide here, so that every object,
    however small, has at least one candidate.
    """
    middle = (truth.boxes[..., :2] + truth.boxes[..., 2:]) / 2
    half = ((truth.boxes[..., 2:] - truth.boxes[..., :2]) / 2).clamp(min=min_side / 2)
    low, high = (middle - half).unsqueeze(2), (middle + half).unsqueeze(2)
    x, y = centres[:, 0], centres[:, 1]
    inside = (x >= low[..., 0]) & (x <= high[..., 0]) & (y >= low[..., 1]) & (y <= high[..., 1])
    return (inside & truth.valid.unsqueeze(2)).nonzero()


@torch.no_grad()
def assign(
    predictions: Predictions, ground_truth: GroundTruth, options: AssignOptions = AssignOptions()
) -> Assignment:
    """Choose for each ground truth the anchors that already classify and localise it best."""
    candidates = find_candidates(predictions.centres, ground_truth, options.min_side)
    image, truth, anchor = candidates.unbind(1)
    iou = paired_iou(predictions.boxes[image, anchor], ground_truth.boxes[image, truth])
    score = predictions.scores[image, anchor, ground_truth.classes[image, truth]]
    metric = score.pow(options.alpha) * iou.pow(options.beta)

    n_images, n_slots = ground_truth.valid.shape
    n_objects = n_images * n_slots
    owner = image * n_slots + truth  # index of the ground truth in the batch
    # Rank within each ground truth: sort by metric, then stably by owner.
    order = metric.argsort(descending=True, stable=True)
    order = order[owner[order].argsort(stable=True)]
    counts = torch.bincount(owner, minlength=n_objects)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(order), device=order.device) - starts[owner[order]]
    keep = order[rank < options.topk]

    # An anchor that several ground truths chose goes to the one that it overlaps most.
    keep = keep[iou[keep].argsort(descending=True, stable=True)]
    place = image[keep] * predictions.centres.shape[0] + anchor[keep]
    place, by_place = place.sort(stable=True)
    is_first = torch.ones_like(place, dtype=torch.bool)
    is_first[1:] = place[1:] != place[:-1]
    keep = keep[by_place[is_first]]

    best_metric = torch.zeros(n_objects, device=metric.device, dtype=metric.dtype)
    best_iou = best_metric.clone()
    best_metric.scatter_reduce_(0, owner[keep], metric[keep], "amax")
    best_iou.scatter_reduce_(0, owner[keep], iou[keep], "amax")
    scale = best_iou[owner[keep]] / best_metric[owner[keep]].clamp(min=1e-30)
    return Assignment(image[keep], anchor[keep], truth[keep], metric[keep] * scale)
