"""The blocked NMS against the textbook loop, on many random scenes."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.models import nms


def textbook_nms(boxes, scores, classes, iou, max_det):
    """Take the best, drop what overlaps it in its class, repeat: one box at a time."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i].item(), i))
    boxes, classes = boxes.numpy(), classes.tolist()  # numbers of NumPy are faster than tensors
    zero, iou = np.float32(0), np.float32(iou)
    kept = []
    for i in order:
        for j in kept:
            if classes[i] != classes[j]:
                continue
            a, b = boxes[i], boxes[j]
            w = max(min(a[2], b[2]) - max(a[0], b[0]), zero)
            h = max(min(a[3], b[3]) - max(a[1], b[1]), zero)
            area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
            if w * h / (area - w * h) > iou:
                break
        else:
            kept.append(i)
    return kept[:max_det]


def random_scene(seed, images, anchors, classes, spread):
    """Boxes on a whole-pixel grid (many exact ties of overlap), scores with ties."""
    g = torch.Generator().manual_seed(seed)
    xy = torch.randint(0, spread, (images, anchors, 2), generator=g).float()
    wh = torch.randint(1, 30, (images, anchors, 2), generator=g).float()
    logits = torch.randint(-40, 40, (images, anchors, classes), generator=g).float() / 8
    return torch.cat((xy, xy + wh), dim=-1), logits


def boxes_of_anchors(boxes):
    """The function that `detect` takes in place of boxes."""
    return lambda anchors: boxes.gather(1, anchors.unsqueeze(-1).expand(-1, -1, 4))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    images=st.integers(1, 3),
    anchors=st.integers(1, 150),
    classes=st.integers(1, 3),
    spread=st.sampled_from([5, 40, 300]),
    iou=st.sampled_from([0.3, 0.5, 0.7, 1.0]),
    max_det=st.sampled_from([1, 7, 300]),
)
def test_same_as_the_textbook_loop(seed, images, anchors, classes, spread, iou, max_det):
    boxes, logits = random_scene(seed, images, anchors, classes, spread)
    results = nms.detect(boxes_of_anchors(boxes), logits, 0.3, iou, max_det)
    assert len(results) == images
    for image, detections in enumerate(results):
        best, label = logits[image].max(dim=1)
        passing = (best.sigmoid() > 0.3).nonzero().flatten()
        kept = textbook_nms(
            boxes[image][passing], best.sigmoid()[passing], label[passing], iou, max_det
        )
        assert detections.anchors.tolist() == passing[kept].tolist()
        assert detections.classes.tolist() == label[passing[kept]].tolist()
        assert torch.equal(detections.scores, best.sigmoid()[passing[kept]])
        assert torch.equal(detections.boxes, boxes[image][passing[kept]])


@pytest.mark.parametrize("elements", [1, 1 << 12, 1 << 22])
def test_block_size_does_not_change_the_result(monkeypatch, elements):
    boxes, logits = random_scene(5, 2, 900, 2, 120)
    expected = nms.detect(boxes_of_anchors(boxes), logits, 0.3, 0.5, 300)
    monkeypatch.setattr(nms, "_BLOCK_ELEMENTS", elements)
    for a, b in zip(
        nms.detect(boxes_of_anchors(boxes), logits, 0.3, 0.5, 300), expected, strict=True
    ):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def checked_batch(boxes, logits, *thresholds, **more):
    """`detect_batch`, checked to be equal to `detect` of each image alone, bit for bit.

    The last bit of a CPU's own sigmoid depends on the position of a number, and so would ties.
    """
    with mock.patch.object(
        torch.Tensor, "sigmoid", lambda t: t.double().neg().exp().add(1).pow(-1).float()
    ):
        rows = nms.detect_batch(boxes_of_anchors(boxes), logits, *thresholds, **more)
        each_alone = [
            nms.detect(boxes_of_anchors(boxes[i : i + 1]), logits[i : i + 1], *thresholds, **more)[
                0
            ]
            for i in range(len(boxes))
        ]
    for i, detections in enumerate(each_alone):
        n = len(detections.anchors)
        for actual, expected in zip(rows, detections, strict=True):
            assert actual.dtype == expected.dtype
            assert torch.equal(actual[i, :n], expected)
        assert (rows.scores[i, n:] == -torch.inf).all()
    return rows


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    images=st.integers(1, 6),
    anchors=st.integers(1, 400),
    spread=st.sampled_from([5, 40, 300]),
    conf=st.sampled_from([0.0, 0.3, 0.97, 1.0]),
    iou=st.sampled_from([0.3, 0.7, 1.0]),
    max_det=st.sampled_from([1, 7, 300]),
)
def test_a_batch_gives_what_each_image_gives_alone(
    seed, images, anchors, spread, conf, iou, max_det
):
    boxes, logits = random_scene(seed, images, anchors, 3, spread)
    logits[0] -= 3  # images with far fewer than others
    checked_batch(boxes, logits, conf, iou, max_det)
    checked_batch(boxes, logits, conf, iou, max_det, max_candidates=9)


