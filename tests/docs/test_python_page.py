"""Every example in docs/python.md runs, one after another, in one folder."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segcore.storage import Storage
from segcore.testing.synthetic import render_scene
from segcore.testing.synthetic_archive import write_archive
from tests.support.paths import ROOT
from tests.support.run_without_ray import without_ray

EXAMPLES = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _folder_with_images(folder: Path) -> None:
    archive = write_archive(Storage(), str(folder), n_images=3, n_broken=0, per_shard=3)
    (folder / "shards").rename(folder / "photos")
    (folder / archive.ground_truth.rpartition("/")[2]).rename(folder / "truth.json")
    grey = render_scene(seed=3, index=0).pixels[:128, :128]
    Image.fromarray(np.ascontiguousarray(grey)).save(folder / "photo.png")


@pytest.mark.slow
def test_the_examples_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _folder_with_images(tmp_path)
    monkeypatch.chdir(tmp_path)
    code = "".join(EXAMPLES.findall((ROOT / "docs" / "python.md").read_text()))
    with without_ray():
        exec(compile(code, "python.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.search(r"\d+ instances on 128 x 128 pixels: nucleus \d+", printed)
    assert "3 images" in printed
    assert float(printed.rpartition("mask AP50 ")[2].split()[0]) > 0.5
    assert re.search(r"\d% of all objects changed", printed)
    assert Image.open("found.png").size == (256, 256)
    assert min(Image.open("shown.png").size) > 100
    assert b"Most errors" in Path("report.html").read_bytes()


@pytest.mark.slow
def test_the_lines_in_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _folder_with_images(tmp_path)
    (tmp_path / "photo.png").rename(tmp_path / "photo.jpg")  # the signature counts, not the name
    monkeypatch.chdir(tmp_path)
    code = EXAMPLES.findall((ROOT / "README.md").read_text())[1]
    names: dict[str, object] = {}
    with without_ray():
        exec(compile(code, "README.md", "exec"), names)
    assert len(names["masks"]) > 10  # type: ignore[arg-type]
