"""Greedy non-maximum suppression by Triton: one launch for a batch, a loop in each image.

The result is that of `segcore.models.nms.suppress`, bit for bit: overlaps are rounded as by the
operations there, and the kernel is compiled without contraction of products and sums.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

NAN = tl.constexpr(tl.PropagateNan.ALL)
BOXES = 1024  # that a program compares at a time; the result does not depend on it


@triton.jit
def _overlap(x1, y1, x2, y2, other_x1, other_y1, other_x2, other_y2):
    """Intersection over union; NaN where torch's is."""
    width = tl.minimum(x2, other_x2, propagate_nan=NAN) - tl.maximum(
        x1, other_x1, propagate_nan=NAN
    )
    height = tl.minimum(y2, other_y2, propagate_nan=NAN) - tl.maximum(
        y1, other_y1, propagate_nan=NAN
    )
    inter = tl.maximum(width, 0.0, propagate_nan=NAN) * tl.maximum(height, 0.0, propagate_nan=NAN)
    area = (x2 - x1) * (y2 - y1)
    other_area = (other_x2 - other_x1) * (other_y2 - other_y1)
    return tl.div_rn(inter, area + other_area - inter)


@triton.jit(do_not_specialize=["n_boxes", "row_length"])
def keep_best(boxes, counts, alive, columns, kept_counts, n_boxes, row_length, iou,
              BOXES: tl.constexpr):  # fmt: skip
    """Places of the first `row_length` boxes that are kept, best first, and how many there are.

    A program does one image. `alive` is its notepad: 1 for each box that nothing suppresses yet.
    """
    image = tl.program_id(0).to(tl.int64)
    own, own_alive = boxes + image * n_boxes * 4, alive + image * n_boxes
    count = tl.load(counts + image)
    best = count * 0
    kept = count * 0
    while (best < count) & (kept < row_length):
        tl.store(columns + image * row_length + kept, best)
        corner = own + best * 4
        x1, y1 = tl.load(corner), tl.load(corner + 1)
        x2, y2 = tl.load(corner + 2), tl.load(corner + 3)
        following = count
        for start in range(best // BOXES * BOXES, count, BOXES):
            index = start + tl.arange(0, BOXES)
            later = (index > best) & (index < count)
            is_alive = later & (tl.load(own_alive + index, mask=later, other=0) != 0)
            other = own + index * 4
            overlap = _overlap(
                x1, y1, x2, y2,
                tl.load(other, mask=is_alive, other=0), tl.load(other + 1, mask=is_alive, other=0),
                tl.load(other + 2, mask=is_alive, other=0),
                tl.load(other + 3, mask=is_alive, other=0),
            )  # fmt: skip
            suppressed = is_alive & (overlap > iou)
            tl.store(own_alive + index, tl.zeros_like(index).to(tl.int8), mask=suppressed)
            survives = is_alive & (suppressed == 0)
            following = tl.minimum(following, tl.min(tl.where(survives, index, count), axis=0))
        tl.debug_barrier()  # what one thread stored, another may load in the next round
        best = following
        kept += 1
    tl.store(kept_counts + image, kept)


def find_kept(
    boxes: Tensor, counts: Tensor, iou: float, row_length: int, at_once: int = BOXES
) -> tuple[Tensor, Tensor]:
    """Which boxes a greedy NMS keeps, without waiting for anything.

    Args:
        boxes: (B, K, 4) float32 x1 y1 x2 y2, best score first.
        counts: (B,) how many of them take part.
        iou: Overlap above which the later box is dropped.
        row_length: Most boxes of an image.
        at_once: Boxes that a program compares at a time, a power of 2.

    Returns:
        (B, `row_length`) int64 places of the boxes that are kept, in order, 0 in the padding; and
        (B,) int64 how many are.
    """
    batch, n_boxes = boxes.shape[:2]
    alive = torch.ones((batch, n_boxes), dtype=torch.int8, device=boxes.device)
    columns = torch.zeros((batch, row_length), dtype=torch.int64, device=boxes.device)
    kept_counts = torch.empty(batch, dtype=torch.int64, device=boxes.device)
    keep_best[(batch,)](
        boxes.contiguous(), counts.to(torch.int32), alive, columns, kept_counts, n_boxes,
        row_length, iou, BOXES=at_once, enable_fp_fusion=False,
    )  # fmt: skip
    return columns, kept_counts
