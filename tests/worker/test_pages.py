"""Pages of TIFFs as images of their own, from each kind of archive and on each way to a part."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segcore.errors import ErrorCode, ImageError
from segcore.images import DecodeOptions
from segcore.output.part_counts import PartCounts
from segcore.output.parts import Parts
from segcore.output.tables import ImageResult
from segcore.planning.plan import make_plan
from segcore.sources import Sample, SourceOptions, file_image_id, open_source, page_image_id
from segcore.sources.units import Unit, UnitLimits
from segcore.storage import Storage
from segcore.worker.image_worker import ImageWorker
from segcore.worker.pages import image_bytes, split_pages
from segcore.worker.read_options import ReadOptions
from segcore.worker.unit_results import ReusedRows
from segcore.worker.unit_worker import UnitReader, UnitWorker
from tests.support.archives import parquet_bytes, tar_bytes
from tests.support.bright_images import bright_png
from tests.support.fake_models import RAISES, BrightModel
from tests.support.jobs import part_bytes_by_unit
from tests.support.tiff_files import Page, tiff_file
from tests.support.whole_units import read_whole


class MendedModel(BrightModel):
    """`BrightModel`, except that no image makes `forward` raise any more; counts its images."""

    images_seen = 0

    def forward(self, prepared):
        self.images_seen += len(prepared)
        return [one.image[:, :, 1] > 127 for one in prepared]


def _page(seed: int, first: tuple[int, int, int] = (0, 0, 0), **tags: Any) -> Page:
    samples = np.zeros((20 + seed, 30, 3), np.uint8)
    samples[3 : 5 + seed, 4:9, 1] = 220
    samples[0, 0] = first
    return Page(samples, **tags)


FLOATS = {339: (3,)}
CONTENTS = {
    "a.png": bright_png(1),
    "b.tif": tiff_file([_page(0), _page(1, RAISES), _page(9, subfile=1), _page(2)]),
    "c.tif": tiff_file([_page(3)]),
    "d.tif": tiff_file([_page(4, RAISES), _page(5), _page(6, tags=FLOATS)], last_next=1 << 30),
    "e.tif": b"II*\0 no tiff at all",
    "f.tif": tiff_file([_page(7), _page(8)]),
}
ROWS = [  # file, page, error code
    ("a.png", None, None),
    ("b.tif", 1, None),
    ("b.tif", 2, "model_error"),
    ("b.tif", 3, None),
    ("c.tif", None, None),
    ("d.tif", 1, "model_error"),
    ("d.tif", 2, None),
    ("d.tif", 3, "unsupported_format"),
    ("d.tif", 4, "truncated"),
    ("e.tif", None, "truncated"),
    ("f.tif", 1, None),
    ("f.tif", 2, None),
]


def _units(folder: Path, kind: str) -> tuple[str, list[Unit]]:
    """What image ids begin with, and the units."""
    if kind == "images":
        for name, data in CONTENTS.items():
            Storage().write(str(folder / name), data)
        archive, start = folder, f"{folder}/"
    else:
        columns = {"key": list(CONTENTS), "image": list(CONTENTS.values())}
        data = tar_bytes(CONTENTS.items()) if kind == "tar" else parquet_bytes(columns, 6)
        archive = folder.with_suffix(f".{kind}")
        archive.write_bytes(data)
        start = f"{archive}#"
    source = open_source(str(archive), SourceOptions(), Storage())
    return start, list(make_plan(source, UnitLimits()).units)


def _parts(folder: Path) -> Parts:
    return Parts(Storage(), str(folder), "e", "r", "CC0-1.0", ((1, "bright"),))


def _options(**decode: Any) -> ReadOptions:
    options = DecodeOptions(pages="all", **decode)
    return ReadOptions(Storage(), SourceOptions(), options, threads=2, max_decoded_bytes=1 << 20)


def _segment(path: str, model: BrightModel, parts: Parts, unit: Unit, retry: bool) -> PartCounts:
    options = _options()
    if path == "batches":
        return UnitWorker(model, options, parts).segment(unit, retry_failed=retry)
    if path == "split":
        read = read_whole(UnitReader(model, options, parts).read(unit, retry_failed=retry))
        return UnitWorker(model, options, parts).segment_prepared(unit, *read, retry_failed=retry)
    rows: list[ImageResult] = []
    worker = ImageWorker(model, options, parts)
    worker.open(unit, 0, retry)
    while worker.read_next() is not None:
        rows.append(worker.segment())
        if len(rows) == 3 and not retry:  # as after a death: a new process goes on
            worker = ImageWorker(model, options, parts)
            worker.open(unit, 3, retry)
    return worker.commit(unit, rows, retry)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("images", "batches"),
        ("tar", "image_by_image"),
        ("parquet", "split"),
    ],
)
def test_pages_are_rows_and_failed_ones_are_tried_again(tmp_path: Path, kind, path) -> None:
    start, units = _units(tmp_path / "in", kind)
    (unit,) = units
    parts = _parts(tmp_path / "out")
    counts = _segment(path, BrightModel(), parts, unit, False)
    images, instances = parts.read_tables(unit.unit)
    found = [
        (file_image_id(row["image_id"], row["page"]).removeprefix(start), row["page"],
         row["error_code"])
        for row in images.to_pylist()
    ]  # fmt: skip
    assert found == ROWS
    assert (counts.ok, counts.failed) == (7, 5)
    assert instances["image_id"].to_pylist()[:3] == [
        f"{start}{name}" for name in ("a.png", "b.tif", "b.tif#page=3")
    ]
    assert images["height"].to_pylist()[1:4] == [20, 21, 22]
    assert images["warnings"].to_pylist() == [[]] * len(ROWS)

    expected = _parts(tmp_path / "expected")
    UnitWorker(MendedModel(), _options(), expected).segment(unit)
    model = MendedModel()
    retried = _segment(path, model, parts, unit, True)
    assert model.images_seen == 2  # the two that the model had refused
    assert retried.failures == {"truncated": 2, "unsupported_format": 1}
    assert part_bytes_by_unit(parts.prefix) == part_bytes_by_unit(expected.prefix)


@pytest.mark.parametrize("kind", ["images", "tar", "parquet"])
def test_a_higher_limit_of_pages_goes_on_where_the_lower_one_ended(tmp_path: Path, kind) -> None:
    _, (unit,) = _units(tmp_path / "in", kind)
    parts, expected = _parts(tmp_path / "out"), _parts(tmp_path / "expected")
    low = UnitWorker(MendedModel(), _options(max_pages=1), parts).segment(unit)
    assert low.failures["too_many_pages"] == 3
    UnitWorker(MendedModel(), _options(), expected).segment(unit)
    high = UnitWorker(MendedModel(), _options(), parts).segment(unit, retry_failed=True)
    assert high.failures == {"truncated": 2, "unsupported_format": 1}
    assert part_bytes_by_unit(parts.prefix) == part_bytes_by_unit(expected.prefix)
    lower = UnitWorker(MendedModel(), _options(max_pages=2), parts)
    assert lower.segment(unit, retry_failed=True).ok == high.ok  # what was read well stays


def test_first_pages_have_a_warning_in_place_of_the_others(tmp_path: Path) -> None:
    _, (unit,) = _units(tmp_path / "in", "images")
    parts = _parts(tmp_path / "out")
    options = ReadOptions(Storage(), SourceOptions(), DecodeOptions(), 2, 1 << 20)
    counts = UnitWorker(MendedModel(), options, parts).segment(unit)
    assert (counts.ok, counts.failures) == (5, {"truncated": 1})
    assert counts.warnings == {"pages_left_out": 3}
    assert counts.notes == {"pages_left_out": len(ROWS) - len(CONTENTS)}
    images, _ = parts.read_tables(unit.unit)
    assert images["page"].to_pylist() == [None] * len(CONTENTS)
    assert images["warnings"].to_pylist()[1] == [
        "pages_left_out: 2 pages after the first are not read; decode.pages: all reads every page"
    ]


def test_pages_share_the_bytes_of_their_file() -> None:
    data = CONTENTS["b.tif"]
    samples = list(split_pages(iter([Sample("b", "b", "", data)]), DecodeOptions(pages="all")))
    assert [sample.image_id for sample in samples] == ["b", "b#page=2", "b#page=3"]
    assert all(sample.data is data for sample in samples)
    assert image_bytes(samples[0]) is data
    assert len(image_bytes(samples[1])) < len(data)
    (whole,) = split_pages(iter([Sample("b", "b", "", data)]), DecodeOptions())
    assert (whole.page, image_bytes(whole)) == (None, data)


def test_ids_of_pages_are_those_of_their_file() -> None:
    for page in (None, 1, 2, 30):
        for file in ("a.tif", "t.tar#x/a.tif", "odd#page=2"):
            assert file_image_id(page_image_id(file, page), page) == file


def test_files_with_a_failed_page_are_read_again() -> None:
    error = ImageError(ErrorCode.CORRUPT, "")
    ok = [ImageResult("a", "", "", page=1), ImageResult("a#page=3", "", "", page=3),
          ImageResult("b", "", "")]  # fmt: skip
    unit = Unit("u", "tar", "s", "", 0, 0, None, 0)
    rows = ReusedRows(unit, ok, {"a"})
    assert rows.finished_files == {"b"}
    samples = [Sample("b", "", "", b""), *(Sample(page_image_id("a", p), "", "", b"", page=p)
               for p in (1, 2, 3))]  # fmt: skip
    left = list(rows.without_reused(iter(samples)))
    assert [sample.image_id for sample in left] == ["a#page=2"]
    merged = rows.merge([ImageResult("a#page=2", "", "", error=error, page=2)])
    assert [row.image_id for row in merged] == ["b", "a", "a#page=2", "a#page=3"]
    assert Counter(row.file_id for row in merged) == {"a": 3, "b": 1}
