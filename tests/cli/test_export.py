"""The commands export and import: flags, messages and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.exports.conftest import archive as archive  # a fixture
from tests.support.commands import call_segcore


def test_export_then_import(archive: Path) -> None:
    dest = archive / "dest"
    done = call_segcore(
        "export", f"{archive}/out", f"{dest}", "--format", "cvat", "--workers", "1",
        "--category", "cat", "--rename", "cat=feline", "--min-score", "cat=0.3", "--exclude",
        "*.webp", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["counts"]["images_excluded"] == 1
    assert "Edition drawn-" in done.stderr
    text = (dest / "annotations-00001.xml").read_text()
    assert 'label="feline"' in text
    assert "tree" not in text
    read = call_segcore("import", f"{dest}", f"{archive}/truth.json")
    assert read.returncode == 0, read.stderr
    assert f"{summary['masks']} objects" in read.stdout
    again = call_segcore("import", f"{dest}", f"{archive}/truth.json", "--json")
    assert again.returncode == 2
    assert json.loads(again.stdout)["error"]["code"] == "usage_error"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out"], "DEST is missing"),
        (["out", "dest", "--format", "docx"], "--format: `export.format`"),
        (["out", "dest", "--rename", "cat"], "--rename cat: expected CLASS=NAME"),
        (["out", "dest", "--min-score", "high"], "--min-score high: expected SCORE"),
        (["out", "dest", "--min-score", "2"], "less than or equal to 1"),
        (["out", "dest", "--images", "url:x"], "--images: `export.images`"),
        (["out", "dest", "--set", "export.colour=red"], "unknown key `export.colour`"),
        (["nowhere", "dest"], "holds no edition"),
    ],
)
def test_wrong_options_are_one_sentence(archive: Path, arguments: list[str], message: str) -> None:
    places = [str(archive / a) if a in ("out", "dest", "nowhere") else a for a in arguments]
    done = call_segcore("export", *places)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (archive / "dest").exists()
