"""Task-aligned assignment of ground truth to anchors (Feng et al., TOOD, arXiv:2108.07755)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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
    both = size[:, 0] * size[:, 1]
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    return both / (area_a + area_b - both).clamp(min=1e-9)


def candidates(centres: Tensor, truth_boxes: Tensor, valid: Tensor, smallest: float) -> Tensor:
    """Pairs of anchors whose centre lies in a box -> (P, 3) of image, truth, anchor.

    A box narrower than `smallest` pixels (the finest stride) is taken as that wide here, so that
    every object, however small, has at least one candidate.
    """
    middle = (truth_boxes[..., :2] + truth_boxes[..., 2:]) / 2
    half = ((truth_boxes[..., 2:] - truth_boxes[..., :2]) / 2).clamp(min=smallest / 2)
    low, high = (middle - half).unsqueeze(2), (middle + half).unsqueeze(2)
    x, y = centres[:, 0], centres[:, 1]
    inside = (x >= low[..., 0]) & (x <= high[..., 0]) & (y >= low[..., 1]) & (y <= high[..., 1])
    return (inside & valid.unsqueeze(2)).nonzero()


@torch.no_grad()
def assign(
    scores: Tensor,
    boxes: Tensor,
    centres: Tensor,
    truth_boxes: Tensor,
    truth_classes: Tensor,
    valid: Tensor,
    *,
    topk: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
    smallest: float = 8.0,
) -> Assignment:
    """Choose for each ground truth the anchors that already classify and localise it best.

    Args:
        scores: (B, A, C) class probabilities.
        boxes: (B, A, 4) predicted x1 y1 x2 y2, input pixels.
        centres: (A, 2) anchor centres, input pixels.
        truth_boxes: (B, G, 4) x1 y1 x2 y2, input pixels; padded.
        truth_classes: (B, G) int64.
        valid: (B, G) bool, False for padding.
        topk: Anchors kept for each ground truth.
        alpha, beta: Exponents of score and IoU in the alignment metric.
        smallest: See `candidates`.
    """
    image, truth, anchor = candidates(centres, truth_boxes, valid, smallest).unbind(1)
    iou = paired_iou(boxes[image, anchor], truth_boxes[image, truth])
    score = scores[image, anchor, truth_classes[image, truth]]
    metric = score.pow(alpha) * iou.pow(beta)

    slots = truth_boxes.shape[1]
    owner = image * slots + truth
    # Rank within each ground truth: sort by metric, then stably by owner.
    order = metric.argsort(descending=True, stable=True)
    order = order[owner[order].argsort(stable=True)]
    counts = torch.bincount(owner, minlength=valid.numel())
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(order), device=order.device) - starts[owner[order]]
    keep = order[rank < topk]

    # An anchor wanted by several goes to the one it overlaps most.
    keep = keep[iou[keep].argsort(descending=True, stable=True)]
    place = image[keep] * centres.shape[0] + anchor[keep]
    place, by_place = place.sort(stable=True)
    first = torch.ones_like(place, dtype=torch.bool)
    first[1:] = place[1:] != place[:-1]
    keep = keep[by_place[first]]

    best_metric = torch.zeros(valid.numel(), device=metric.device, dtype=metric.dtype)
    best_iou = best_metric.clone()
    best_metric.scatter_reduce_(0, owner[keep], metric[keep], "amax")
    best_iou.scatter_reduce_(0, owner[keep], iou[keep], "amax")
    scale = best_iou[owner[keep]] / best_metric[owner[keep]].clamp(min=1e-30)
    return Assignment(image[keep], anchor[keep], truth[keep], metric[keep] * scale)
