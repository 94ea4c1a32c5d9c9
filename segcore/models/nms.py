"""Greedy non-maximum suppression, batched, exact and deterministic, in plain PyTorch.

The result is that of the textbook loop (take the best box, drop what overlaps it, repeat), computed
in blocks: inside a block of boxes the greedy decision is the fixed point of "kept = overlapped by
no kept box before it", reached in as many rounds as the longest chain of suppressions (Zheng et
al., Cluster-NMS, arXiv:2005.03572, section 3.3). There is no time limit, and the result for an
image does not depend on the other images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from segcore.errors import NotFinite

BoxesOfAnchors = Callable[[Tensor], Tensor]  # (B, K) int64 -> (B, K, 4) x1 y1 x2 y2
# Boxes, counts, iou, row length -> columns, counts; see `segcore.models.triton_nms.find_kept`.
FindKept = Callable[[Tensor, Tensor, float, int], tuple[Tensor, Tensor]]
MAX_CANDIDATES = 30_000  # boxes of one image that take part, those with the best scores
# Boxes of different classes are shifted this far apart, so that they never overlap (input pixels;
# boxes extend at most a few hundred pixels beyond the input). The value is that of the published
# models: it decides how the shifted coordinates are rounded.
CLASS_OFFSET = 7680.0
_BLOCK_ELEMENTS = 1 << 22  # bounds the overlap matrix of a block: 16 MiB of float32
_MIN_BLOCK, _MAX_BLOCK = 16, 256  # boxes
# On a device the host waits for each block and each time it checks for convergence: so blocks are
# larger, and there are several rounds between checks (rounds after convergence change nothing).
_DEVICE_BLOCK_ELEMENTS = 1 << 24
_DEVICE_MAX_BLOCK = 1024  # boxes
_DEVICE_ROUNDS = 8  # between checks


class Detections(NamedTuple):
    """Detections of one image, best score first; ties go to the lower anchor.

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
    """Detections of each image of a batch, padded to rows of one length (D).

    Attributes:
        anchors: (B, D) int64 as in `Detections`; arbitrary in the padding.
        scores: (B, D) float32; -inf in the padding, which is at the end of a row.
        classes: (B, D) int64.
        boxes: (B, D, 4) float32.
    """

    anchors: Tensor
    scores: Tensor
    classes: Tensor
    boxes: Tensor


def detect(
    boxes: BoxesOfAnchors,
    class_logits: Tensor,
    conf: float,
    iou: float,
    max_det: int,
    max_candidates: int = MAX_CANDIDATES,
    class_offset: float = CLASS_OFFSET,
) -> list[Detections]:
    """Best class of each anchor (by logit), score threshold, NMS for each class of each image.

    Args:
        boxes: Computes the boxes of anchors, in input pixels; called only for candidates.
        class_logits: (B, A, C) before the sigmoid.
        conf: Anchors are candidates if their score is greater than this.
        iou: A box is dropped if it overlaps a better one of its class by more than this.
        max_det: Maximum number of detections of one image.
        max_candidates: Maximum number of candidates of one image.
        class_offset: Shift between classes; greater than any box coordinate.

    Returns:
        One `Detections` for each image, on the device of the inputs.

    Raises:
        NotFinite: Scores are not.
    """
    candidates = _find_candidates(boxes, class_logits, conf, max_candidates)
    kept = _suppress_by_class(candidates, iou, max_det, class_offset)
    return [
        Detections(*(column[image_kept][:max_det] for column in image_columns))
        for *image_columns, image_kept in zip(*candidates, kept, strict=True)
    ]


def detect_batch(
    boxes: BoxesOfAnchors,
    class_logits: Tensor,
    conf: float,
    iou: float,
    max_det: int,
    max_candidates: int = MAX_CANDIDATES,
    class_offset: float = CLASS_OFFSET,
    find_kept: FindKept | None = None,
) -> BatchDetections:
    """The same as `detect`, bit for bit, without synchronizing for each image.

    The host waits for the largest number of candidates, and then for each block of `suppress`:
    twice in total for a usual batch. D is `max_det` or that number, whichever is less.

    Args:
        find_kept: Used in place of `suppress`, where it is given: the host waits once.
    """
    candidates = _find_candidates(boxes, class_logits, conf, max_candidates)
    num_candidates = candidates.scores.shape[1]
    row_length = min(num_candidates, max_det)
    if row_length == 0:
        return BatchDetections(*(tensor[:, :0] for tensor in candidates))
    if find_kept is None:
        kept = _suppress_by_class(candidates, iou, max_det, class_offset)
        columns, kept_counts = _list_kept(kept, row_length)
    else:
        boxes_by_class = _shift_by_class(candidates, class_offset)
        counts = torch.isfinite(candidates.scores).sum(dim=1)
        columns, kept_counts = find_kept(boxes_by_class, counts, iou, row_length)
    is_kept = torch.arange(row_length, device=columns.device) < kept_counts.unsqueeze(1)
    return BatchDetections(
        candidates.anchors.gather(1, columns),
        torch.where(is_kept, candidates.scores.gather(1, columns), -torch.inf),
        candidates.classes.gather(1, columns),
        candidates.boxes.gather(1, columns.unsqueeze(-1).expand(-1, -1, 4)),
    )


