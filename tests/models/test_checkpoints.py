"""Checkpoint files: safetensors and their metadata, wrong kinds, damaged files."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from segcore.errors import CheckpointError
from segcore.models.base import ModelOptions
from segcore.models.checkpoints import METADATA_KEY, save_safetensors
from segcore.models.registry import load_model, parse_checkpoint, read_checkpoint
from segcore.models.yolo.checkpoint import load_network
from tests.support.checkpoint_files import torch_file

META: dict[str, Any] = {
    "architecture": "yolo11n-seg",
    "categories": [
        {"id": 5 + i, "name": name} for i, name in enumerate(["cell", "debris", "dust"])
    ],
    "imgsz": 320,
    "licence": "CC0-1.0",
    "conf": 0.4,
    "seed": 7,
}
CPU = ModelOptions(device="cpu")


def safetensors_file(weights: dict[str, Tensor], metadata: str | None) -> bytes:
    return safetensors.torch.save(
        dict(weights), None if metadata is None else {METADATA_KEY: metadata}
    )


def test_safetensors_round_trip(tmp_path: Path, yolo_weights: dict[str, Tensor]) -> None:
    path = tmp_path / "cells.safetensors"
    save_safetensors(path, yolo_weights, META)
    checkpoint = read_checkpoint(path)
    assert checkpoint.meta.name == "cells"
    assert checkpoint.meta.imgsz == 320
    assert [c.id for c in checkpoint.meta.categories] == [5, 6, 7]
    assert checkpoint.meta.model_extra == {"seed": 7}
    loaded = load_network(checkpoint).state_dict()
    assert {v.dtype for v in loaded.values()} == {torch.float32, torch.int64}
    assert all(torch.equal(loaded[k], v.to(loaded[k].dtype)) for k, v in yolo_weights.items())
    assert os.listdir(tmp_path) == ["cells.safetensors"]


def test_options_of_the_user_come_before_the_defaults_of_the_checkpoint(
    yolo_weights: dict[str, Tensor],
) -> None:
    meta = parse_checkpoint(safetensors_file(yolo_weights, json.dumps(META)), "m").meta
    assert meta.with_options(ModelOptions()) == meta
    options = ModelOptions(imgsz=64, shape="rect", conf=0.0, iou=0.1, max_det=1)
    changed = meta.with_options(options)
    assert (changed.imgsz, changed.shape, changed.conf) == (64, "rect", 0.0)
    assert (changed.iou, changed.max_det) == (0.1, 1)
    assert changed.categories == meta.categories


def test_nan_weights_are_refused(tmp_path: Path, yolo_weights: dict[str, Tensor]) -> None:
    name = "model.0.conv.weight"
    bad = {**yolo_weights, name: yolo_weights[name] * float("nan")}
    save_safetensors(tmp_path / "bad.safetensors", bad, META)
    with pytest.raises(CheckpointError, match=r"bad\.safetensors is damaged: model\.0\.conv"):
        load_network(read_checkpoint(tmp_path / "bad.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "resnet"}, "architecture 'resnet', which is unknown"),
        ({"architecture": "yolo11s-seg"}, "shape"),
        ({"architecture": "yolo11l-seg"}, "it lacks [0-9,]+ tensors, e.g. "),
        ({"categories": META["categories"][:2]}, "with 2 classes"),
        ({"categories": META["categories"][:1]}, "with 1 class:"),
        ({"categories": []}, "categories: "),
        ({"imgsz": 333}, "imgsz: "),
    ],
)
def test_metadata_that_does_not_fit_the_weights_is_refused(
    yolo_weights: dict[str, Tensor], change: dict[str, Any], message: str
) -> None:
    data = safetensors_file(yolo_weights, json.dumps({**META, **change}))
    with pytest.raises(CheckpointError, match=r"^m\.safetensors .*" + message):
        load_model("m.safetensors", CPU, data=data)


def compressed_again(data: bytes, added: str = "archive/readme") -> bytes:
    """A zip file with the same members and one more, compressed."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as source,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist()[:10]:
            target.writestr(name, source.read(name))
        target.writestr(added, b"x")
    return buffer.getvalue()


def wrong_files(weights: dict[str, Tensor]) -> Iterator[tuple[str, bytes, str]]:
    """Description, content and a part of the message."""
    good = safetensors_file(weights, json.dumps(META))
    pickled = torch_file(weights)
    photos = io.BytesIO()
    with zipfile.ZipFile(photos, "w") as archive:
        archive.writestr("photos/readme.txt", "hello")
    detection = {k: v for k, v in weights.items() if "proto" not in k and ".cv4" not in k}
    yield "empty", b"", "is empty"
    yield "text", b"not a model at all\n", "not a checkpoint that segcore can read"
    yield "no metadata", safetensors_file(weights, None), "does not say which model"
    yield "metadata is not JSON", safetensors_file(weights, "{"), "invalid metadata"
    yield "cut safetensors", good[: len(good) // 2], "damaged safetensors"
    yield "cut header", good[:100], "truncated"
    yield "huge header", struct.pack("<Q", 1 << 60) + good[8:], "truncated"
    yield "cut zip", pickled[: len(pickled) // 2], "truncated or damaged zip"
    yield "zip of photos", photos.getvalue(), "not one that torch.save writes"
    yield "list", torch_file([1, 2]), "holds no model"
    yield "no tensors", torch_file({"model": {"a": 1}}), "it is a dict with the keys model"
    yield "empty dict", torch_file({}), "it is an empty dict"
    unknown = torch_file({"state_dict": {"head.a": torch.zeros(1), "b": torch.zeros(1)}})
    yield "unknown", unknown, r"holds 2 tensors in \['state_dict'\] named like `head.a`"
    yield "compressed", compressed_again(pickled), "'archive/data.pkl' is compressed"
    yield "script", compressed_again(pickled, "archive/constants.pkl"), "TorchScript"
    two = {f"{part}.{name}": tensor for part in ("a", "b") for name, tensor in weights.items()}
    yield "two copies", torch_file(two), "2 copies of the model, under `a.model.` and `b.model.`"
    yield "detection", torch_file(detection), "for detection, not for instance segmentation"
    yield (
        "other tensors",
        torch_file({**weights, "extra": torch.zeros(1)}),
        "562 tensors do not .* e.g. extra",
    )
    yield "YOLOv8", torch_file({"model.22.proto.cv3.conv.weight": torch.zeros(1)}), "a YOLOv8-seg"
    yield "no masks", torch_file({"backbone.body.conv1.weight": torch.zeros(1)}), "without masks"
    yield "pickle of a number", pickle.dumps(3), "torch.save did not write it"
    legacy = torch_file(weights, legacy=True)
    yield "cut legacy", legacy[: len(legacy) // 2], "truncated"
    yield "cut legacy pickle", legacy[:5000], "damaged"


@pytest.mark.slow
def test_wrong_kinds_are_refused_in_one_sentence_with_the_file(
    yolo_weights: dict[str, Tensor],
) -> None:
    for description, data, message in wrong_files(yolo_weights):
        with pytest.raises(CheckpointError, match=message) as caught:
            parse_checkpoint(data, "some/file.bin")
        assert caught.value.message.startswith("some/file.bin "), description
        assert "\n" not in caught.value.message, description


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"There is no checkpoint at .*gone\.pt"):
        read_checkpoint(tmp_path / "gone.pt")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path)
