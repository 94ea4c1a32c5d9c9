"""`segcore models`, `segcore convert`, and the example adapter of the documentation."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from segcore.cli import convert, models
from segcore.cli.console import new_app
from segcore.config import Config, load_config
from segcore.errors import UsageError
from segcore.models.base import Model, ModelOptions
from segcore.models.registry import known_names, load_model, read_checkpoint
from segcore.models.yolo.network import build_network
from tests.support.paths import ROOT


def _app_with(command):
    app = new_app()
    app.command()(command)
    return app


def test_every_known_name_is_listed_with_its_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGCORE_CACHE", str(tmp_path))
    (tmp_path / "yolo11s-seg.pt").write_bytes(b"x" * 1_500_000)
    result = CliRunner().invoke(_app_with(models.command), ["--json"])
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert list(rows) == known_names()
    assert rows["yolo11s-seg"]["bytes"] == 1_500_000
    assert rows["yolo11n-seg"]["bytes"] is None
    assert rows["yolo11n-seg"]["file"].startswith(str(tmp_path))
    assert rows["yolo11x-seg"]["licence"] == "AGPL-3.0"
    assert rows["maskrcnn-resnet50-fpn"]["licence"] == "BSD-3-Clause"
    table = CliRunner().invoke(_app_with(models.command), []).stdout
    assert all(name in table for name in known_names())
    assert "1.5 MB" in table


@pytest.mark.slow
def test_convert_keeps_every_tensor(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_network("yolo11n-seg", 3)
    source = tmp_path / "best.pt"
    torch.save({"model": network.state_dict(), "license": "CC0-1.0"}, source)
    target = tmp_path / "out.safetensors"
    result = CliRunner().invoke(_app_with(convert.command), [str(source), str(target)])
    assert result.exit_code == 0, result.output
    assert "yolo11n-seg, 3 classes, CC0-1.0" in result.stdout
    converted = read_checkpoint(target)
    original = read_checkpoint(source)
    assert converted.meta == original.meta
    assert set(converted.state_dict) == set(network.state_dict())
    for name, tensor in network.state_dict().items():
        assert torch.equal(converted.state_dict[name], tensor)

    again = CliRunner().invoke(_app_with(convert.command), [str(source), str(target)])
    assert isinstance(again.exception, UsageError)
    wrong = CliRunner().invoke(_app_with(convert.command), [str(source), str(tmp_path / "out.pt")])
    assert isinstance(wrong.exception, UsageError)


def test_the_documented_adapter_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "models.md").read_text()
    adapter = re.search(r"```python adapter\n(.*?)```", text, re.DOTALL)
    assert adapter
    (tmp_path / "documented_models.py").write_text(adapter[1])
    monkeypatch.syspath_prepend(str(tmp_path))
    model = load_model("documented_models:BrightObjects", ModelOptions(conf=0.2))
    sys.modules.pop("documented_models")
    assert isinstance(model, Model)
    image = np.zeros((20, 30, 3), np.uint8)
    image[5:9, 10:17, 1] = 90
    prepared = [model.preprocess(image), model.preprocess(np.zeros_like(image))]
    bright, dark = model.postprocess(model.forward(prepared), prepared)
    assert len(dark) == 0
    assert bright.boxes.tolist() == [[10, 5, 7, 4]]
    decoded = coco_mask.decode({"size": [20, 30], "counts": bright.counts[0]})
    assert (decoded.astype(bool) == (image[..., 1] > 0)).all()


def test_the_config_for_coco_has_the_thresholds_of_the_protocol() -> None:
    config = load_config(ROOT / "configs" / "evaluate-coco.yaml")
    assert isinstance(config, Config)
    assert (config.model.conf, config.model.max_det) == (0.001, 300)
