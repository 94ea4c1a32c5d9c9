"""An archive of loose images with hard masks, and its output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segcore.output.results import Results, open_results
from segcore.storage import Storage
from tests.support.jobs import write_files
from tests.support.masks_output import Drawn, mask_family, picture, write_results

FAMILY = mask_family()
PICTURES = {
    "north/a.png": picture(1),
    "north/a.jpg": picture(2, "JPEG"),  # differs from the one above in its extension alone
    "north/A.webp": picture(3, "WEBP"),
    "south/ümläut 1.png": picture(4),
    "south/b'<&>.jpg": picture(5, "JPEG", orientation=6),
    "south/empty.png": picture(6),
}


def drawn_masks() -> dict[str, list[Drawn]]:
    """Each image has some of the family, with classes and scores of all sizes."""
    names = list(FAMILY)
    return {
        name: [
            Drawn(FAMILY[kind], (3, 5, 9)[i % 3], float(np.float32(0.95 - 0.1 * i)))
            for i, kind in enumerate(names[k:] + names[:k])
        ]
        for k, name in enumerate(PICTURES)
        if "empty" not in name
    }


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A folder with the archive in `in` and its output in `out`."""
    write_files(tmp_path / "in", PICTURES)
    write_results(str(tmp_path / "in"), str(tmp_path / "out"), drawn_masks())
    return tmp_path


@pytest.fixture
def results(archive: Path) -> Results:
    """The results in `archive`."""
    return open_results(Storage(), str(archive / "out"))
