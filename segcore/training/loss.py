"""The loss of YOLO11-seg: classes, boxes, distance distributions, masks.

Sources: soft class targets (TOOD, arXiv:2108.07755), complete IoU (Zheng et al.,
arXiv:1911.08287), distribution focal loss (arXiv:2006.04388), masks as combinations of prototypes
(YOLACT, arXiv:1904.02689), soft dice (Milletari et al., V-Net, arXiv:1606.04797).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segcore.models.yolo.network import (
    PROTO_STRIDE,
    REG_MAX,
    HeadOutputs,
    anchor_grid,
    decode_boxes,
    expected_distances,
)
from segcore.training.assign import Assignment, assign, paired_iou
from segcore.training.config import LossWeights


@dataclass(frozen=True)
class Targets:
    """Ground truth of a batch.

    Attributes:
        boxes: (B, G, 4) float32 x1 y1 x2 y2 in input pixels, padded.
        classes: (B, G) int64 class indices.
        valid: (B, G) bool.
        labels: (B, H, W) int32; pixel value g + 1 belongs to ground truth g, 0 to none.
    """

    boxes: Tensor
    classes: Tensor
    valid: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Targets:
        """The same on another device."""
        moved = [t.to(device, non_blocking=True) for t in vars(self).values()]
        return Targets(*moved)


def complete_iou_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """1 - CIoU of boxes (P, 4), pair by pair -> (P,)."""
    iou = paired_iou(predicted, truth)
    size_p = (predicted[:, 2:] - predicted[:, :2]).clamp(min=1e-6)
    size_t = (truth[:, 2:] - truth[:, :2]).clamp(min=1e-6)
    hull = torch.maximum(predicted[:, 2:], truth[:, 2:]) - torch.minimum(
        predicted[:, :2], truth[:, :2]
    )
    offset = (predicted[:, :2] + predicted[:, 2:] - truth[:, :2] - truth[:, 2:]) / 2
    distance = offset.square().sum(1) / hull.square().sum(1).clamp(min=1e-9)
    angle = torch.atan(size_t[:, 0] / size_t[:, 1]) - torch.atan(size_p[:, 0] / size_p[:, 1])
    shape = (4 / math.pi**2) * angle.square()
    with torch.no_grad():
        trade_off = shape / (1 - iou + shape).clamp(min=1e-9)
    return 1 - iou + distance + trade_off * shape


def distribution_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Cross entropy to the two bins around each distance: (P, 4 * bins), (P, 4) -> (P,)."""
    target = distances.clamp(0, REG_MAX - 1 - 1e-3)
    low = target.floor()
    weight_high = target - low
    log_p = logits.unflatten(-1, (4, REG_MAX)).log_softmax(-1)
    at_low = log_p.gather(-1, low.long().unsqueeze(-1)).squeeze(-1)
    at_high = log_p.gather(-1, low.long().unsqueeze(-1) + 1).squeeze(-1)
    return -(at_low * (1 - weight_high) + at_high * weight_high).mean(-1)


def coverage(labels: Tensor, truth: Tensor) -> Tensor:
    """Share of each prototype cell that an object covers.

    (H, W) labels and (P,) indices of ground truth -> (P, H/4, W/4) float32 in [0, 1]. A share
    rather than a nearest pixel, so that logit 0 falls where half of the cell is covered.
    """
    h, w = labels.shape
    cells = labels.view(h // PROTO_STRIDE, PROTO_STRIDE, w // PROTO_STRIDE, PROTO_STRIDE)
    cells = cells.permute(0, 2, 1, 3).flatten(2)
    return (cells.unsqueeze(0) == (truth + 1).view(-1, 1, 1, 1)).float().mean(-1)


class SegmentationLoss:
    """Callable: head outputs and targets -> scalar loss and its parts."""

    def __init__(self, weights: LossWeights) -> None:
        self.weights = weights

    def __call__(self, heads: HeadOutputs, targets: Targets) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch, summed over the batch and divided by the sum of soft targets."""
        distances, logits = heads.distances.float(), heads.class_logits.float()
        height, width = targets.labels.shape[1:]
        centres, strides = anchor_grid(height, width, distances)
        boxes = decode_boxes(expected_distances(distances), centres, strides)
        match = assign(
            logits.detach().sigmoid(),
            boxes.detach(),
            centres,
            targets.boxes,
            targets.classes,
            targets.valid,
        )
        soft = torch.zeros_like(logits)
        classes = targets.classes[match.image, match.truth]
        soft[match.image, match.anchor, classes] = match.quality
        total_quality = soft.sum().clamp(min=1.0)

        truth = targets.boxes[match.image, match.truth]
        stride = strides[match.anchor]
        points = centres[match.anchor] / stride
        sides = torch.cat((points - truth[:, :2] / stride, truth[:, 2:] / stride - points), 1)
        weight = match.quality / total_quality
        parts = {
            "cls": F.binary_cross_entropy_with_logits(logits, soft, reduction="sum")
            / total_quality,
            "box": (complete_iou_loss(boxes[match.image, match.anchor], truth) * weight).sum(),
            "dfl": (distribution_loss(distances[match.image, match.anchor], sides) * weight).sum(),
            "mask": self._masks(heads, targets, match),
        }
        w = self.weights
        loss = (
            w.cls * parts["cls"]
            + w.box * parts["box"]
            + w.dfl * parts["dfl"]
            + w.mask * parts["mask"]
        )
        return loss, {name: float(value.detach()) for name, value in parts.items()}

    def _masks(self, heads: HeadOutputs, targets: Targets, match: Assignment) -> Tensor:
        """Cross entropy and dice inside the box, over a bounded sample of positives."""
        losses = []
        for b in range(len(targets.labels)):
            mine = (match.image == b).nonzero().squeeze(1)
            if len(mine) == 0:
                continue
            if len(mine) > self.weights.masks_per_image:
                pick = torch.randperm(len(mine), device=mine.device)
                mine = mine[pick[: self.weights.masks_per_image]]
            coefficients = heads.coefficients[b, match.anchor[mine]].float()
            prototypes = heads.prototypes[b].float()
            logits = torch.einsum("pc,chw->phw", coefficients, prototypes)
            target = coverage(targets.labels[b], match.truth[mine])
            losses.append(_mask_loss(logits, target, targets.boxes[b, match.truth[mine]]))
        if not losses:
            return heads.prototypes.sum() * 0.0
        return torch.cat(losses).mean()


def _mask_loss(logits: Tensor, target: Tensor, boxes: Tensor) -> Tensor:
    """(P, h, w) logits and targets, boxes (P, 4) in input pixels -> (P,)."""
    _, h, w = logits.shape
    x = (torch.arange(w, device=logits.device) + 0.5) * PROTO_STRIDE
    y = (torch.arange(h, device=logits.device) + 0.5) * PROTO_STRIDE
    # One cell of margin, since the mask is cut at the predicted box, not at the true one.
    x1, y1, x2, y2 = (boxes + boxes.new_tensor([-1, -1, 1, 1]) * PROTO_STRIDE).unbind(1)
    columns = (x >= x1[:, None]) & (x <= x2[:, None])
    rows = (y >= y1[:, None]) & (y <= y2[:, None])
    inside = (rows[:, :, None] & columns[:, None, :]).float()
    area = inside.sum((1, 2)).clamp(min=1.0)
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    bce = (bce * inside).sum((1, 2)) / area
    p, t = logits.sigmoid() * inside, target * inside
    dice = 1 - (2 * (p * t).sum((1, 2)) + 1) / ((p * p).sum((1, 2)) + (t * t).sum((1, 2)) + 1)
    return bce + dice
