"""NMS by Triton against that by torch, bit for bit; where it runs: see tests/masks/test_triton."""

from __future__ import annotations

from functools import partial

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (make triton)")

from segcore.models import nms, nms_kernels
from segcore.models.triton_nms import find_kept
from tests.masks.test_triton import INTERPRETED, ON_CUDA
from tests.models.test_nms import boxes_of_anchors, random_scene

DEVICE = torch.device("cuda" if ON_CUDA else "cpu")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ON_CUDA or INTERPRETED), reason="needs CUDA, or TRITON_INTERPRET=1 (make triton)"
    ),
]


def check(boxes: torch.Tensor, logits: torch.Tensor, iou: float, max_det: int, at_once: int) -> int:
    """Compare with `suppress`; how many detections."""
    gather = boxes_of_anchors(boxes.to(DEVICE))
    expected, found = (
        nms.detect_batch(gather, logits.to(DEVICE), 0.3, iou, max_det, find_kept=way)
        for way in (None, partial(find_kept, at_once=at_once))
    )
    assert torch.equal(expected.scores, found.scores)
    used = torch.isfinite(expected.scores)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a[used], b[used], rtol=0, atol=0, equal_nan=True)
    return int(used.sum())


@pytest.mark.parametrize(("spread", "iou"), [(5, 0.3), (40, 0.7), (40, 1.0), (300, 0.5)])
@pytest.mark.parametrize(("max_det", "at_once"), [(3, 16), (300, 1024), (300, 16)])
def test_equals_torch(spread: int, iou: float, max_det: int, at_once: int) -> None:
    anchors = 900 if ON_CUDA else 40
    boxes, logits = random_scene(spread, 3, anchors, 2, spread)
    logits[1] = -40  # an image without a candidate
    assert check(boxes, logits, iou, max_det, at_once) > 0


def test_boxes_without_area_or_that_are_not_numbers_suppress_nothing() -> None:
    boxes, logits = random_scene(4, 2, 35, 1, 20)
    boxes[0, ::3, 2:] = boxes[0, ::3, :2]
    boxes[0, 1::7] = float("nan")
    boxes[1, ::5, 0] = float("inf")
    boxes[1, 1::5, 3] = float("-inf")
    boxes[1, 2::5, :2], boxes[1, 2::5, 2:] = boxes[1, 2::5, 2:].clone(), boxes[1, 2::5, :2].clone()
    for at_once in (16, 256):
        assert check(boxes, logits, 0.5, 300, at_once) > 0


def test_overlaps_are_rounded_as_by_torch() -> None:
    """Thresholds at the very overlaps of the boxes, and one step beside them."""
    generator = torch.Generator().manual_seed(7)
    corners = torch.rand((1, 40, 2), generator=generator) * 20
    boxes = torch.cat((corners, corners + torch.rand((1, 40, 2), generator=generator) * 40), -1)
    logits = torch.rand((1, 40, 1), generator=generator) * 5
    a, b = boxes[0, :20], boxes[0, 20:]
    sides = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    inter = sides.prod(1)
    areas = [(c[:, 2:] - c[:, :2]).prod(1) for c in (a, b)]
    overlaps = inter / (areas[0] + areas[1] - inter)
    for overlap in overlaps[overlaps > 0][: 6 if ON_CUDA else 2]:
        for iou in (overlap, torch.nextafter(overlap, torch.tensor(0.0))):
            check(boxes, logits, float(iou), 300, 64)


def test_the_check_at_first_use_passes() -> None:
    assert nms_kernels.kernels_agree(DEVICE, at_once=64)