def _find_candidates(
    boxes: BoxesOfAnchors, class_logits: Tensor, conf: float, max_candidates: int
) -> BatchDetections:
    """Anchors over the threshold, best score first."""
    best_logits = class_logits.float().amax(dim=2)
    scores = best_logits.sigmoid()
    scores = torch.where(scores > conf, scores, -torch.inf)  # NaN never passes
    counts = torch.isfinite(scores).sum(dim=1)
    # Together, because each waits for the device.
    max_count, are_finite = torch.stack(
        (counts.max(), torch.isfinite(best_logits).all().to(counts.dtype))
    ).tolist()
    if not are_finite:
        raise NotFinite("the network gave scores that are not finite (NaN or infinity)")
    num_candidates = min(max_count, max_candidates)
    sorted_scores, anchors = torch.sort(scores, dim=1, descending=True, stable=True)
    sorted_scores, anchors = sorted_scores[:, :num_candidates], anchors[:, :num_candidates]
    index = anchors.unsqueeze(-1).expand(-1, -1, class_logits.shape[2])
    classes = class_logits.gather(1, index).float().max(dim=2).indices
    return BatchDetections(anchors, sorted_scores, classes, boxes(anchors).float())


def _suppress_by_class(
    candidates: BatchDetections, iou: float, max_det: int, class_offset: float
) -> Tensor:
    """(B, K) bool: what `suppress` keeps if boxes of different classes never overlap."""
    shifted = _shift_by_class(candidates, class_offset)
    return suppress(shifted, torch.isfinite(candidates.scores), iou, max_det)


def _shift_by_class(candidates: BatchDetections, class_offset: float) -> Tensor:
    """(B, K, 4) boxes that overlap only within a class."""
    return candidates.boxes + candidates.classes.unsqueeze(-1) * class_offset


def _list_kept(kept: Tensor, row_length: int) -> tuple[Tensor, Tensor]:
    """(B, K) bool -> (B, row_length) places of the first that are kept; (B,) how many are."""
    batch, num_candidates = kept.shape
    ordinals = torch.arange(1, row_length + 1, device=kept.device).repeat(batch, 1)
    columns = torch.searchsorted(kept.cumsum(1), ordinals)  # num_candidates after the last
    return columns.clamp(max=num_candidates - 1), (columns < num_candidates).sum(dim=1)


def suppress(boxes: Tensor, valid: Tensor, iou: float, max_det: int) -> Tensor:
    """Which boxes a greedy NMS keeps.

    Args:
        boxes: (B, K, 4) x1 y1 x2 y2, best score first.
        valid: (B, K) bool; other boxes are not kept and suppress nothing.
        iou: Overlap above which the later box is dropped.
        max_det: The search ends once every image has this many boxes; later boxes count as
            dropped, and an image may have a few more than this when it ends.

    Returns:
        (B, K) bool.
    """
    kept = valid.clone()  # so far: not suppressed by any box of the blocks that are done
    batch, total = valid.shape
    if valid.device.type == "cpu":
        max_elements, max_block, rounds = _BLOCK_ELEMENTS, _MAX_BLOCK, 1
    else:
        max_elements, max_block = _DEVICE_BLOCK_ELEMENTS, _DEVICE_MAX_BLOCK
        rounds = _DEVICE_ROUNDS
    start = 0
    while start < total:
        rows = max_elements // max(1, batch * (total - start))
        stop = min(start + max(_MIN_BLOCK, min(max_block, rows)), total)
        block = boxes[:, start:stop]
        kept[:, start:stop] = _suppress_in_block(
            _overlaps(block, block, iou), kept[:, start:stop], rounds
        )
        if stop == total:
            break
        if int(kept[:, :stop].sum(dim=1).min()) >= max_det:
            kept[:, stop:] = False
            break
        suppressed = _overlaps(block, boxes[:, stop:], iou) & kept[:, start:stop, None]
        kept[:, stop:] &= ~suppressed.any(dim=1)
        start = stop
    return kept


def _suppress_in_block(overlaps: Tensor, candidates: Tensor, rounds: int) -> Tensor:
    """Greedy decision inside a block: overlaps (B, N, N), candidates (B, N) -> kept (B, N).

    Checks for convergence after every `rounds` rounds.
    """
    suppresses = overlaps.triu(diagonal=1)
    kept = candidates
    while True:
        for _ in range(rounds):
            previous = kept
            kept = candidates & ~(suppresses & kept.unsqueeze(-1)).any(dim=1)
        if torch.equal(kept, previous):
            return kept


def _overlaps(first: Tensor, second: Tensor, iou: float) -> Tensor:
    """Boxes (B, N, 4), (B, M, 4) -> (B, N, M) bool: intersection over union above `iou`."""
    a, b = first.unsqueeze(2), second.unsqueeze(1)
    width = (torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])).clamp(min=0)
    height = (torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])).clamp(
        min=0
    )
    inter = width * height
    area_a = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    area_b = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    return inter / (area_a + area_b - inter) > iou
