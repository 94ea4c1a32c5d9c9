"""State dicts of Mask R-CNN: layouts, names of older releases, class counts, damage."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from segcore.errors import CheckpointError
from segcore.models.base import ModelOptions
from segcore.models.checkpoints import read_checkpoint, save_safetensors
from segcore.models.maskrcnn.categories import category_names
from segcore.models.maskrcnn.checkpoint import build_network, describe, is_maskrcnn
from segcore.models.maskrcnn.network import V1, V2, MaskRCNN, NetworkShape
from segcore.models.registry import PUBLISHED, load_model


def state_dict(shape: NetworkShape) -> dict[str, Tensor]:
    """Right names and shapes, a byte of memory for each tensor."""
    with torch.device("meta"):
        network = MaskRCNN(shape)
    return {k: torch.ones(1).expand(v.shape) for k, v in network.state_dict().items()}


def older(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as of the published file of the first layout."""
    patterns = (
        (r"^rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
        (r"^(backbone\.fpn\.\w+_blocks\.\d)\.0\.", r"\1."),
        (r"^roi_heads\.mask_head\.0\.0\.", "roi_heads.mask_head.mask_fcn1."),
        (r"^roi_heads\.mask_head\.1\.0\.", "roi_heads.mask_head.mask_fcn2."),
        (r"^roi_heads\.mask_head\.2\.0\.", "roi_heads.mask_head.mask_fcn3."),
        (r"^roi_heads\.mask_head\.3\.0\.", "roi_heads.mask_head.mask_fcn4."),
    )
    for pattern, name in patterns:
        state = {re.sub(pattern, name, key): value for key, value in state.items()}
    return state


def test_published_layouts() -> None:
    first, second = state_dict(NetworkShape(V1)), state_dict(NetworkShape(V2))
    assert (len(first), len(second)) == (307, 363)  # torchvision's, less num_batches_tracked
    for name in (
        "backbone.body.layer3.5.bn2.running_var",
        "backbone.fpn.layer_blocks.3.0.bias",
        "rpn.head.conv.0.0.weight",
        "roi_heads.box_head.fc7.bias",
        "roi_heads.mask_head.3.0.bias",
        "roi_heads.mask_predictor.conv5_mask.weight",
    ):
        assert name in first
    for name in (
        "backbone.fpn.inner_blocks.0.1.running_mean",
        "rpn.head.conv.1.0.bias",
        "roi_heads.box_head.3.1.weight",
        "roi_heads.box_head.5.bias",
        "roi_heads.mask_head.3.1.bias",
    ):
        assert name in second
    # Published: 44,401,393 without and 46,359,409 with the weights of norms.
    norms = sum(v.numel() for k, v in second.items() if "running_mean" in k) * 2
    with torch.device("meta"):
        counts = [sum(p.numel() for p in MaskRCNN(NetworkShape(v)).parameters()) for v in (V1, V2)]
    assert [counts[0], counts[1] + norms] == [44_401_393, 46_359_409]


@pytest.mark.parametrize("architecture", [V1, V2])
def test_description(architecture: str) -> None:
    state = state_dict(NetworkShape(architecture))
    state["backbone.body.bn1.num_batches_tracked"] = torch.tensor(7)
    assert is_maskrcnn(state)
    meta = describe(state, "weights.pth")
    assert meta["architecture"] == architecture
    assert meta["norm_eps"] == 1e-5
    assert (meta["imgsz"], meta["conf"], meta["iou"], meta["max_det"]) == (800, 0.05, 0.5, 100)
    categories = {c["id"]: c["name"] for c in meta["categories"]}
    assert list(categories) == list(range(1, 91))
    assert [categories[k] for k in (1, 13, 44, 90)] == [
        "person",
        "stop sign",
        "bottle",
        "toothbrush",
    ]
    assert categories[12] == "N/A 12"


def test_coco_names() -> None:
    names = category_names(91)
    assert len(set(names)) == 90
    assert [k for k, name in enumerate(names, 1) if name.startswith("N/A")] == [
        12, 26, 29, 30, 45, 66, 68, 69, 71, 83,
    ]  # fmt: skip
    assert category_names(3) == ["class 1", "class 2"]


def test_names_of_older_releases() -> None:
    state = older(state_dict(NetworkShape(V1, 3)))
    assert "roi_heads.mask_head.mask_fcn1.weight" in state
    assert describe(state, "x")["norm_eps"] == 0  # as the published file was evaluated
    network = build_network(state, "x", norm_eps=0.0)
    assert network.shape == NetworkShape(V1, 3, 256, 0.0)
    assert not network.training


def test_class_count_and_mask_channels_are_read_from_the_tensors() -> None:
    state = state_dict(NetworkShape(V2, 3, 64))
    assert [c["name"] for c in describe(state, "x")["categories"]] == ["class 1", "class 2"]
    assert build_network(state, "x", 1e-5).shape == NetworkShape(V2, 3, 64, 1e-5)


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if k != name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: without(s, "roi_heads.box_head.fc6.weight"), "layout that is unknown"),
        (lambda s: without(s, "backbone.body.layer1.0.conv1.weight"), "1 tensors are missing"),
        (lambda s: s | {"backbone.body.fc.weight": torch.ones(1)}, "1 tensors are unknown"),
        (lambda s: s | {"rpn.head.cls_logits.bias": torch.ones(5)}, r"shape \(5,\) instead of"),
        (lambda s: s | {"rpn.head.cls_logits.bias": torch.full((3,), torch.nan)}, "NaN"),
        (lambda s: s | {"rpn.head.cls_logits.bias": torch.ones(3, dtype=torch.int64)}, "int64"),
        (
            lambda s: s | {"roi_heads.box_predictor.cls_score.weight": torch.ones(1, 1024)},
            "finds 0 classes",
        ),
        (
            lambda s: without(s, "roi_heads.mask_predictor.conv5_mask.weight"),
            "conv5_mask.weight is missing",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        build_network(change(state_dict(NetworkShape(V1, 3))), "weights.pth", 1e-5)


def test_files(tmp_path: Path) -> None:
    """What torchvision's scripts save, and ours; both load and say the same."""
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in MaskRCNN(NetworkShape(V1, 2, 8)).state_dict().items()}
    state = {k: torch.full(shape, 0.25, dtype=torch.float16) for k, shape in shapes.items()}
    torch.save({"model": state, "optimizer": {"lr": 0.1}, "epoch": 3}, tmp_path / "cells.pth")
    checkpoint = read_checkpoint(tmp_path / "cells.pth")
    assert checkpoint.meta.architecture == V1
    assert [(c.id, c.name) for c in checkpoint.meta.categories] == [(1, "class 1")]
    meta = checkpoint.meta.model_dump() | {"categories": [{"id": 7, "name": "cell"}], "conf": 0.2}
    save_safetensors(tmp_path / "cells.safetensors", checkpoint.state_dict, meta)
    del state, checkpoint
    model = load_model(str(tmp_path / "cells.safetensors"), ModelOptions(device="cpu", imgsz=320))
    assert [(c.id, c.name) for c in model.info.categories] == [(7, "cell")]
    assert model.info.name == "cells"
    assert model.info.parameters == {
        "min_size": 320,
        "max_size": 533,
        "conf": 0.2,
        "iou": 0.5,
        "max_det": 100,
        "norm_eps": 1e-5,
        "precision": "float32",
    }


def test_published_weights_are_known_by_name() -> None:
    for name in (V1, V2):
        assert PUBLISHED[name].licence == "BSD-3-Clause"
        assert PUBLISHED[name].url.startswith("https://download.pytorch.org/models/maskrcnn")
