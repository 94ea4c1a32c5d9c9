"""The loss of YOLO11-seg: classes, boxes, distance distributions, masks.

Sources: soft class targets (TOOD, arXiv:2108.07755), complete IoU (Zheng et al.,
arXiv:1911.08287), distribution focal loss (arXiv:2006.04388), masks as combinations of prototypes
(YOLACT, arXiv:1904.02689), soft dice (Milletari et al., V-Net, arXiv:1606.04797).
"""

from __future__ import annotations

import math

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
from segcore.training.assign import Assignment, Predictions, assign, paired_iou
from segcore.training.config import LossWeights
from segcore.training.targets import Targets


def complete_iou_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """1 - CIoU of boxes (P, 4), pair by pair -> (P,)."""
    iou = paired_iou(predicted, truth)
    predicted_size = (predicted[:, 2:] - predicted[:, :2]).clamp(min=1e-6)
    truth_size = (truth[:, 2:] - truth[:, :2]).clamp(min=1e-6)
    hull = torch.maximum(predicted[:, 2:], truth[:, 2:]) - torch.minimum(
        predicted[:, :2], truth[:, :2]
    )
    offset = (predicted[:, :2] + predicted[:, 2:] - truth[:, :2] - truth[:, 2:]) / 2
    distance = offset.square().sum(1) / hull.square().sum(1).clamp(min=1e-9)
    truth_angle = torch.atan(truth_size[:, 0] / truth_size[:, 1])
    predicted_angle = torch.atan(predicted_size[:, 0] / predicted_size[:, 1])
    aspect = (4 / math.pi**2) * (truth_angle - predicted_angle).square()
    with torch.no_grad():
        trade_off = aspect / (1 - iou + aspect).clamp(min=1e-9)
    return 1 - iou + distance + trade_off * aspect


def distribution_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Cross entropy with the two bins around each distance: (P, 4 * bins), (P, 4) -> (P,)."""
    target = distances.clamp(0, REG_MAX - 1 - 1e-3)
    low = target.floor()
    weight_high = target - low
    log_p = logits.unflatten(-1, (4, REG_MAX)).log_softmax(-1)
    at_low = log_p.gather(-1, low.long().unsqueeze(-1)).squeeze(-1)
    at_high = log_p.gather(-1, low.long().unsqueeze(-1) + 1).squeeze(-1)
    return -(at_low * (1 - weight_high) + at_high * weight_high).mean(-1)


def coverage(labels: Tensor, truth: Tensor) -> Tensor:
    """Share of each prototype cell that an object covers.

    A share rather than the nearest pixel, so that the logit is 0 where half of the cell is covered.

    Args:
        labels: (H, W) as in `Targets`.
        truth: (P,) indices of objects.

    Returns:
        (P, H/4, W/4) float32 in [0, 1].
    """
    h, w = labels.shape
    cells = labels.view(h // PROTO_STRIDE, PROTO_STRIDE, w // PROTO_STRIDE, PROTO_STRIDE)
    cells = cells.permute(0, 2, 1, 3).flatten(2)
    return (cells.unsqueeze(0) == (truth + 1).view(-1, 1, 1, 1)).float().mean(-1)


class SegmentationLoss:
    """Head outputs and targets -> scalar loss and its parts."""

    def __init__(self, weights: LossWeights) -> None:
        self.weights = weights

    def __call__(self, heads: HeadOutputs, targets: Targets) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch, summed over the batch and divided by the sum of soft targets."""
        distances, logits = heads.distances.float(), heads.class_logits.float()
        height, width = targets.labels.shape[1:]
        centres, strides = anchor_grid(height, width, distances)
        boxes = decode_boxes(expected_distances(distances), centres, strides)
        predictions = Predictions(logits.detach().sigmoid(), boxes.detach(), centres)
        match = assign(predictions, targets.truth)
        soft_targets = torch.zeros_like(logits)
        classes = targets.truth.classes[match.image, match.truth]
        soft_targets[match.image, match.anchor, classes] = match.quality
        total_quality = soft_targets.sum().clamp(min=1.0)

        truth_boxes = targets.truth.boxes[match.image, match.truth]
        stride = strides[match.anchor]
        points = centres[match.anchor] / stride
        left_top = points - truth_boxes[:, :2] / stride
        right_bottom = truth_boxes[:, 2:] / stride - points
        weight = match.quality / total_quality
        cls_loss = F.binary_cross_entropy_with_logits(logits, soft_targets, reduction="sum")
        box_loss = complete_iou_loss(boxes[match.image, match.anchor], truth_boxes)
        dfl_loss = distribution_loss(
            distances[match.image, match.anchor], torch.cat((left_top, right_bottom), 1)
        )
        losses = {
            "cls": cls_loss / total_quality,
            "box": (box_loss * weight).sum(),
            "dfl": (dfl_loss * weight).sum(),
            "mask": self._mask_loss(heads, targets, match),
        }
        loss = (
            self.weights.cls * losses["cls"]
            + self.weights.box * losses["box"]
            + self.weights.dfl * losses["dfl"]
            + self.weights.mask * losses["mask"]
        )
        return loss, {name: float(value.detach()) for name, value in losses.items()}

    def _mask_loss(self, heads: HeadOutputs, targets: Targets, match: Assignment) -> Tensor:
        """Cross entropy and dice inside the box, over a bounded sample of positives."""
        losses = []
        for b in range(len(targets.labels)):
            positives = (match.image == b).nonzero().squeeze(1)
            if len(positives) == 0:
                continue
            if len(positives) > self.weights.masks_per_image:
                order = torch.randperm(len(positives), device=positives.device)
                positives = positives[order[: self.weights.masks_per_image]]
            anchor, truth = match.anchor[positives], match.truth[positives]
            coefficients = heads.coefficients[b, anchor].float()
            prototypes = heads.prototypes[b].float()
            logits = torch.einsum("pc,chw->phw", coefficients, prototypes)
            target = coverage(targets.labels[b], truth)
            losses.append(mask_loss(logits, target, targets.truth.boxes[b, truth]))
        if not losses:
            return heads.prototypes.sum() * 0.0
        return torch.cat(losses).mean()


def mask_loss(logits: Tensor, target: Tensor, boxes: Tensor) -> Tensor:
    """Cross entropy and dice of masks inside their boxes, one by one -> (P,).

    Args:
        logits, target: (P, h, w); the target is `coverage`.
        boxes: (P, 4) x1 y1 x2 y2, input pixels.
    """
    _, h, w = logits.shape
    x = (torch.arange(w, device=logits.device) + 0.5) * PROTO_STRIDE
    y = (torch.arange(h, device=logits.device) + 0.5) * PROTO_STRIDE
    # One cell of margin, because the mask is cut at the predicted box, not at the true one.
    x1, y1, x2, y2 = (boxes + boxes.new_tensor([-1, -1, 1, 1]) * PROTO_STRIDE).unbind(1)
    columns = (x >= x1[:, None]) & (x <= x2[:, None])
    rows = (y >= y1[:, None]) & (y <= y2[:, None])
    inside = (rows[:, :, None] & columns[:, None, :]).float()
    area = inside.sum((1, 2)).clamp(min=1.0)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    cross_entropy = (cross_entropy * inside).sum((1, 2)) / area
    p, t = logits.sigmoid() * inside, target * inside
    dice = 1 - (2 * (p * t).sum((1, 2)) + 1) / ((p * p).sum((1, 2)) + (t * t).sum((1, 2)) + 1)
    return cross_entropy + dice
