"""Pages that kill their process are failed rows, those before and after them are not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from segcore.distributed.isolation import Isolator, ProcessDied
from segcore.errors import ErrorCode
from segcore.images import DecodeOptions
from segcore.inspection.image_checks import PlannedPart, check_images
from segcore.output.parts import Parts
from segcore.planning.plan import make_plan, without_counts
from segcore.sources import SourceOptions, file_image_id, open_source
from segcore.sources.units import Unit, UnitLimits
from segcore.storage import Storage
from segcore.worker.image_worker import ImageWorker
from segcore.worker.read_options import ReadOptions
from segcore.worker.unit_worker import UnitWorker
from tests.support.archives import parquet_bytes, tar_bytes
from tests.support.bright_images import bright_png
from tests.support.fake_models import BrightModel
from tests.support.jobs import part_bytes_by_unit
from tests.support.tiff_files import Page, tiff_file

DEADLY = (9, 9, 9)


class _SimulatedIsolator(Isolator):
    """Without Ray: its process is an `ImageWorker`.

    Args:
        deadly: Whether processes die of images of the colour `DEADLY`.
        dies_reading: Processes that were asked for more images than so many die of the next.
    """

    def __init__(
        self,
        options: ReadOptions,
        parts: Parts,
        *,
        deadly: bool = False,
        retry_failed: bool = False,
        dies_reading: int | None = None,
    ) -> None:
        self._spec: Any = SimpleNamespace(read_options=options, parts=parts)
        self._progress: Any = SimpleNamespace(report=lambda *_: None)
        self._retry_failed = retry_failed
        self._process: Any = None
        self._deadly = deadly
        self._dies_reading = dies_reading
        self.deaths = 0
        self._n_read = 0

    def _start_process(self) -> None:
        model = _DeadlyModel() if self._deadly else BrightModel()
        self._process = ImageWorker(model, self._spec.read_options, self._spec.parts)

    def _call(self, method: str, *args: Any) -> Any:
        if method == "open":
            self._n_read = args[1]
        if method == "read_next":
            self._n_read += 1
            if self._dies_reading is not None and self._n_read > self._dies_reading:
                self._die()
        try:
            return getattr(self._process, method)(*args)
        except _Death:
            self._die()

    def _die(self) -> None:
        self.deaths += 1
        self._process = None
        raise ProcessDied(ErrorCode.CRASHED)


class _Death(BaseException):
    """Nothing in a process survives it."""


class _DeadlyModel(BrightModel):
    def preprocess(self, image: np.ndarray) -> Any:
        if tuple(image[0, 0]) == DEADLY:
            raise _Death
        return super().preprocess(image)


def _page(seed: int, first: tuple[int, int, int] = (0, 0, 0)) -> Page:
    samples = np.zeros((20 + seed, 30, 3), np.uint8)
    samples[3 : 5 + seed, 4:9, 1] = 220
    samples[0, 0] = first
    return Page(samples)


def _contents(deadly: set[str]) -> dict[str, bytes]:
    """Files of 1, 3, 1 and 2 pages; those in `deadly` ("b3": the third of b.tif) kill."""

    def page(name: str, seed: int) -> Page:
        return _page(seed, DEADLY if name in deadly else (0, 0, 0))

    return {
        "a.png": bright_png(1),
        "b.tif": tiff_file([page("b1", 1), page("b2", 2), page("b3", 3)]),
        "c.tif": tiff_file([page("c1", 4)]),
        "d.tif": tiff_file([page("d1", 5), page("d2", 6)]),
    }


ALL = [("a.png", None), ("b.tif", 1), ("b.tif", 2), ("b.tif", 3), ("c.tif", None), ("d.tif", 1),
       ("d.tif", 2)]  # fmt: skip


def _unit(folder: Path, kind: str, contents: dict[str, bytes]) -> Unit:
    if kind == "images":
        for name, data in contents.items():
            Storage().write(str(folder / name), data)
        archive = folder
    else:
        columns = {"key": list(contents), "image": list(contents.values())}
        data = tar_bytes(contents.items()) if kind == "tar" else parquet_bytes(columns, 6)
        archive = folder.with_suffix(f".{kind}")
        archive.write_bytes(data)
    plan = make_plan(open_source(str(archive), SourceOptions(), Storage()), UnitLimits())
    (unit,) = without_counts(plan).units
    return unit


def _parts(folder: Path) -> Parts:
    return Parts(Storage(), str(folder), "e", "r", "CC0-1.0", ((1, "bright"),))


OPTIONS = ReadOptions(Storage(), SourceOptions(), DecodeOptions(pages="all"), 1, 1 << 20)


def _rows(parts: Parts, unit: Unit) -> dict[tuple[str, int | None], str | None]:
    images, _ = parts.read_newest_tables(unit.unit)
    assert list(check_images(unit.unit, "", images, PlannedPart.of_unit(unit))) == []
    rows = images.to_pylist()
    found = {
        (
            file_image_id(row["image_id"], row["page"]).replace("#", "/").rpartition("/")[2],
            row["page"],
        ): row["error_code"]
        for row in rows
    }
    assert len(found) == len(rows)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "deadly"),
    [
        ("images", {"b1"}),
        ("tar", {"b2"}),
        ("parquet", {"b3"}),
        ("images", {"b2", "b3", "c1", "d2"}),
        ("tar", {"d1", "d2"}),
    ],
)
def test_pages_that_kill_fail_alone_and_are_done_by_a_retry(
    tmp_path: Path, kind: str, deadly: set[str]
) -> None:
    unit = _unit(tmp_path / "in", kind, _contents(deadly))
    parts = _parts(tmp_path / "out")
    isolator = _SimulatedIsolator(OPTIONS, parts, deadly=True)
    counts = isolator._segment_image_by_image(unit)
    assert isolator.deaths == 2 * len(deadly)
    codes = {
        (name, page): "crashed" if f"{name[0]}{page or 1}" in deadly else None for name, page in ALL
    }
    assert list(_rows(parts, unit).items()) == list(codes.items())
    assert (counts.ok, counts.failures) == (7 - len(deadly), {"crashed": len(deadly)})

    again = _SimulatedIsolator(OPTIONS, parts, deadly=True, retry_failed=True)
    again._segment_image_by_image(unit)  # they kill again: nothing changes
    assert _rows(parts, unit) == codes
    mended = _SimulatedIsolator(OPTIONS, parts, retry_failed=True)
    counts = mended._segment_image_by_image(unit)
    assert (counts.ok, counts.failed) == (7, 0)


@pytest.mark.parametrize(
    ("kind", "n_read"), [*(("images", n) for n in range(len(ALL))), ("tar", 2), ("tar", 6)]
)
def test_no_page_is_lost_where_reading_kills(tmp_path: Path, kind: str, n_read: int) -> None:
    unit = _unit(tmp_path / "in", kind, _contents(set()))
    parts, expected = _parts(tmp_path / "out"), _parts(tmp_path / "expected")
    isolator = _SimulatedIsolator(OPTIONS, parts, dies_reading=n_read)
    counts = isolator._segment_image_by_image(unit)
    rows = _rows(parts, unit)
    read_files = {name for name, _ in ALL[:n_read]}
    known = [entry for entry in ALL if entry[0] in read_files]
    if kind == "images":  # files whose pages nobody has counted are one row each
        known += [(name, None) for name in _contents(set()) if name not in read_files]
    else:
        known += [(f"0-unread{len(known)}", None)]
    assert list(rows) == known
    assert list(rows.values()) == [None] * n_read + ["crashed"] * (len(known) - n_read)
    assert (counts.ok, counts.failed) == (n_read, len(known) - n_read)
    UnitWorker(BrightModel(), OPTIONS, expected).segment(unit)
    UnitWorker(BrightModel(), OPTIONS, parts).segment(unit, retry_failed=True)
    assert part_bytes_by_unit(parts.prefix) == part_bytes_by_unit(expected.prefix)
