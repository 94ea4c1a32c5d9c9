"""The second stage: boxes and classes of the proposals, and a mask for each detection."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from segcore.models.maskrcnn.backbone import CHANNELS
from segcore.models.maskrcnn.geometry import Frame, clip_boxes, decode_boxes, is_large
from segcore.models.maskrcnn.layers import Norm, conv_norm
from segcore.models.nms import suppress

BOX_BINS = 7  # along each side of a region, for boxes and classes
MASK_BINS = 14  # the same for masks
MASK_SIDE = 28  # samples of a mask along each side of its box
MIN_SIDE = 1e-2  # input pixels
_HIDDEN = 1024  # channels
_DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of `decode_boxes`


class Thresholds(NamedTuple):
    """What becomes a detection.

    Attributes:
        conf: The score must be greater than this.
        iou: A box is dropped if it overlaps a better one of its class by more than this.
        max_det: Maximum number of detections of one image.
    """

    conf: float = 0.05
    iou: float = 0.5
    max_det: int = 100


class RegionDetections(NamedTuple):
    """Detections of one image, best score first.

    Attributes:
        boxes: (N, 4) on the resized image, clipped to it.
        scores: (N,) float32.
        labels: (N,) int64; 0 is the background and does not occur.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class TwoLayerHead(nn.Module):
    """Box head of the first layout: two fully connected layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc6 = nn.Linear(CHANNELS * BOX_BINS**2, _HIDDEN)
        self.fc7 = nn.Linear(_HIDDEN, _HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 256, 7, 7) -> (N, 1024)."""
        return self.fc7(self.fc6(x.flatten(1)).relu_()).relu_()


def conv_box_head(norm: Norm) -> nn.Sequential:
    """Box head of the second layout: (N, 256, 7, 7) -> (N, 1024)."""
    convs = (conv_norm(CHANNELS, CHANNELS, 3, norm, relu=True) for _ in range(4))
    fc = nn.Linear(CHANNELS * BOX_BINS**2, _HIDDEN)
    return nn.Sequential(*convs, nn.Flatten(), fc, nn.ReLU(inplace=True))


def mask_head(norm: Norm | None) -> nn.Sequential:
    """Four convolutions that keep the shape (N, 256, 14, 14). The second layout has norms."""
    return nn.Sequential(*(conv_norm(CHANNELS, CHANNELS, 3, norm, relu=True) for _ in range(4)))


class BoxPredictor(nn.Module):
    """Class logits and box deltas for each class, the background first."""

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(_HIDDEN, num_labels)
        self.bbox_pred = nn.Linear(_HIDDEN, 4 * num_labels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 1024) -> logits (N, L) and deltas (N, L, 4)."""
        return self.cls_score(x), self.bbox_pred(x).unflatten(1, (-1, 4))


class MaskPredictor(nn.Module):
    """Mask logits for each class at twice the resolution."""

    def __init__(self, hidden: int, num_labels: int) -> None:
        super().__init__()
        self.conv5_mask = nn.ConvTranspose2d(CHANNELS, hidden, 2, 2)
        self.mask_fcn_logits = nn.Conv2d(hidden, num_labels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 256, 14, 14) -> (N, L, 28, 28)."""
        return self.mask_fcn_logits(self.conv5_mask(x).relu_())


def select_detections(
    logits: Tensor, deltas: Tensor, proposals: Tensor, frame: Frame, thresholds: Thresholds
) -> RegionDetections:
    """Detections among all boxes of all classes.

    Each class is suppressed on its own, with its true coordinates (shifting classes apart, as is
    often done, rounds the coordinates of later classes). If scores are equal, the lower proposal
    and then the lower label comes first.

    Args:
        logits: (P, L) class logits, the background first.
        deltas: (P, L, 4) box deltas.
        proposals: (P, 4) boxes on the resized image.
        frame: Sizes of the image.
        thresholds: What becomes a detection.
    """
    probabilities = logits.softmax(dim=1)
    proposal, label = (probabilities[:, 1:] > thresholds.conf).nonzero(as_tuple=True)
    label = label + 1
    boxes = decode_boxes(deltas[proposal, label, None], proposals[proposal], _DELTA_WEIGHTS)[:, 0]
    boxes, scores = clip_boxes(boxes, frame), probabilities[proposal, label]
    order = torch.sort(scores, descending=True, stable=True).indices
    order = order[is_large(boxes[order], MIN_SIDE)]
    boxes, scores, labels = boxes[order], scores[order], label[order]
    kept = _suppress_by_label(boxes, labels, thresholds.iou)[: thresholds.max_det]
    return RegionDetections(boxes[kept], scores[kept], labels[kept])


def _suppress_by_label(boxes: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Boxes (N, 4), best first -> indices of those that are kept, best first."""
    if labels.numel() == 0:
        return labels
    grouped = torch.sort(labels, stable=True).indices
    _, row, counts = torch.unique_consecutive(
        labels[grouped], return_inverse=True, return_counts=True
    )
    starts = counts.cumsum(0) - counts
    column = torch.arange(labels.numel(), device=labels.device) - starts[row]
    max_count = int(counts.max())
    padded = boxes.new_zeros((counts.numel(), max_count, 4))
    valid = torch.zeros((counts.numel(), max_count), dtype=torch.bool, device=labels.device)
    padded[row, column] = boxes[grouped]
    valid[row, column] = True
    # No early end: the best detections of all classes together may be of any class.
    kept = suppress(padded, valid, iou, max_det=max_count)
    return grouped[kept[row, column]].sort().values
