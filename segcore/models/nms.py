"""Greedy non-maximum suppression, batched, exact and deterministic, in plain PyTorch.

The result is that of the textbook loop (take the best box, drop what overlaps it, repeat), found in
blocks: inside a block of boxes the greedy decision is the fixed point of "kept = overlapped by no
kept box before it", reached in as many rounds as the longest chain of suppressions (Zheng et al.,
Cluster-NMS, arXiv:2005.03572, section 3.3). No wall-clock limit, no dependence on the other images.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MAX_CANDIDATES = 30_000  # boxes of one image that take part, best scores first
# Boxes of different classes are shifted this far apart and so never overlap (input pixels; boxes
# reach at most a few hundred pixels beyond the input). The value is that of the published models:
# it decides how the shifted coordinates are rounded.
CLASS_OFFSET = 7680.0
_BLOCK_ELEMENTS = 1 << 22  # bounds the overlap matrix of a block: 16 MiB of float32


class Detections(NamedTuple):
    """What is kept of one image, best score first; ties go to the lower anchor.

    Attributes:
        anchors: (N,) int64 indices into the anchors.
        scores: (N,) float32.
        classes: (N,) int64.
    """

    anchors: Tensor
    scores: Tensor
    classes: Tensor


def detect(
    boxes: Tensor,
    class_logits: Tensor,
    conf: float,
    iou: float,
    max_det: int,
    max_candidates: int = MAX_CANDIDATES,
    class_offset: float = CLASS_OFFSET,
) -> list[Detections]:
    """Best class of each anchor (by logit), score threshold, NMS for each class of each image.

    Args:
        boxes: (B, A, 4) x1 y1 x2 y2 in input pixels.
        class_logits: (B, A, C) before the sigmoid.
        conf: Anchors take part when their score is greater than this.
        iou: A box is dropped when it overlaps a better one of its class by more than this.
        max_det: Detections kept for one image.
        max_candidates: Anchors that take part, at most.
        class_offset: Distance between classes; more than any box coordinate.

    Returns:
        One `Detections` for each image, on the device of the inputs.
    """
    logits, classes = class_logits.float().max(dim=2)
    scores = logits.sigmoid()
    scores = torch.where(scores > conf, scores, -torch.inf)  # NaN never passes
    counts = torch.isfinite(scores).sum(dim=1)
    most = min(int(counts.max()), max_candidates)
    ordered, anchors = torch.sort(scores, dim=1, descending=True, stable=True)
    ordered, anchors = ordered[:, :most], anchors[:, :most]
    classes = classes.gather(1, anchors)
    candidates = boxes.float().gather(1, anchors.unsqueeze(-1).expand(-1, -1, 4))
    candidates = candidates + classes.unsqueeze(-1) * class_offset
    kept = suppress(candidates, torch.isfinite(ordered), iou, max_det)
    return [
        Detections(a[k][:max_det], s[k][:max_det], c[k][:max_det])
        for a, s, c, k in zip(anchors, ordered, classes, kept, strict=True)
    ]


def suppress(boxes: Tensor, valid: Tensor, iou: float, max_det: int) -> Tensor:
    """Which boxes a greedy NMS keeps.

    Args:
        boxes: (B, K, 4) x1 y1 x2 y2, best score first.
        valid: (B, K) bool; the others neither stay nor suppress.
        iou: Overlap over which the later box is dropped.
        max_det: The search ends once every image has so many; later boxes count as dropped, and
            an image may have a few more than this when it ends.

    Returns:
        (B, K) bool.
    """
    alive = valid.clone()
    batch, total = valid.shape
    start = 0
    while start < total:
        size = max(16, min(256, _BLOCK_ELEMENTS // max(1, batch * (total - start))))
        stop = min(start + size, total)
        block = boxes[:, start:stop]
        alive[:, start:stop] = _greedy(_overlaps(block, block, iou), alive[:, start:stop])
        if int(alive[:, :stop].sum(dim=1).min()) >= max_det:
            alive[:, stop:] = False
            break
        if stop < total:
            hit = _overlaps(block, boxes[:, stop:], iou) & alive[:, start:stop, None]
            alive[:, stop:] &= ~hit.any(dim=1)
        start = stop
    return alive


def _greedy(overlaps: Tensor, alive: Tensor) -> Tensor:
    """Greedy decision inside a block: overlaps (B, N, N), alive (B, N) -> kept (B, N)."""
    suppresses = overlaps.triu(diagonal=1)
    kept = alive
    while True:
        new = alive & ~(suppresses & kept.unsqueeze(-1)).any(dim=1)
        if torch.equal(new, kept):
            return kept
        kept = new


def _overlaps(first: Tensor, second: Tensor, iou: float) -> Tensor:
    """(B, N, 4), (B, M, 4) -> (B, N, M) bool: intersection over union greater than `iou`."""
    a, b = first.unsqueeze(2), second.unsqueeze(1)
    width = (torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])).clamp(min=0)
    height = (torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])).clamp(
        min=0
    )
    inter = width * height
    area_a = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    area_b = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    return inter / (area_a + area_b - inter) > iou
