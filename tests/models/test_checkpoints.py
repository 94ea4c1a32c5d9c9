"""Checkpoints: ours, official-style pickles, wrong kinds, damaged ones and hostile ones."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import types
import zipfile

import pytest
import safetensors.torch
import torch
from torch import nn

from segcore.errors import CheckpointError
from segcore.models import pickles
from segcore.models.checkpoints import (
    METADATA_KEY,
    parse_checkpoint,
    read_checkpoint,
    save_safetensors,
)
from segcore.models.pickles import PickledFile, PickleRefused, TensorRecord
from segcore.models.yolo.network import build_network

NAMES = {0: "cell", 1: "debris", 2: "dust"}
META = {
    "architecture": "yolo11n-seg",
    "categories": [{"id": 5 + i, "name": name} for i, name in NAMES.items()],
    "imgsz": 320,
    "licence": "CC0-1.0",
    "conf": 0.4,
    "seed": 7,
}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    return build_network("yolo11n-seg", 3, sppf_activation=True).eval()


@pytest.fixture(scope="module")
def weights(network):
    return {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}


@pytest.fixture
def foreign(monkeypatch):
    """A package that exists while a file is written and is gone when it is read."""
    module = types.ModuleType("peer_of_ours.tasks")

    class SegmentationModel(nn.Module):
        pass

    SegmentationModel.__module__, SegmentationModel.__qualname__ = module.__name__, "Segment"
    module.Segment = SegmentationModel
    monkeypatch.setitem(sys.modules, "peer_of_ours", types.ModuleType("peer_of_ours"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield SegmentationModel
    assert module.__name__ not in sys.modules


def saved(root, legacy=False):
    buffer = io.BytesIO()
    torch.save(root, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def official(network, foreign, monkeypatch, legacy, ema=None):
    """What a training of the peer leaves: pickled modules in a dict, halved."""
    model = foreign()
    model.names = NAMES
    model.model = network.model
    root = {
        "epoch": 3,
        "model": model,
        "ema": ema,
        "train_args": {"imgsz": 480},
        "license": "AGPL-3.0",
        "date": "2024-09-30",
    }
    data = saved(root, legacy)
    for name in ("peer_of_ours", "peer_of_ours.tasks"):
        monkeypatch.delitem(sys.modules, name)
    return data


def test_safetensors_round_trip(tmp_path, weights, network):
    path = tmp_path / "cells.safetensors"
    save_safetensors(path, weights, META)
    checkpoint = read_checkpoint(path)
    assert checkpoint.meta.name == "cells"
    assert checkpoint.meta.imgsz == 320
    assert [c.id for c in checkpoint.meta.categories] == [5, 6, 7]
    assert checkpoint.meta.model_extra == {"seed": 7}
    loaded = checkpoint.network().state_dict()
    assert {v.dtype for v in loaded.values()} == {torch.float32, torch.int64}
    assert all(torch.equal(loaded[k], weights[k].to(loaded[k].dtype)) for k in weights)
    assert os.listdir(tmp_path) == ["cells.safetensors"]


@pytest.mark.parametrize("legacy", [False, True])
def test_official_style_pickles_of_both_formats(network, foreign, monkeypatch, legacy):
    checkpoint = parse_checkpoint(official(network, foreign, monkeypatch, legacy), "a/mine-seg.pt")
    meta = checkpoint.meta
    assert (meta.name, meta.architecture, meta.imgsz) == ("mine-seg", "yolo11n-seg", 480)
    assert [(c.id, c.name) for c in meta.categories] == list(NAMES.items())
    assert meta.licence == "AGPL-3.0"
    assert meta.sppf_activation is True
    assert len(checkpoint.state_dict) == 561
    wanted = network.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in checkpoint.state_dict.items())
    checkpoint.network()


def test_the_pickled_module_says_whether_sppf_activates(foreign, monkeypatch):
    plain = build_network("yolo11n-seg", 3, sppf_activation=False)
    checkpoint = parse_checkpoint(official(plain, foreign, monkeypatch, False), "x.pt")
    assert checkpoint.meta.sppf_activation is False
    assert checkpoint.network().sppf_activation is False


def test_averaged_weights_come_before_the_last_ones(network, foreign, monkeypatch):
    average = foreign()
    average.names = NAMES
    average.model = build_network("yolo11n-seg", 3).model
    wanted = average.model[0].conv.weight
    data = official(network, foreign, monkeypatch, False, ema=average)
    found = parse_checkpoint(data, "x.pt").state_dict["model.0.conv.weight"]
    assert torch.equal(found, wanted)


def test_a_plain_state_dict_is_read(weights):
    checkpoint = parse_checkpoint(saved(weights), "plain.pt")
    assert [c.name for c in checkpoint.meta.categories] == ["class 0", "class 1", "class 2"]


def test_nan_weights_are_refused(tmp_path, weights):
    bad = {**weights, "model.0.conv.weight": weights["model.0.conv.weight"] * float("nan")}
    save_safetensors(tmp_path / "bad.safetensors", bad, META)
    with pytest.raises(CheckpointError, match=r"bad\.safetensors is damaged: model\.0\.conv"):
        read_checkpoint(tmp_path / "bad.safetensors").network()


def with_metadata(weights, text):
    return safetensors.torch.save(dict(weights), None if text is None else {METADATA_KEY: text})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "resnet"}, "architecture 'resnet', which is unknown"),
        ({"architecture": "yolo11s-seg"}, "shape"),
        ({"architecture": "yolo11l-seg"}, "tensors are missing"),
        ({"categories": META["categories"][:2]}, "with 2 classes"),
        ({"categories": []}, "categories: "),
        ({"imgsz": 333}, "imgsz: "),
    ],
)
def test_metadata_that_does_not_fit_the_weights(weights, change, message):
    data = with_metadata(weights, json.dumps({**META, **change}))
    with pytest.raises(CheckpointError, match=r"^m\.safetensors .*" + message):
        parse_checkpoint(data, "m.safetensors").network()


def wrong_files(weights):
    good = with_metadata(weights, json.dumps(META))
    pickled = saved(weights)
    plain_zip = io.BytesIO()
    with zipfile.ZipFile(plain_zip, "w") as archive:
        archive.writestr("photos/readme.txt", "hello")
    detection = {k: v for k, v in weights.items() if "proto" not in k and ".cv4" not in k}
    yield "empty", b"", "is empty"
    yield "text", b"not a model at all\n", "no checkpoint that segcore can read"
    yield "no metadata", with_metadata(weights, None), "does not say which model"
    yield "metadata is no JSON", with_metadata(weights, "{"), "wrong metadata"
    yield "cut safetensors", good[: len(good) // 2], "damaged safetensors"
    yield "cut header", good[:100], "truncated"
    yield "huge header", struct.pack("<Q", 1 << 60) + good[8:], "truncated"
    yield "cut zip", pickled[: len(pickled) // 2], "truncated or damaged zip"
    yield "zip of photos", plain_zip.getvalue(), "none that torch.save writes"
    yield "list", saved([1, 2]), "holds no model"
    yield "no tensors", saved({"model": {"a": 1}}), "not a YOLO11-seg model"
    yield "detection", saved(detection), "for detection, not for instance segmentation"
    yield "other tensors", saved({**weights, "extra": torch.zeros(1)}), "562 tensors are not those"
    yield "pickle of a number", pickle.dumps(3), "torch.save did not write it"
    legacy = saved(weights, legacy=True)
    yield "cut legacy", legacy[: len(legacy) // 2], "truncated"
    yield "cut legacy pickle", legacy[:5000], "damaged"


def test_wrong_kinds_are_one_sentence_with_the_file(weights):
    for what, data, message in wrong_files(weights):
        with pytest.raises(CheckpointError, match=message) as caught:
            parse_checkpoint(data, "some/file.bin")
        assert caught.value.message.startswith("some/file.bin "), what
        assert "\n" not in caught.value.message, what


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(CheckpointError, match=r"There is no checkpoint at .*gone\.pt"):
        read_checkpoint(tmp_path / "gone.pt")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path)


class Evil:
    """Runs `function(*args)` in any reader that follows what a pickle asks for."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def hostile(marker):
    touch = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Evil(os.system, f"touch {marker}"),
        "exec": Evil(exec, touch),
        "eval": Evil(eval, touch.replace(".close()", "")),
        "getattr": Evil(getattr, Evil(__import__, "os"), "system"),
        "import": Evil(__import__, "antigravity"),
        "open": Evil(open, str(marker), "w"),
        "jit": Evil(torch.jit.load, str(marker)),
        "torch.load": Evil(torch.load, str(marker)),
        "nested": {"names": [Evil(os.system, f"touch {marker}")]},
    }


