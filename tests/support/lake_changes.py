"""An archive whose output is published as tables, and what may happen to it afterwards."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segcore.errors import SegcoreError
from segcore.run.compact import compact
from segcore.run.compact_plan import CompactOptions
from segcore.run.segment import segment
from segcore.storage import Storage
from tests.support.bright_images import bright_png, bright_pngs
from tests.support.fake_models import RAISES
from tests.support.jobs import job_config, write_files
from tests.support.nights import night

AT_ONCE = CompactOptions(grace_s=0.0)
SHRUNK = "source.allow_shrunk_listing=true"


def seven_images(folder: Path) -> Path:
    """The output of an archive of seven images, one of which fails until it is mended."""
    fails = np.zeros((20, 30, 3), np.uint8)
    fails[0, 0], fails[5:10, 5:20] = RAISES, (0, 255, 0)
    sink = io.BytesIO()
    Image.fromarray(fails).save(sink, "png")
    write_files(folder / "in", {**bright_pngs(6), "fails.png": sink.getvalue()})
    segment_again(folder)
    return folder


def segment_again(folder: Path, *sets: str, **options: bool) -> str:
    """Run on the archive as it is now; the edition."""
    sets = ("plan.images=3", "run.max_failed_fraction=0.5", *sets)
    config = job_config(folder / "in", folder / "out", *sets)
    return segment(config, **options).edition


def _grow(folder: Path) -> str:
    write_files(folder / "in", {"new.png": bright_png(31)})
    return segment_again(folder)


def _change(folder: Path) -> str:
    write_files(folder / "in", {"001.png": bright_png(32)})
    return segment_again(folder)


def _lose(folder: Path) -> str:
    (folder / "in" / "002.png").unlink()
    return segment_again(folder, SHRUNK)


def _lose_and_remove(folder: Path) -> str:
    (folder / "in" / "002.png").unlink()
    return segment_again(folder, SHRUNK, remove_unlisted=True)


def _retry(folder: Path) -> str:
    (folder.parent / "mended").touch()
    return segment_again(folder, retry_failed=True)


def _compact(folder: Path) -> str:
    edition = segment_again(folder)
    compact(Storage(), str(folder / "out"), edition, AT_ONCE)
    return edition


def _compact_and_lose(folder: Path) -> str:
    _compact(folder)
    (folder / "in" / "004.png").unlink()
    return segment_again(folder, SHRUNK)


def new_edition(folder: Path) -> str:
    """Of another threshold, and published."""
    return segment_again(folder, "model.conf=0.5", "run.publish=true")


CHANGES: Sequence[Callable[[Path], str]] = [
    _grow, _change, _lose, _lose_and_remove, _retry, _compact, _compact_and_lose, new_edition
]  # fmt: skip


def check_refusal(
    folder: Path,
    publish: Callable[[str], object],
    sets: Sequence[str],
    error: type[SegcoreError],
    words: str,
) -> None:
    """Publishing another edition ends so; nothing is published, by hand or by a night.

    Args:
        publish: Publishes an edition by its name.
        sets: Options of a night that does the same.
    """
    latest = (folder / "out" / "latest.json").read_bytes()
    edition = segment_again(folder, "model.conf=0.5")
    with pytest.raises(error, match=words) as caught:
        publish(edition)
    assert "Traceback" not in caught.value.message
    with pytest.raises(error, match=words):
        night(folder, *sets, "model.conf=0.5")
    assert (folder / "out" / "latest.json").read_bytes() == latest
