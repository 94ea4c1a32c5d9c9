"""State dicts of Mask R-CNN: layouts, names of older releases, class counts, damage."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from segcore.errors import CheckpointError
from segcore.models.base import ModelOptions
from segcore.models.checkpoints import Checkpoint, CheckpointFile, CheckpointMeta, save_safetensors
from segcore.models.maskrcnn.categories import category_names
from segcore.models.maskrcnn.checkpoint import describe, load_network
from segcore.models.maskrcnn.model import MASK_RCNN
from segcore.models.maskrcnn.network import V1, V2, MaskRCNN, NetworkShape
from segcore.models.registry import PUBLISHED, load_model, read_checkpoint


def make_state_dict(shape: NetworkShape) -> dict[str, Tensor]:
    """The right names and shapes, with one number in memory for each tensor."""
    with torch.device("meta"):
        network = MaskRCNN(shape)
    return {k: torch.ones(1).expand(v.shape) for k, v in network.state_dict().items()}


def describe_tensors(tensors: dict[str, Tensor]) -> CheckpointMeta:
    return describe(CheckpointFile(tensors, "weights.pth"))


def checkpoint_of(tensors: dict[str, Tensor], meta: CheckpointMeta | None = None) -> Checkpoint:
    """With the metadata that the tensors have, unless it is given."""
    return Checkpoint(meta or describe_tensors(tensors), tensors, "", "weights.pth")


def with_older_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the names in the published file of the first layout."""
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


def test_tensors_have_the_published_names_and_sizes() -> None:
    first, second = make_state_dict(NetworkShape(V1)), make_state_dict(NetworkShape(V2))
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
def test_metadata_is_read_from_the_tensors(architecture: str) -> None:
    state = make_state_dict(NetworkShape(architecture))
    state["backbone.body.bn1.num_batches_tracked"] = torch.tensor(7)
    assert MASK_RCNN.recognises(state)
    meta = describe_tensors(state)
    assert meta.architecture == architecture
    assert meta.model_extra == {"norm_eps": 1e-5}
    assert (meta.imgsz, meta.conf, meta.iou, meta.max_det) == (800, 0.05, 0.5, 100)
    categories = {c.id: c.name for c in meta.categories}
    assert list(categories) == list(range(1, 91))
    assert [categories[k] for k in (1, 13, 44, 90)] == [
        "person",
        "stop sign",
        "bottle",
        "toothbrush",
    ]
    assert categories[12] == "N/A 12"


def test_91_labels_are_named_as_in_coco() -> None:
    names = category_names(91)
    assert len(set(names)) == 90
    assert [k for k, name in enumerate(names, 1) if name.startswith("N/A")] == [
        12, 26, 29, 30, 45, 66, 68, 69, 71, 83,
    ]  # fmt: skip
    assert category_names(3) == ["class 1", "class 2"]


def test_tensors_with_the_names_of_older_releases_are_read() -> None:
    state = with_older_names(make_state_dict(NetworkShape(V1, 3)))
    assert "roi_heads.mask_head.mask_fcn1.weight" in state
    # As the published file was evaluated.
    assert describe_tensors(state).model_extra == {"norm_eps": 0.0}
    network = load_network(checkpoint_of(state))
    assert network.shape == NetworkShape(V1, 3, 256, 0.0)
    assert not network.training


def test_class_count_and_mask_channels_are_read_from_the_tensors() -> None:
    state = make_state_dict(NetworkShape(V2, 3, 64))
    assert [c.name for c in describe_tensors(state).categories] == ["class 1", "class 2"]
    assert load_network(checkpoint_of(state)).shape == NetworkShape(V2, 3, 64, 1e-5)


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if k != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "roi_heads.box_head.fc6.weight"), "its layout is unknown"),
        (
            lambda s: without(s, "backbone.body.layer1.0.conv1.weight"),
            "it lacks 1 tensor, e.g. backbone",
        ),
        (
            lambda s: s | {"backbone.body.fc.weight": torch.ones(1)},
            "it has 1 unknown tensor, e.g. ",
        ),
        (lambda s: s | {"rpn.head.cls_logits.bias": torch.ones(5)}, r"shape \(5,\) instead of"),
        (lambda s: s | {"rpn.head.cls_logits.bias": torch.full((3,), torch.nan)}, "NaN"),
        (lambda s: s | {"rpn.head.cls_logits.bias": torch.ones(3, dtype=torch.int64)}, "int64"),
        (
            lambda s: s | {"roi_heads.box_predictor.cls_score.weight": torch.ones(1, 1024)},
            "no class besides the background",
        ),
        (
            lambda s: without(s, "roi_heads.mask_predictor.conv5_mask.weight"),
            "conv5_mask.weight is missing",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message: str) -> None:
    good = make_state_dict(NetworkShape(V1, 3))
    checkpoint = checkpoint_of(change(good), describe_tensors(good))
    with pytest.raises(CheckpointError, match=rf"^weights\.pth .*{message}"):
        load_network(checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": V2}, f"says that it is {V2} with 2 classes, but its tensors are {V1} "),
        ({"categories": ()}, f"says that it is {V1} with 0 classes, but .* {V1} with 2"),
        ({"norm_eps": -1}, "invalid metadata: norm_eps is -1"),
        ({"norm_eps": "x"}, "invalid metadata: norm_eps is 'x'"),
    ],
)
def test_metadata_that_does_not_fit_the_tensors_is_refused(change, message: str) -> None:
    tensors = make_state_dict(NetworkShape(V1, 3))
    meta = describe_tensors(tensors).model_copy(update=change)
    with pytest.raises(CheckpointError, match=rf"^weights\.pth .*{message}"):
        load_network(checkpoint_of(tensors, meta))


@pytest.mark.slow
def test_files_of_torchvision_and_of_segcore_load_and_say_the_same(tmp_path: Path) -> None:
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