@pytest.mark.parametrize("kind", list(hostile("x")))
@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_in_a_pickle_is_executed(tmp_path, weights, kind, legacy):
    marker = tmp_path / "executed"
    evil = hostile(marker)[kind]
    before = set(sys.modules)
    # Beside good weights the call is inert; in the place of the model it is no model.
    checkpoint = parse_checkpoint(
        saved({"model": dict(weights), "train_args": evil, "x": evil}, legacy), "evil.pt"
    )
    assert len(checkpoint.state_dict) == 561
    with pytest.raises(CheckpointError, match=r"^evil\.pt "):
        parse_checkpoint(saved(evil, legacy), "evil.pt")
    assert not marker.exists()
    assert "antigravity" not in set(sys.modules) - before


def test_nothing_is_executed_where_the_magic_number_should_be(tmp_path):
    marker = tmp_path / "executed"
    for protocol in (2, 3, 4, 5):
        with pytest.raises(CheckpointError, match=r"torch\.save did not write it"):
            parse_checkpoint(pickle.dumps(hostile(marker)["os.system"], protocol), "evil.pt")
    assert not marker.exists()


def in_zip(program):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/data/0", b"\0" * 8)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "memo index"),  # would allocate tens of GB
        (b"\x80\x02\x82\x01.", "extension registry"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "damaged"),
        (b"\x80\x02" + b"(" * 10 + b".", "damaged"),
        (b"\x80\x02U\x05hello", "damaged"),
    ],
)
def test_hostile_opcodes(program, message):
    with pytest.raises(PickleRefused, match=message):
        PickledFile(in_zip(program))


