"""What tests of whole runs share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import serial_run
from tests.support.bright_images import bright_pngs
from tests.support.jobs import write_files


@pytest.fixture
def serial() -> Iterator[None]:
    """Runs work in this process, without Ray."""
    with pytest.MonkeyPatch.context() as patch:
        serial_run.without_ray(patch)
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose `in` is an archive of seven images."""
    write_files(tmp_path / "in", bright_pngs(7))
    return tmp_path
