"""Images are read back from every kind of archive as the job read them, or with a reason."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from segcore.config import Config
from segcore.errors import UsageError
from segcore.images import decode_image
from segcore.output.results import Results, open_results
from segcore.storage import Storage
from segcore.visualize.originals import find_records, iter_originals, read_originals
from tests.support import serial_run
from tests.support.archives import parquet_bytes, tar_bytes
from tests.support.bright_images import bright_png, bright_pngs
from tests.support.finished_output import FinishedOutput
from tests.support.jobs import job_config, write_files
from tests.support.tiff_files import Page, tiff_file

storage = Storage()


def _turned_jpeg(orientation: int) -> bytes:
    pixels = np.random.default_rng(orientation).integers(0, 255, (5, 4, 3), np.uint8)
    image = Image.fromarray(pixels).resize((40, 30))
    exif = image.getexif()
    exif[0x0112] = orientation
    sink = io.BytesIO()
    image.save(sink, "JPEG", exif=exif, quality=95)
    return sink.getvalue()


def _wide_png() -> bytes:
    sink = io.BytesIO()
    samples = np.random.default_rng(0).integers(100, 900, (20, 30), np.uint16)
    Image.fromarray(samples).save(sink, "PNG")
    return sink.getvalue()


def _files() -> dict[str, bytes]:
    turned = {f"turned{o}.jpg": _turned_jpeg(o) for o in range(1, 9)}
    return {**turned, "wide.png": _wide_png(), "b/deep.png": bright_png(3), **bright_pngs(3)}


def _write_archive(folder: str, kind: str, files: Mapping[str, bytes]) -> str:
    if kind == "folder":
        return write_files(f"{folder}/in", files)
    if kind == "tar":
        return write_files(f"{folder}/in", {"a.tar": tar_bytes(files.items())}) + "/a.tar"
    if kind == "parquet":
        columns = {"key": list(files), "image": list(files.values())}
        return write_files(f"{folder}/in", {"a.parquet": parquet_bytes(columns, 4)}) + "/a.parquet"
    write_files(f"{folder}/files", files)
    lines = "\n".join(f"files/{name}" for name in files)
    return write_files(folder, {"list.txt": lines.encode()}) + "/list.txt"


def _segment(config: Config) -> Results:
    serial_run.segment(config)
    return open_results(storage, str(config.output))


def _originals(results: Results) -> dict[str, tuple[np.ndarray | None, str]]:
    records = [r for table in results.images(["image_id"]) for r in table["image_id"].to_pylist()]
    return {
        original.record.key.rpartition("/")[2]: (original.pixels, original.problem)
        for original in iter_originals(results, find_records(results, records))
    }


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet", "manifest"])
@pytest.mark.parametrize(
    "wide_range",
    ["min_max", *(pytest.param(w, marks=pytest.mark.slow) for w in ("high_byte", "[100,400]"))],
)
def test_pixels_are_those_of_the_job(folder: str, kind: str, wide_range: str) -> None:
    if folder.startswith("s3://") and wide_range != "min_max":
        pytest.skip("the store does not know what is in the files")
    files = _files()
    sets = ["plan.images=4", "plan.bytes=3000", f"decode.wide_range={wide_range}"]
    config = job_config(_write_archive(folder, kind, files), f"{folder}/out", *sets)
    shown = _originals(_segment(config))
    assert {key: problem for key, (_, problem) in shown.items() if problem} == {}
    assert len(shown) == len(files)
    for name, data in files.items():
        expected = decode_image(data, config.decode)
        np.testing.assert_array_equal(shown[name.rpartition("/")[2]][0], expected)


@pytest.mark.parametrize("pages", ["first", "all"])
def test_pages_are_told_apart(tmp_path: Path, pages: str) -> None:
    images = [Page(np.full((20 + i, 30, 3), 40 * i, np.uint8)) for i in range(4)]
    files = {"a.tif": tiff_file(images), "one.tif": tiff_file(images[3:]), "z#page=2.tif": b"x"}
    source = _write_archive(str(tmp_path), "folder", files)
    results = _segment(job_config(source, tmp_path / "out", f"decode.pages={pages}"))
    shown = _originals(results)
    expected = {"a.tif": 0, "one.tif": 3}
    if pages == "all":
        expected |= {f"a.tif#page={number}": number - 1 for number in (2, 3, 4)}
    readable = {key: pixels for key, (pixels, _) in shown.items() if pixels is not None}
    assert set(readable) == set(expected)
    for key, number in expected.items():
        np.testing.assert_array_equal(readable[key], images[number].samples)
    assert "not_an_image" in shown["z#page=2.tif"][1]


def _rewrite(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data + b"\0")
    os.utime(path, (1, 1))


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet"])
@pytest.mark.parametrize(
    ("damage", "message"), [(Path.unlink, "no object|not found|No such|does not exist"),
                            (_rewrite, "has changed since the run")],
)  # fmt: skip
def test_what_is_gone_or_changed_comes_with_the_reason(
    tmp_path: Path, kind: str, damage: Callable[[Path], None], message: str
) -> None:
    files = bright_pngs(6)
    results = _segment(
        job_config(_write_archive(str(tmp_path), kind, files), tmp_path / "out", "plan.images=3")
    )
    hit = tmp_path / "in" / ("002.png" if kind == "folder" else f"a.{kind}")
    damage(hit)
    shown = _originals(results)
    assert len(shown) == 6
    for key, (pixels, problem) in shown.items():
        is_hit = kind != "folder" or key == "002.png"
        assert (pixels is None) == is_hit
        if is_hit:
            assert re.search(message, problem), problem
    with pytest.raises(UsageError, match=hit.name):
        read_originals(results, [r.image_id for r in find_records(results, _ids(results))])


def _ids(results: Results) -> list[str]:
    return [i for table in results.images(["image_id"]) for i in table["image_id"].to_pylist()]


def test_an_image_of_another_size_is_not_shown(tmp_path: Path) -> None:
    source = _write_archive(str(tmp_path), "folder", {"a.png": bright_png(), "b.png": bright_png()})
    report = serial_run.segment(job_config(source, tmp_path / "out"))
    finished = FinishedOutput(report, str(tmp_path / "out"))

    def widen(table: pa.Table) -> pa.Table:
        widths = [9, *table["width"].to_pylist()[1:]]
        place = table.column_names.index("width")
        return table.set_column(place, table.schema.field("width"), pa.array(widths, pa.int32()))

    finished.edit(finished.part("images"), widen)
    shown = _originals(open_results(storage, finished.output))
    assert "56 x 40 pixels today, but 9 x 40" in shown["a.png"][1]
    assert shown["b.png"][1] == ""


def test_units_without_a_plan_and_odd_editions_are_said(tmp_path: Path) -> None:
    source = _write_archive(str(tmp_path), "folder", {"a.png": bright_png()})
    results = _segment(job_config(source, tmp_path / "out"))
    odd = {**results.edition, "decode": {"decoder": "x", "wide_range": "purple"}}
    with pytest.raises(UsageError, match="wide_range"):
        _originals(replace(results, edition=odd))
    results = replace(results, edition={})  # as little as a foreign tool may write
    assert _originals(results)["a.png"][1] == ""
    for path in Path(results.layout.plans_folder).iterdir():
        path.unlink()
    assert "No plan" in _originals(results)["a.png"][1]
