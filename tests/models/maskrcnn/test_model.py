"""The stages of Mask R-CNN against plain loops, and the model behind the adapter contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from torch import Tensor

from segcore.errors import UsageError
from segcore.models.base import Model, ModelOptions
from segcore.models.checkpoints import CheckpointFile
from segcore.models.maskrcnn import rpn
from segcore.models.maskrcnn.checkpoint import describe
from segcore.models.maskrcnn.geometry import Frame, clip_boxes, decode_boxes
from segcore.models.maskrcnn.heads import Thresholds, select_detections
from segcore.models.maskrcnn.layers import FixedNorm, FrozenNorm
from segcore.models.maskrcnn.model import MaskRCNNModel
from segcore.models.maskrcnn.network import V1, V2, MaskRCNN, NetworkShape

FRAME = Frame(60, 100, 120, 200)


def overlap_of(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0) * max(height, 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def greedy_nms(rows: list[tuple[float, int, list[float]]], iou: float) -> list:
    """Rows of (score, group, box) that are kept, best first; of equal ones the earlier first."""
    kept: list[tuple[float, int, list[float]]] = []
    for row in sorted(rows, key=lambda r: -r[0]):
        if all(row[1] != other[1] or overlap_of(row[2], other[2]) <= iou for other in kept):
            kept.append(row)
    return kept


@pytest.mark.parametrize("seed", range(4))
def test_detections_are_those_of_the_loop(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(60, 2, generator=generator) * torch.tensor([150.0, 80.0])
    proposals = torch.cat((corner, corner + 5 + 60 * torch.rand(60, 2, generator=generator)), dim=1)
    logits = torch.randn(60, 4, generator=generator) * 2
    logits[30:] = logits[:30]  # ties
    deltas = torch.randn(60, 4, 4, generator=generator)
    deltas[5, 1:, 2] = -1e3  # a box without width
    thresholds = Thresholds(conf=0.1, iou=0.5, max_det=25)
    boxes = clip_boxes(decode_boxes(deltas, proposals, (10, 10, 5, 5)), FRAME).tolist()
    scores = logits.softmax(1).tolist()
    rows = [
        (scores[p][c], c, boxes[p][c])
        for p in range(60)
        for c in (1, 2, 3)
        if scores[p][c] > 0.1 and all(boxes[p][c][k + 2] - boxes[p][c][k] >= 0.01 for k in (0, 1))
    ]
    kept = greedy_nms(rows, 0.5)
    assert 25 < len(kept) < len(rows)
    detections = select_detections(logits, deltas, proposals, FRAME, thresholds)
    columns = (
        column.tolist() for column in (detections.scores, detections.labels, detections.boxes)
    )
    assert list(zip(*columns, strict=True)) == kept[:25]


def test_without_a_score_over_the_threshold_there_is_no_detection() -> None:
    logits = torch.tensor([[9.0, 0.0]])
    detections = select_detections(
        logits, torch.zeros(1, 2, 4), torch.ones(1, 4), FRAME, Thresholds()
    )
    assert detections.boxes.shape == (0, 4)
    assert detections.labels.tolist() == []


def test_proposals_are_those_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpn, "MAX_CANDIDATES", 40)
    monkeypatch.setattr(rpn, "MAX_PROPOSALS", 30)
    torch.manual_seed(2)
    network = rpn.RPN(depth=1).eval()
    with torch.no_grad():
        network.head.cls_logits.weight *= 8
        network.head.bbox_pred.weight *= 10
        levels = [torch.randn(1, 256, -(-128 // s), -(-224 // s)) for s in (4, 8, 16, 32, 64)]
        proposals = network(levels, FRAME)
        rows = []
        for k, (level, side) in enumerate(zip(levels, rpn.ANCHOR_SIDES, strict=True)):
            logits, deltas = network.head(level)
            anchors = rpn.anchor_grid(level.shape[-2:], (128, 224), side, level.device)
            boxes = clip_boxes(decode_boxes(deltas[:, None], anchors, (1, 1, 1, 1))[:, 0], FRAME)
            best = sorted(range(len(logits)), key=lambda i: -float(logits[i]))[:40]
            scores = logits.sigmoid()
            rows += [(float(scores[i]), k, boxes[i].tolist()) for i in best]
    rows = [r for r in rows if min(r[2][2] - r[2][0], r[2][3] - r[2][1]) >= 1e-3]
    kept = greedy_nms(rows, 0.7)
    assert 30 < len(kept) < len(rows)
    assert proposals.tolist() == [row[2] for row in kept[:30]]


@pytest.mark.parametrize("norm", [FixedNorm, FrozenNorm])
def test_norms_are_batch_norms_in_inference(norm: type[FixedNorm]) -> None:
    torch.manual_seed(0)
    reference, ours = torch.nn.BatchNorm2d(6, eps=1e-3).eval(), norm(6, eps=1e-3)
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = torch.rand(6) + 0.1
        getattr(reference, name).data[:] = value
        getattr(ours, name)[:] = value
    x = torch.randn(2, 6, 5, 7)
    with torch.no_grad():
        torch.testing.assert_close(reference(x), ours(x.clone()), rtol=1e-6, atol=1e-6)


def random_model(architecture: str, **options: object) -> MaskRCNNModel:
    """Three classes; weights are scaled so that an image of noise has a few dozen detections."""
    torch.manual_seed(1)
    with torch.device("meta"):
        network = MaskRCNN(NetworkShape(architecture, 4, 16))
    state: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            state[name] = torch.ones(tensor.shape)
        elif tensor.ndim > 1:
            fan_in = tensor[0].numel()
            state[name] = torch.randn(tensor.shape) * (2 / fan_in) ** 0.5
        else:
            state[name] = torch.zeros(tensor.shape)
    for name in state:
        if name.startswith("backbone.body.layer") and name.endswith("bn3.weight"):
            state[name] *= 0.2  # so that the sum over the residual branches does not grow
    file = CheckpointFile(state, "noise", sha256="0" * 64)
    checkpoint = file.to_checkpoint(describe(file))
    return MaskRCNNModel(
        checkpoint, ModelOptions(device="cpu", imgsz=64, batch_size=3, max_det=20, **options)
    )


@pytest.fixture(scope="module", params=[V1, V2])
def model(request: pytest.FixtureRequest) -> MaskRCNNModel:
    return random_model(request.param)


def make_images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (h, w, 3)).astype(np.uint8) for h, w in ((60, 90), (50, 41))]


@pytest.mark.slow
def test_an_image_does_not_depend_on_its_batch(model: MaskRCNNModel) -> None:
    assert isinstance(model, Model)
    prepared = [model.preprocess(image) for image in make_images()]
    together = model.postprocess(model.forward(prepared), prepared)
    alone = model.postprocess(model.forward(prepared[1:]), prepared[1:])[0]
    assert len(alone) > 0
    np.testing.assert_array_equal(together[1].boxes, alone.boxes)
    np.testing.assert_array_equal(together[1].scores, alone.scores)
    assert together[1].counts == alone.counts
    for image, instances in zip(make_images(), together, strict=True):
        height, width = image.shape[:2]
        assert (instances.height, instances.width) == (height, width)
        assert len(instances) <= 20
        assert (np.diff(instances.scores) <= 0).all()
        assert (instances.scores > 0.05).all()
        assert set(instances.category_ids.tolist()) <= {1, 2, 3}
        x, y, w, h = instances.boxes.T
        assert (np.stack((x, y)) >= 0).all()
        assert (x + w <= width + 1e-3).all()
        assert (y + h <= height + 1e-3).all()
        rles = [{"size": [height, width], "counts": c} for c in instances.counts]
        np.testing.assert_array_equal(coco.area(rles), instances.areas)
        # A mask extends beyond its box by the ring of padding, and by a pixel of rounding.
        for box, tight in zip(instances.boxes, coco.toBbox(rles), strict=True):
            assert (tight[:2] >= box[:2] - box[2:] / 28 - 1).all()
            assert (tight[:2] + tight[2:] <= box[:2] + box[2:] * (1 + 1 / 28) + 2).all()


def test_an_image_without_detections_has_an_empty_result(
    model: MaskRCNNModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "_thresholds", Thresholds(conf=1.0))
    prepared = [model.preprocess(make_images()[0])]
    (instances,) = model.postprocess(model.forward(prepared), prepared)
    assert len(instances) == 0
    assert (instances.height, instances.width) == (60, 90)
    assert instances.boxes.shape == (0, 4)


@pytest.mark.slow
@pytest.mark.parametrize("option", [{"shape": "rect"}, {"precision": "bfloat16"}])
def test_options_that_do_not_apply_are_refused(option: dict[str, str]) -> None:
    ((name, value),) = option.items()
    with pytest.raises(UsageError, match=f"model.{name}={value} does not apply to {V1}: "):
        random_model(V1, **option)


def test_wrong_images_and_batches_are_refused(model: MaskRCNNModel) -> None:
    with pytest.raises(ValueError, match="uint8"):
        model.preprocess(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(ValueError, match="1 to 3 images"):
        model.forward([])
