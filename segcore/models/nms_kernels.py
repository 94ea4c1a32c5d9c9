"""How a device finds overlapping boxes: by Triton where that works, else by torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segcore.masks.device.kernel_choice import KernelChoice
from segcore.models.nms import FindKept, detect_batch

_IOU, _CONF, _MAX_DETECTIONS = 0.5, 0.3, 40


def pick_find_kept(device: torch.device) -> FindKept | None:
    """What `detect_batch` should take as `find_kept` on this device."""
    if not NMS_KERNELS.uses_triton(device):
        return None
    from segcore.models.triton_nms import find_kept

    return find_kept


def kernels_agree(device: torch.device, **options: Any) -> bool:
    """Whether both ways detect the same in boxes with many exact ties.

    Args:
        options: Of `find_kept`, for tests.
    """
    from segcore.models.triton_nms import find_kept

    def by_triton(*args: Any) -> tuple[Tensor, Tensor]:
        return find_kept(*args, **options)

    generator = torch.Generator().manual_seed(0)
    corner = torch.randint(0, 60, (3, 300, 2), generator=generator).float()
    sides = torch.randint(1, 30, (3, 300, 2), generator=generator) / 3
    logits = torch.randint(-40, 40, (3, 300, 2), generator=generator) / 8
    boxes = torch.cat((corner, corner + sides), dim=-1).to(device)
    logits[2] -= 4  # an image with fewer candidates than the others

    def gather(anchors: Tensor) -> Tensor:
        return boxes.gather(1, anchors.unsqueeze(-1).expand(-1, -1, 4))

    thresholds = _CONF, _IOU, _MAX_DETECTIONS
    expected, found = (
        detect_batch(gather, logits.to(device), *thresholds, find_kept=way)
        for way in (None, by_triton)
    )
    used = torch.isfinite(expected.scores)
    return torch.equal(expected.scores, found.scores) and all(
        torch.equal(a[used], b[used]) for a, b in zip(expected, found, strict=True)
    )


NMS_KERNELS = KernelChoice("overlapping boxes", kernels_agree)