def test_attributes_set_on_what_the_unpickler_hands_out_do_not_outlive_the_file():
    # BUILD with a state of (None, {...}) sets attributes on the function that takes tensors.
    program = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__NsX\x01\x00"
        b"\x00\x00aK\x01s\x86b."
    )
    PickledFile(in_zip(program))
    assert not hasattr(pickles._record, "a")
    assert not hasattr(pickles.Stub, "a")


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (3,), (1,)), (1, (2,), (1,)), (0, (2,), (5,)), (0, (1 << 40,), (0,)), (0, (2, 2), (1, 1))],
)
def test_tensors_may_not_reach_outside_of_their_storage(offset, size, stride):
    file = PickledFile(in_zip(b"\x80\x02N."))
    storage = pickles.StorageRecord("0", torch.float32, 2)
    with pytest.raises(PickleRefused, match="outside"):
        file.tensor(TensorRecord(storage, offset, size, stride))
    file = PickledFile(in_zip(b"\x80\x02N."))
    with pytest.raises(PickleRefused, match="less data"):
        file.tensor(TensorRecord(pickles.StorageRecord("0", torch.float32, 3), 0, (3,), (1,)))
    good = file.tensor(TensorRecord(storage, 0, (2,), (1,)))
    assert good.tolist() == [0.0, 0.0]
