"""An archive whose images have names that are easily mistaken, and its output."""

from __future__ import annotations

from pathlib import Path

import pytest

from segcore.output.results import Results, open_results
from segcore.storage import Storage
from tests.exports.conftest import FAMILY
from tests.support.jobs import write_files
from tests.support.masks_output import Drawn, picture, write_results

NAMES = ("north/a.png", "south/a.png", "north/b 1.png", "north/ümläut.jpg", "c.png", "empty.png")
KINDS = list(FAMILY)
CLASSES = {3: "cat", 5: "dog & <b>", 9: "tree"}


def drawn_masks() -> dict[str, list[Drawn]]:
    """Masks of each image but the empty one: other ones for each."""
    return {
        name: [
            Drawn(FAMILY[kind], (3, 5, 9)[i % 3], 0.9 - 0.1 * i)
            for i, kind in enumerate((KINDS[k], KINDS[-1 - k]))
        ]
        for k, name in enumerate(NAMES)
        if name != "empty.png"
    }


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the archive in `in` and its output in `out`; not to be changed."""
    folder = tmp_path_factory.mktemp("annotators")
    files = {
        name: picture(k, "JPEG" if name.endswith("jpg") else "PNG") for k, name in enumerate(NAMES)
    }
    write_files(folder / "in", {**files, "broken/d.png": b"", "d.png": files["c.png"]})
    source, output = str(folder / "in"), str(folder / "out")
    write_results(source, output, drawn_masks(), failed=["broken/d.png"])
    return folder


@pytest.fixture(scope="session")
def results(archive: Path) -> Results:
    """The results in `archive`."""
    return open_results(Storage(), str(archive / "out"))
