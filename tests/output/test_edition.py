"""What changes results changes the name of the edition, and nothing else does."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from segcore.images import DecodeOptions
from segcore.models.base import Category, ModelInfo
from segcore.output import edition as edition_module
from segcore.output.edition import make_edition

INFO = ModelInfo(
    name="My model/v2",
    architecture="yolo11n-seg",
    weights_sha256="ab" * 32,
    licence="CC0-1.0",
    categories=(Category(1, "nucleus"),),
    parameters={"conf": 0.25, "imgsz": 640},
)


def test_name_is_one_safe_path_component():
    edition = make_edition(INFO, DecodeOptions())
    assert edition.name == f"My-model-v2-{edition.fingerprint[:12]}"
    assert make_edition(replace(INFO, name="../.."), DecodeOptions()).name.startswith("model-")


@pytest.mark.parametrize(
    "change",
    [
        {"weights_sha256": "cd" * 32},
        {"architecture": "yolo11s-seg"},
        {"parameters": {"conf": 0.3, "imgsz": 640}},
        {"categories": (Category(1, "cell"),)},
        {"result_version": 2},
    ],
)
def test_what_changes_results_changes_the_edition(change):
    first = make_edition(INFO, DecodeOptions())
    assert make_edition(replace(INFO, **change), DecodeOptions()).name != first.name
    assert make_edition(INFO, DecodeOptions()) == first


def test_the_scale_of_decoding_changes_the_edition_only_where_it_is_not_the_default(monkeypatch):
    monkeypatch.setattr(
        edition_module, "DECODER", "segcore-images 1; simplejpeg 1.9.0; pillow 12.0.0"
    )
    first = make_edition(INFO, DecodeOptions())
    assert first.name == "My-model-v2-a06281743f1f"  # as before there was a scale
    assert make_edition(INFO, DecodeOptions(scale="full")) == first
    reduced = make_edition(INFO, DecodeOptions(scale="reduced"))
    assert reduced.name != first.name
    assert json.loads(reduced.to_json())["decode"]["scale"] == "reduced"


def test_limits_and_licence_do_not_change_the_edition():
    first = make_edition(INFO, DecodeOptions())
    assert make_edition(INFO, DecodeOptions(max_pixels=10)).name == first.name
    assert make_edition(replace(INFO, licence="other"), DecodeOptions()).name == first.name


def test_the_document_says_what_was_used():
    stored = json.loads(make_edition(INFO, DecodeOptions(max_pixels=10)).to_json())
    assert stored["model"]["weights_sha256"] == "ab" * 32
    assert stored["model"]["categories"] == [{"id": 1, "name": "nucleus"}]
    assert stored["licence"] == "CC0-1.0"
    assert stored["limits"]["max_pixels"] == 10
    assert "pillow" in stored["decode"]["decoder"]
    assert stored["schema_version"] == 1
