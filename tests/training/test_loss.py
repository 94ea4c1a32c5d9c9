"""Targets are assigned to the right anchors, and the loss has its minimum where it should."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.models.yolo.network import HeadOutputs, anchor_grid
from segcore.training.assign import Predictions, assign, paired_iou
from segcore.training.config import LossWeights
from segcore.training.loss import (
    SegmentationLoss,
    complete_iou_loss,
    coverage,
    distribution_loss,
)
from segcore.training.targets import GroundTruth, Targets


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_object_gets_anchors_and_no_anchor_gets_two_objects(seed: int) -> None:
    rng = np.random.default_rng(seed)
    centres, _ = anchor_grid(96, 96, torch.zeros(1))
    n_objects, n_anchors = int(rng.integers(1, 12)), len(centres)
    # Far apart on a 3 x 4 grid, so that no object can lose all anchors to a neighbour.
    cells = rng.choice(12, n_objects, replace=False)
    middle = np.stack(((cells % 3) * 32 + 16, (cells // 3) * 24 + 12), 1)
    half = rng.uniform(0.5, 10, (n_objects, 2))
    boxes = torch.tensor(np.concatenate((middle - half, middle + half), 1), dtype=torch.float32)
    predicted = torch.cat((centres - 6, centres + 6), 1)[None] + torch.tensor(
        rng.normal(0, 2, (1, n_anchors, 4)), dtype=torch.float32
    )
    scores = torch.tensor(rng.uniform(0.01, 0.99, (1, n_anchors, 2)), dtype=torch.float32)
    classes = torch.tensor(rng.integers(0, 2, (1, n_objects)))
    valid = torch.ones(1, n_objects, dtype=torch.bool)
    match = assign(
        Predictions(scores, predicted, centres), GroundTruth(boxes[None], classes, valid)
    )

    assert match.anchor.unique().numel() == match.anchor.numel()
    assert (match.truth.bincount(minlength=n_objects) <= 10).all()
    assert set(match.truth.tolist()) == set(range(n_objects))
    assert ((match.quality >= 0) & (match.quality <= 1)).all()
    iou = paired_iou(predicted[0, match.anchor], boxes[match.truth])
    for g in range(n_objects):  # the best-aligned anchor of an object is worth its best IoU
        of_object = match.truth == g
        best_iou = iou[of_object].max().item()
        assert match.quality[of_object].max() == pytest.approx(best_iou, abs=1e-5)


def test_padding_is_never_assigned() -> None:
    centres, _ = anchor_grid(64, 64, torch.zeros(1))
    boxes = torch.tensor([[[0.0, 0, 64, 64], [0, 0, 64, 64]]])
    match = assign(
        Predictions(
            scores=torch.full((1, len(centres), 1), 0.5),
            boxes=boxes[:, :1].expand(1, len(centres), 4),
            centres=centres,
        ),
        GroundTruth(
            boxes=boxes,
            classes=torch.zeros(1, 2, dtype=torch.int64),
            valid=torch.tensor([[True, False]]),
        ),
    )
    assert len(match.truth) == 10
    assert (match.truth == 0).all()


def test_box_losses_are_zero_only_at_the_truth() -> None:
    truth = torch.tensor([[10.0, 20, 30, 60]])
    assert complete_iou_loss(truth, truth).item() == pytest.approx(0, abs=1e-6)
    far = torch.tensor([[100.0, 20, 120, 60]])
    near = torch.tensor([[40.0, 20, 60, 60]])
    assert complete_iou_loss(far, truth) > complete_iou_loss(near, truth) > 1
    wide = torch.tensor([[0.0, 30, 40, 50]])  # same centre and area, other shape
    square = torch.tensor(
        [[20 - 800**0.5 / 2, 40 - 800**0.5 / 2, 20 + 800**0.5 / 2, 40 + 800**0.5 / 2]]
    )
    assert complete_iou_loss(wide, truth) > complete_iou_loss(square, truth)


def test_distribution_loss_is_smallest_between_the_two_bins() -> None:
    target = torch.full((1, 4), 3.25)
    right = torch.full((1, 4, 16), -20.0)
    right[..., 3], right[..., 4] = math.log(0.75), math.log(0.25)
    wrong = right.roll(1, dims=-1)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert distribution_loss(right.flatten(1), target).item() == pytest.approx(entropy, abs=1e-4)
    assert distribution_loss(wrong.flatten(1), target).item() > entropy + 1


def test_coverage_is_the_share_of_each_cell() -> None:
    labels = torch.zeros(8, 8, dtype=torch.int32)
    labels[0:4, 0:2] = 1
    labels[4:8, 4:8] = 2
    shares = coverage(labels, torch.tensor([0, 1]))
    assert shares.tolist() == [[[0.5, 0], [0, 0]], [[0, 0], [0, 1]]]


def _perfect_heads(size: int, box: list[float], labels: torch.Tensor) -> HeadOutputs:
    """Outputs that describe exactly what is there: one object of one class."""
    centres, strides = anchor_grid(size, size, torch.zeros(1))
    sides = torch.cat((centres - torch.tensor(box[:2]), torch.tensor(box[2:]) - centres), 1)
    sides = (sides / strides).clamp(0, 14.99)
    low = sides.floor()
    logits = torch.full((len(centres), 4, 16), -30.0)
    logits.scatter_(2, low.long()[..., None], (1 - (sides - low)).clamp(min=1e-9).log()[..., None])
    high = (sides - low).clamp(min=1e-9).log()[..., None]
    logits.scatter_(2, low.long()[..., None] + 1, high)
    inside = ((centres > torch.tensor(box[:2])) & (centres < torch.tensor(box[2:]))).all(1)
    class_logits = torch.where(inside, 12.0, -12.0)[None, :, None]
    prototypes = torch.zeros(1, 32, size // 4, size // 4)
    prototypes[0, 0] = torch.where(coverage(labels, torch.tensor([0]))[0] > 0.5, 15.0, -15.0)
    coefficients = torch.zeros(1, len(centres), 32)
    coefficients[..., 0] = 1
    return HeadOutputs(logits.flatten(1)[None], class_logits, coefficients, prototypes)


def test_the_loss_prefers_the_truth() -> None:
    labels = torch.zeros(64, 64, dtype=torch.int32)
    labels[16:48, 8:40] = 1
    truth = GroundTruth(
        boxes=torch.tensor([[[8.0, 16, 40, 48]]]),
        classes=torch.zeros(1, 1, dtype=torch.int64),
        valid=torch.ones(1, 1, dtype=torch.bool),
    )
    targets = Targets(truth, labels[None])
    loss = SegmentationLoss(LossWeights())
    _, right = loss(_perfect_heads(64, [8, 16, 40, 48], labels), targets)
    _, moved = loss(_perfect_heads(64, [16, 16, 48, 48], labels.roll(8, 1)), targets)
    assert right["box"] < 0.02 < moved["box"]
    assert right["mask"] < 0.02 < moved["mask"]
    assert right["dfl"] < moved["dfl"]
