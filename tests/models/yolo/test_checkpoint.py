"""Checkpoints of YOLO11-seg: official-style pickles of modules, and plain state dicts."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segcore.errors import CheckpointError
from segcore.models.checkpoints import Checkpoint
from segcore.models.registry import parse_checkpoint
from segcore.models.yolo.checkpoint import load_network
from segcore.models.yolo.network import YOLO11Seg, build_network
from tests.support.checkpoint_files import torch_file

NAMES = {0: "cell", 1: "debris", 2: "dust"}
MakeFile = Callable[..., bytes]


@pytest.fixture
def official_file(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeFile]:
    """Makes what a training of the peer leaves: pickled modules in a dict.

    Their package exists while the file is written, and is gone when it is read.
    """
    module = types.ModuleType("peer_of_ours.tasks")

    class SegmentationModel(nn.Module):
        pass

    SegmentationModel.__module__, SegmentationModel.__qualname__ = module.__name__, "Segment"
    module.Segment = SegmentationModel  # type: ignore[attr-defined]

    def wrap(network: YOLO11Seg, names: Any) -> SegmentationModel:
        model = SegmentationModel()
        model.names = names
        model.model = network.model
        return model

    def make(
        network: YOLO11Seg,
        legacy: bool = False,
        ema: YOLO11Seg | None = None,
        names: Any = NAMES,
    ) -> bytes:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "peer_of_ours", types.ModuleType("peer_of_ours"))
            patch.setitem(sys.modules, module.__name__, module)
            root = {
                "epoch": 3,
                "model": wrap(network, names),
                "ema": None if ema is None else wrap(ema, names),
                "train_args": {"imgsz": 480},
                "license": "AGPL-3.0",
                "date": "2024-09-30",
            }
            return torch_file(root, legacy)

    yield make
    assert module.__name__ not in sys.modules


@pytest.mark.slow
@pytest.mark.parametrize("legacy", [False, True])
def test_official_style_pickles_of_both_formats_are_read(
    yolo_network: YOLO11Seg, official_file: MakeFile, legacy: bool
) -> None:
    checkpoint = parse_checkpoint(official_file(yolo_network, legacy), "a/mine-seg.pt")
    meta = checkpoint.meta
    assert (meta.name, meta.architecture, meta.imgsz) == ("mine-seg", "yolo11n-seg", 480)
    assert [(c.id, c.name) for c in meta.categories] == list(NAMES.items())
    assert meta.licence == "AGPL-3.0"
    assert meta.shape == "rect"
    assert meta.sppf_activation is True
    assert len(checkpoint.state_dict) == 561
    expected = yolo_network.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in checkpoint.state_dict.items())
    load_network(checkpoint)


def test_the_pickled_module_says_whether_sppf_activates(official_file: MakeFile) -> None:
    network = build_network("yolo11n-seg", 3, sppf_activation=False)
    checkpoint = parse_checkpoint(official_file(network), "x.pt")
    assert checkpoint.meta.sppf_activation is False
    assert load_network(checkpoint).sppf_activation is False


@pytest.mark.slow
def test_averaged_weights_are_preferred_to_the_last_ones(
    yolo_network: YOLO11Seg, official_file: MakeFile
) -> None:
    average = build_network("yolo11n-seg", 3)
    data = official_file(yolo_network, ema=average)
    weight = parse_checkpoint(data, "x.pt").state_dict["model.0.conv.weight"]
    assert torch.equal(weight, average.state_dict()["model.0.conv.weight"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("cells", "class names that are not a list"),
        (["cell"], "names 1 class, but its tensors are for 3"),
        ({0: "a", 1: "b", 7: "c"}, "from 0 or 1 without gaps: the names have the numbers 0, 1, 7"),
        ({0: "a", "0": "b", 1: "c"}, "without gaps"),
        ({"a": "a", "b": "b", "c": "c"}, "the names have the numbers 'a', 'b', 'c'"),
        ([["a"], "b", "c"], "a name of class 0 that is not text"),
        ({"a", "b", "c"}, "class names that are not a list"),
        (["\ud800", "b", "c"], "invalid class names"),
        (["x" * 2000, "b", "c"], "invalid class names"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(
    yolo_network: YOLO11Seg, official_file: MakeFile, names: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"^x\.pt .*{message}"):
        parse_checkpoint(official_file(yolo_network, names=names), "x.pt")


def test_a_plain_state_dict_is_read(yolo_weights: dict[str, Tensor]) -> None:
    checkpoint = parse_checkpoint(torch_file(yolo_weights), "plain.pt")
    assert [c.name for c in checkpoint.meta.categories] == ["class 0", "class 1", "class 2"]
    assert checkpoint.meta.sppf_activation is True
    assert (checkpoint.meta.imgsz, checkpoint.meta.licence) == (640, "unknown")


def test_the_network_of_another_family_is_refused(yolo_weights: dict[str, Tensor]) -> None:
    meta = parse_checkpoint(torch_file(yolo_weights), "plain.pt").meta
    meta = meta.model_copy(update={"architecture": "resnet"})
    with pytest.raises(CheckpointError, match=r"^x cannot be loaded: .*'resnet'; known are yolo"):
        load_network(Checkpoint(meta, yolo_weights, "", "x"))
