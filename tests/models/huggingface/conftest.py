"""Folders as transformers writes them, small enough to be made for each test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CONFIG: dict[str, Any] = {
    "model_type": "mask2former",
    "backbone_config": {"model_type": "swin"},
    "id2label": {"0": "cat"},
}
PREPROCESSING: dict[str, Any] = {
    "image_processor_type": "Mask2FormerImageProcessor",
    "size": {"shortest_edge": 64, "longest_edge": 128},
}
MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Makes a folder whose documents can be read; its weights are not weights."""

    def make(
        name: str = "mine",
        config: dict[str, Any] = CONFIG,
        preprocessing: dict[str, Any] = PREPROCESSING,
        weights: bytes | None = b"weights",
    ) -> Path:
        path = tmp_path / name
        path.mkdir()
        (path / "config.json").write_text(json.dumps(config))
        (path / "preprocessor_config.json").write_text(json.dumps(preprocessing))
        if weights is not None:
            (path / "model.safetensors").write_bytes(weights)
        return path

    return make
