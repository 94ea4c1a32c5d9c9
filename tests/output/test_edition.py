"""What changes results changes the name of the edition, and nothing else does."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version

import pytest

from segcore.images import DecodeOptions
from segcore.models.base import Category, ModelInfo
from segcore.output import edition as edition_module
from segcore.output.edition import document_of, fingerprint_of, make_edition

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


@pytest.mark.parametrize(
    ("option", "default", "other"),
    [
        ("scale", "full", "reduced"),
        ("wide_range", "high_byte", "min_max"),
        ("wide_range", "high_byte", [100, 400]),
        ("strict", True, False),
        ("pages", "first", "all"),
    ],
)
def test_an_option_of_decoding_changes_the_edition_only_where_it_is_not_the_default(
    monkeypatch, option, default, other
):
    monkeypatch.setattr(
        edition_module, "DECODER", "segcore-images 1; simplejpeg 1.9.0; pillow 12.0.0"
    )
    monkeypatch.setattr(edition_module, "SCHEMA_VERSION", 1)
    first = make_edition(INFO, DecodeOptions())
    assert first.name == "My-model-v2-a06281743f1f"  # as before there were options
    assert make_edition(INFO, DecodeOptions(**{option: default})) == first
    changed = make_edition(INFO, DecodeOptions(**{option: other}))
    assert changed.name != first.name
    assert json.loads(changed.to_json())["decode"][option] == other


def test_versions_of_libraries_do_not_change_the_edition(monkeypatch):
    first = make_edition(INFO, DecodeOptions())
    monkeypatch.setattr(edition_module, "version", lambda name: "99.0")
    upgraded = make_edition(INFO, DecodeOptions())
    assert upgraded == first
    document = json.loads(upgraded.to_json())
    assert document["decoder_libraries"]["pillow"] == "99.0"
    assert fingerprint_of(document_of(document)) == first.fingerprint


def test_limits_and_licence_do_not_change_the_edition():
    first = make_edition(INFO, DecodeOptions())
    assert make_edition(INFO, DecodeOptions(max_pixels=10)).name == first.name
    assert make_edition(INFO, DecodeOptions(max_pages=10)).name == first.name
    assert make_edition(replace(INFO, licence="other"), DecodeOptions()).name == first.name


def test_the_document_says_what_was_used():
    stored = json.loads(make_edition(INFO, DecodeOptions(max_pixels=10)).to_json())
    assert stored["model"]["weights_sha256"] == "ab" * 32
    assert stored["model"]["categories"] == [{"id": 1, "name": "nucleus"}]
    assert stored["licence"] == "CC0-1.0"
    assert stored["limits"]["max_pixels"] == 10
    assert stored["decode"] == {"decoder": "segcore-images 2"}
    assert stored["decoder_libraries"]["pillow"] == version("pillow")
    assert stored["schema_version"] == 2
