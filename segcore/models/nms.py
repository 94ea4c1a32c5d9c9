"""Greedy non-maximum suppression, batched, exact and deterministic, in plain PyTorch.

The result is that of the textbook loop (take the best box, drop what overlaps it, repeat), found in
blocks: inside a block of boxes the greedy decision is the fixed point of "kept = overlapped by no
kept box before it", reached in as many rounds as the longest chain of suppressions (Zheng et al.,
Cluster-NMS, arXiv:2005.03572, section 3.3). No wall-clock limit, no dependence on the other images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Boxes = Callable[[Tensor], Tensor]  # anchors (B, K) int64 -> their boxes (B, K, 4) x1 y1 x2 y2
MAX_CANDIDATES = 30_000  # boxes of one image that take part, best scores first
# Boxes of different classes are shifted this far apart and so never overlap (input pixels; boxes
# reach at most a few hundred pixels beyond the input). The value is that of the published models:
# it decides how the shifted coordinates are rounded.
CLASS_OFFSET = 7680.0
_BLOCK_ELEMENTS = 1 << 22  # bounds the overlap matrix of a block: 16 MiB of float32
# On a device the host waits for each block and for each look at its result: larger blocks, and
# several rounds between looks, as rounds behind the last change nothing.
_DEVICE_BLOCK_ELEMENTS = 1 << 24
_DEVICE_ROUNDS = 8


class Detections(NamedTuple):
    """What is kept of one image, best score first; ties go to the lower anchor.

    Attributes:
        anchors: (N,) int64 indices into the anchors.
        scores: (N,) float32.
        classes: (N,) int64.
        boxes: (N, 4) float32 x1 y1 x2 y2 in input pixels.
    """

    anchors: Tensor
    scores: Tensor
    classes: Tensor
    boxes: Tensor


class BatchDetections(NamedTuple):
    """What is kept of each image of a batch, in rows as long as the longest may be (D).

    Attributes:
        anchors: (B, D) int64 as in `Detections`; any anchor in places that are not taken.
        scores: (B, D) float32; -inf in places that are not taken, which are the last of a row.
        classes: (B, D) int64.
        boxes: (B, D, 4) float32.
    """

    anchors: Tensor
    scores: Tensor
    classes: Tensor
    boxes: Tensor


def detect(
    boxes: Boxes,
    class_logits: Tensor,
    conf: float,
    iou: float,
    max_det: int,
    max_candidates: int = MAX_CANDIDATES,
    class_offset: float = CLASS_OFFSET,
) -> list[Detections]:
    """Best class of each anchor (by logit), score threshold, NMS for each class of each image.

    Args:
        boxes: Gives the boxes of anchors in input pixels; asked only for those that take part.
        class_logits: (B, A, C) before the sigmoid.
        conf: Anchors take part when their score is greater than this.
        iou: A box is dropped when it overlaps a better one of its class by more than this.
        max_det: Detections kept for one image.
        max_candidates: Anchors that take part, at most.
        class_offset: Distance between classes; more than any box coordinate.

    Returns:
        One `Detections` for each image, on the device of the inputs.
    """
    found = _candidates(boxes, class_logits, conf, max_candidates)
    kept = _kept(found, iou, max_det, class_offset)
    return [
        Detections(*(values[k][:max_det] for values in image))
        for *image, k in zip(*found, kept, strict=True)
    ]


def detect_batch(
    boxes: Boxes,
    class_logits: Tensor,
    conf: float,
    iou: float,
    max_det: int,
    max_candidates: int = MAX_CANDIDATES,
    class_offset: float = CLASS_OFFSET,
) -> BatchDetections:
    """The same as `detect`, bit for bit, without a look at each image.

    The host waits for the largest number of candidates, and then for each block of `suppress`:
    twice in all for a usual batch. D is `max_det` or that number, if it is less.
    """
    found = _candidates(boxes, class_logits, conf, max_candidates)
    batch, most = found.scores.shape
    size = min(most, max_det)
    if size == 0:
        return BatchDetections(*(tensor[:, :0] for tensor in found))
    kept = _kept(found, iou, max_det, class_offset)
    wanted = torch.arange(1, size + 1, device=kept.device).repeat(batch, 1)
    at = torch.searchsorted(kept.cumsum(1), wanted)  # `most` behind the last
    place = at.clamp(max=most - 1)
    return BatchDetections(
        found.anchors.gather(1, place),
        torch.where(at < most, found.scores.gather(1, place), -torch.inf),
        found.classes.gather(1, place),
        found.boxes.gather(1, place.unsqueeze(-1).expand(-1, -1, 4)),
    )


def _candidates(
    boxes: Boxes, class_logits: Tensor, conf: float, max_candidates: int
) -> BatchDetections:
    """All that take part, before suppression."""
    scores = class_logits.float().amax(dim=2).sigmoid()
    scores = torch.where(scores > conf, scores, -torch.inf)  # NaN never passes
    counts = torch.isfinite(scores).sum(dim=1)
    most = min(int(counts.max()), max_candidates)
    ordered, anchors = torch.sort(scores, dim=1, descending=True, stable=True)
    ordered, anchors = ordered[:, :most], anchors[:, :most]
    rows = anchors.unsqueeze(-1).expand(-1, -1, class_logits.shape[2])
    classes = class_logits.gather(1, rows).float().max(dim=2).indices
    return BatchDetections(anchors, ordered, classes, boxes(anchors).float())


def _kept(found: BatchDetections, iou: float, max_det: int, class_offset: float) -> Tensor:
    """(B, K) bool: `suppress` with the classes moved apart."""
    apart = found.boxes + found.classes.unsqueeze(-1) * class_offset
    return suppress(apart, torch.isfinite(found.scores), iou, max_det)


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
    on_cpu = valid.device.type == "cpu"
    elements, largest = (_BLOCK_ELEMENTS, 256) if on_cpu else (_DEVICE_BLOCK_ELEMENTS, 1024)
    start = 0
    while start < total:
        size = max(16, min(largest, elements // max(1, batch * (total - start))))
        stop = min(start + size, total)
        block = boxes[:, start:stop]
        alive[:, start:stop] = _greedy(
            _overlaps(block, block, iou), alive[:, start:stop], 1 if on_cpu else _DEVICE_ROUNDS
        )
        if stop == total:
            break
        if int(alive[:, :stop].sum(dim=1).min()) >= max_det:
            alive[:, stop:] = False
            break
        hit = _overlaps(block, boxes[:, stop:], iou) & alive[:, start:stop, None]
        alive[:, stop:] &= ~hit.any(dim=1)
        start = stop
    return alive


def _greedy(overlaps: Tensor, alive: Tensor, rounds: int) -> Tensor:
    """Greedy decision inside a block: overlaps (B, N, N), alive (B, N) -> kept (B, N).

    Looks whether it is done after so many `rounds`.
    """
    suppresses = overlaps.triu(diagonal=1)
    kept = alive
    while True:
        for _ in range(rounds):
            before = kept
            kept = alive & ~(suppresses & kept.unsqueeze(-1)).any(dim=1)
        if torch.equal(kept, before):
            return kept


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
