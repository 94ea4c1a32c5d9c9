"""Every command and every example of docs/quickstart.md, in order, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segcore.api.results import open_results
from tests.support import markdown
from tests.support.paths import PYTHONPATH
from tests.support.run_without_ray import without_ray

PAGE = "docs/quickstart.md"
PICTURES = ("demo-output/contact-sheet.png", "nuclei-000000-masks.png", "crowded.png", "one.png")


def _shell(line: str, folder: Path) -> None:
    environment = dict(os.environ, PYTHONPATH=PYTHONPATH)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"


@pytest.mark.faults
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_page_works_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in markdown.blocks(PAGE):
        if block.language == "console":
            for line in block.commands():
                _shell(line, tmp_path)
        else:
            with without_ray():
                exec(compile(block.text, PAGE, "exec"), names)
    for picture in PICTURES:
        with Image.open(tmp_path / picture) as image:
            colours = image.convert("RGB").resize((40, 40)).getcolors(maxcolors=1600)
            assert colours is not None, picture
            assert len(colours) > 20, picture
    assert open_results(str(tmp_path / "masks")).to_arrow("images").num_rows == 24