def test_a_batch_without_detections_is_empty():
    boxes, logits = random_scene(0, 2, 50, 2, 40)
    assert checked_batch(boxes, logits - 100, 0.25, 0.7, 300).anchors.shape == (2, 0)
    assert checked_batch(boxes[:, :0], logits[:, :0], 0.25, 0.7, 300).scores.shape == (2, 0)


@pytest.mark.parametrize("rounds", [1, 2, 8])
def test_the_number_of_rounds_between_checks_does_not_change_the_result(rounds):
    boxes, logits = random_scene(7, 3, 200, 1, 60)
    overlaps = nms._overlaps(boxes, boxes, 0.3)
    candidates = logits[..., 0] > 0
    expected = nms._suppress_in_block(overlaps, candidates, 1)
    assert 0 < expected.sum() < candidates.sum()
    assert torch.equal(nms._suppress_in_block(overlaps, candidates, rounds), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_a_batch_on_cuda_gives_what_a_cpu_gives():
    boxes, logits = random_scene(5, 8, 3000, 3, 400)
    for max_det in (10, 300):
        rows = checked_batch(boxes.cuda(), logits.cuda(), 0.3, 0.6, max_det)
        expected = checked_batch(boxes, logits, 0.3, 0.6, max_det)
        assert torch.equal(rows.anchors.cpu(), expected.anchors)
        assert torch.equal(rows.classes.cpu(), expected.classes)


def test_the_result_does_not_depend_on_the_other_images():
    boxes, logits = random_scene(3, 4, 700, 3, 60)
    together = nms.detect(boxes_of_anchors(boxes), logits, 0.25, 0.6, 20)
    for i in range(4):
        (alone,) = nms.detect(boxes_of_anchors(boxes[i : i + 1]), logits[i : i + 1], 0.25, 0.6, 20)
        assert all(torch.equal(x, y) for x, y in zip(alone, together[i], strict=True))


def test_a_long_chain_of_suppressions_is_resolved_in_order():
    x = torch.arange(600, dtype=torch.float32) * 4
    boxes = torch.stack((x, x * 0, x + 10, x * 0 + 10), dim=-1)[None]
    logits = torch.linspace(5, 0, 600)[None, :, None]
    (detections,) = nms.detect(boxes_of_anchors(boxes), logits, 0.1, 0.3, 1000)
    assert detections.anchors.tolist() == list(range(0, 600, 2))


def test_without_a_candidate_or_an_anchor_there_is_no_detection():
    boxes, logits = random_scene(0, 2, 50, 2, 40)
    for detections in nms.detect(boxes_of_anchors(boxes), logits - 100, 0.25, 0.7, 300):
        assert len(detections.anchors) == 0
    assert (
        len(nms.detect(boxes_of_anchors(boxes[:, :0]), logits[:, :0], 0.25, 0.7, 300)[0].scores)
        == 0
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("detect", [nms.detect, nms.detect_batch])
def test_scores_that_are_not_finite_are_refused(detect, value):
    boxes, logits = random_scene(0, 2, 10, 2, 400)
    logits[1, 3] = value
    with pytest.raises(ValueError, match="scores that are not finite"):
        detect(boxes_of_anchors(boxes), logits, 0.0, 0.7, 300)


def test_only_the_best_candidates_take_part():
    boxes, logits = random_scene(1, 1, 200, 1, 400)
    (detections,) = nms.detect(boxes_of_anchors(boxes), logits, 0.0, 1.0, 300, max_candidates=13)
    assert len(detections.anchors) == 13
    best = torch.sort(logits.flatten(), descending=True, stable=True).indices[:13]
    assert detections.anchors.tolist() == best.tolist()
