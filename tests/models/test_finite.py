"""Numbers that are not finite, in weights and in outputs: refused, never "nothing found"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segcore.errors import CheckpointError, ErrorCode, ImageError
from segcore.instances import Instances
from segcore.models import checks
from segcore.models.base import ModelOptions
from segcore.models.checkpoints import Checkpoint, CheckpointMeta
from segcore.models.huggingface.queries import detect_queries
from segcore.models.maskrcnn.model import MaskRCNNModel
from segcore.models.registry import parse_checkpoint
from segcore.models.yolo.checkpoint import load_network
from segcore.models.yolo.model import YoloSegModel
from segcore.models.yolo.network import HeadOutputs
from segcore.worker.batching import BatchRunner
from tests.models.maskrcnn.test_model import random_model
from tests.support.checkpoint_files import torch_file

CONV, NORM = "model.0.conv.weight", "model.0.bn."
CPU = ModelOptions(device="cpu", imgsz=64, batch_size=3)
NUMBERS = (float("nan"), float("inf"), float("-inf"))


def with_value(weights: dict[str, Tensor], name: str, value: float) -> dict[str, Tensor]:
    """The weights with one number of one tensor changed, in float64."""
    tensor = weights[name].double().clone()
    tensor.flatten()[-1] = value
    return {**weights, name: tensor}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *((CONV, value, "holds NaN or infinity") for value in NUMBERS),
        (CONV, 1e300, "holds a number that float32 cannot hold"),
        (NORM + "running_var", -1e-30, "holds a negative variance"),
        (NORM + "running_var", -3.0, "holds a negative variance"),
        (NORM + "bias", -1e39, "holds a number that float32 cannot hold"),
    ],
)
def test_weights_that_cannot_be_computed_with_are_refused(
    yolo_weights: dict[str, Tensor], name: str, value: float, message: str
) -> None:
    data = torch_file(with_value(yolo_weights, name, value))
    with pytest.raises(CheckpointError, match=f"^x is damaged: {name} {message}"):
        load_network(parse_checkpoint(data, "x"))


def yolo(weights: dict[str, Tensor]) -> YoloSegModel:
    meta = CheckpointMeta(
        architecture="yolo11n-seg", categories=[{"id": i, "name": str(i)} for i in range(3)]
    )
    return YoloSegModel(Checkpoint(meta, weights, "", "x"), CPU)


def test_weights_that_overflow_when_norms_are_folded_in_are_refused(
    yolo_weights: dict[str, Tensor],
) -> None:
    weights = with_value(yolo_weights, NORM + "weight", 3e38)
    weights[NORM + "running_var"] = torch.zeros_like(weights[NORM + "running_var"])
    with pytest.raises(CheckpointError, match=r"x cannot be used in float32: .* norm folded in"):
        yolo(weights)
    network = nn.Linear(2, 2).requires_grad_(False)
    network.weight[0, 0] = 65520.0  # the least that float16 rounds to infinity
    checks.check_computed_weights(network, "x")
    with pytest.raises(CheckpointError, match="x cannot be used in float16: weight") as caught:
        checks.check_computed_weights(network.half(), "x")
    assert "float32" in caught.value.hint


def changed(outputs: HeadOutputs, field: str, value: float) -> HeadOutputs:
    tensor = getattr(outputs, field).clone()
    tensor[:] = value
    return outputs._replace(**{field: tensor})


@pytest.fixture(scope="module")
def yolo_model(yolo_weights: dict[str, Tensor]) -> YoloSegModel:
    return yolo(yolo_weights)


@pytest.mark.slow
@pytest.mark.parametrize("value", NUMBERS[:2])
@pytest.mark.parametrize("field", ["class_logits", "distances", "coefficients", "prototypes"])
def test_an_output_of_yolo_that_is_not_finite_fails_that_image_alone(
    yolo_model: YoloSegModel, monkeypatch: pytest.MonkeyPatch, field: str, value: float
) -> None:
    model = yolo_model
    monkeypatch.setattr(model, "_thresholds", (0.0, 1.0, 5))  # something is found everywhere
    run = model._run
    white = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)

    def run_changed(pixels: Tensor) -> HeadOutputs:
        outputs = run(pixels)
        return changed(outputs, field, value) if torch.equal(pixels, white) else outputs

    monkeypatch.setattr(model, "_run", run_changed)
    images = [np.full((64, 64, 3), grey, np.uint8) for grey in (0, 255, 128)]
    outcomes = BatchRunner(model).run([model.preprocess(image) for image in images])
    assert [type(outcome) for outcome in outcomes] == [Instances, ImageError, Instances]
    assert isinstance(outcomes[1], ImageError)
    assert outcomes[1].code is ErrorCode.MODEL_ERROR
    assert "finite" in outcomes[1].message


BAD_LAYERS: dict[str, Callable[[Any], nn.Module]] = {
    "backbone": lambda network: network.backbone.body.conv1,
    "objectness": lambda network: network.rpn.head.cls_logits,
    "proposals": lambda network: network.rpn.head.bbox_pred,
    "scores": lambda network: network.roi_heads.box_predictor.cls_score,
    "boxes": lambda network: network.roi_heads.box_predictor.bbox_pred,
    "masks": lambda network: network.roi_heads.mask_predictor.mask_fcn_logits,
}


@pytest.fixture(scope="module")
def mask_rcnn() -> MaskRCNNModel:
    return random_model("maskrcnn-resnet50-fpn")


@pytest.mark.slow
@pytest.mark.parametrize("layer", [None, *BAD_LAYERS])
def test_an_output_of_mask_rcnn_that_is_not_finite_fails_the_image(
    mask_rcnn: MaskRCNNModel, layer: str | None
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)
    prepared = [mask_rcnn.preprocess(image)]
    if layer is None:
        (outcome,) = BatchRunner(mask_rcnn).run(prepared)
        assert isinstance(outcome, Instances)
        assert len(outcome) > 0
        return
    bad = BAD_LAYERS[layer](mask_rcnn._network)
    hook = bad.register_forward_hook(lambda module, inputs, output: output * torch.nan)
    (outcome,) = BatchRunner(mask_rcnn).run(prepared)
    hook.remove()
    assert isinstance(outcome, ImageError)
    assert outcome.code is ErrorCode.MODEL_ERROR
    assert "finite" in outcome.message


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize("which", [0, 1])
def test_logits_of_queries_that_are_not_finite_are_refused(which: int, value: float) -> None:
    logits = [torch.zeros(4, 3), torch.zeros(4, 8, 8)]
    detect_queries(logits[0], logits[1], 0.1, None)
    logits[which].flatten()[-1] = value
    with pytest.raises(ValueError, match="not finite"):
        detect_queries(logits[0], logits[1], 0.1, None)
