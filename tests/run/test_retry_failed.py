"""Failed images again, and only these."""

from __future__ import annotations

import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segcore.config import Config, load_config
from segcore.errors import UsageError
from segcore.images import DecodeOptions
from segcore.inspection.verify import verify_output
from segcore.output.parts import Parts, results_from_tables
from segcore.output.report import RunReport
from segcore.planning.plan import make_plan
from segcore.run.segment import segment
from segcore.sources import SourceOptions, open_source
from segcore.sources.units import UnitLimits
from segcore.storage import Storage
from segcore.worker.image_worker import ImageWorker
from segcore.worker.read_options import ReadOptions
from segcore.worker.unit_worker import UnitReader, UnitWorker
from tests.support.archives import parquet_bytes, tar_bytes
from tests.support.fake_models import RAISES, BrightModel


class Mended(BrightModel):
    """The same, but what made `forward` raise does so no more; counts what it sees."""

    seen = 0

    def forward(self, prepared):
        self.seen += len(prepared)
        return [one.image[:, :, 1] > 127 for one in prepared]


def _png(seed: int, first: tuple[int, int, int] = (0, 0, 0)) -> bytes:
    pixels = np.zeros((40 + seed % 7, 56, 3), np.uint8)
    if seed % 4:  # every fourth has no instance
        pixels[5 : 9 + seed % 5, 7:20, 1] = 220
    pixels[0, 0] = first
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


CONTENTS = {f"{i:02d}.png": _png(i, RAISES if i in (0, 5, 6, 11) else (0, 0, 0)) for i in range(12)}
CONTENTS["07.png"] = b"no image, never"


def _archive(path: Path, kind: str) -> str:
    if kind == "images":
        for name, data in CONTENTS.items():
            Storage().write(str(path / name), data)
        return str(path)
    shard = path.with_suffix(f".{kind}")
    columns = {"key": list(CONTENTS), "image": list(CONTENTS.values())}
    data = tar_bytes(CONTENTS.items()) if kind == "tar" else parquet_bytes(columns, 5)
    shard.write_bytes(data)
    return str(shard)


def _parts(prefix: Path) -> Parts:
    return Parts(Storage(), str(prefix), "e", "r", "CC0-1.0", ((1, "bright"),))


def _files(prefix: Path) -> dict[str, bytes]:
    return {str(p.relative_to(prefix)): p.read_bytes() for p in prefix.rglob("*.parquet")}


def _image_by_image(worker: ImageWorker, unit, retry_failed: bool):
    worker.open(unit, 0, retry_failed)
    results = []
    while worker.read_next() is not None:
        results.append(worker.segment())
    return worker.commit(unit, results, retry_failed)


@pytest.mark.parametrize("way", ["batches", "alone", "split"])
@pytest.mark.parametrize("kind", ["images", "tar", "parquet"])
def test_the_result_is_that_of_a_run_without_failures(tmp_path, kind, way):
    storage, source = Storage(), SourceOptions()
    archive = open_source(_archive(tmp_path / "in", kind), source, storage)
    units = make_plan(archive, UnitLimits()).units
    reading = ReadOptions(storage, source, DecodeOptions(), 2, 1 << 20)
    for unit in units:
        UnitWorker(BrightModel(), reading, _parts(tmp_path / "again")).segment(unit)
        UnitWorker(Mended(), reading, _parts(tmp_path / "calm")).segment(unit)
    assert _files(tmp_path / "again") != _files(tmp_path / "calm")

    model = Mended()
    parts = _parts(tmp_path / "again")
    failed = Counter()
    for unit in units:
        if way == "alone":
            counts = _image_by_image(ImageWorker(model, reading, parts), unit, True)
        elif way == "split":
            read = UnitReader(model, reading, parts).read(unit, retry_failed=True)
            counts = UnitWorker(model, reading, parts).segment_prepared(
                unit, read, retry_failed=True
            )
        else:
            counts = UnitWorker(model, reading, parts).segment(unit, retry_failed=True)
        failed.update(counts.failures)
    assert model.seen == 4  # and none of the good ones
    assert failed == {"not_an_image": 1}
    assert _files(tmp_path / "again") == _files(tmp_path / "calm")

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "again").rglob("*.parquet")}
    for unit in units:
        UnitWorker(model, reading, parts).segment(unit, retry_failed=True)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "again").rglob("*.parquet")}
    assert after == before  # nothing gained, nothing written


def test_rows_read_back_are_the_rows_that_were_written(tmp_path):
    storage, source = Storage(), SourceOptions()
    archive = open_source(_archive(tmp_path / "in", "images"), source, storage)
    (unit,) = make_plan(archive, UnitLimits()).units
    reading = ReadOptions(storage, source, DecodeOptions(), 2, 1 << 20)
    parts = _parts(tmp_path / "out")
    UnitWorker(Mended(), reading, parts).segment(unit)
    found = results_from_tables(*parts.read(unit.unit))
    assert len(found) == 11
    assert [len(one.instances or ()) for one in found] == [0, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1]
    _parts(tmp_path / "copy").commit(unit, found)
    copy = _parts(tmp_path / "copy").read(unit.unit)
    assert copy[1].equals(parts.read(unit.unit)[1])


def _config(source: str, output: str) -> Config:
    flags = {
        "i": ("input", source),
        "o": ("output", output),
        "m": ("model.name", "tests.support.fake_models:BrightModel"),
    }
    sets = ["plan.images=8", "ray.max_actors=2", "run.max_failed_fraction=0.3"]
    return load_config(sets=sets, flags=flags)


@pytest.mark.ray
def test_a_run_tries_failed_images_again_when_asked(ray_session, tmp_path):
    source = _archive(tmp_path / "in", "images")
    output = str(tmp_path / "out")
    first = segment(_config(source, output))
    assert first.exit_code == 3
    assert first.failures == {"model_error": 4, "not_an_image": 1}

    mended = Path(os.environ["FAKE_MODEL_MENDED"])
    mended.touch()
    try:
        plain = segment(_config(source, output))
        assert (plain.images_this_time, plain.failed) == (0, 5)
        said: list[str] = []
        again = segment(_config(source, output), retry_failed=True, notify=said.append)
        calm = segment(_config(source, str(tmp_path / "calm")))
    finally:
        mended.unlink()
    assert (again.exit_code, again.images, again.failures) == (0, 12, {"not_an_image": 1})
    assert (again.images_retried, again.images_recovered, again.images_this_time) == (5, 4, 5)
    assert "5 failed images in 2 units are tried again." in said
    assert "5 failed images, 4 now ok" in again.summary()
    assert verify_output(Storage(), output).exit_code == 0
    assert _tables(again) == _tables(calm)
    with pytest.raises(UsageError, match="contradict"):
        segment(_config(source, output), retry_failed=True, overwrite=True)


def _tables(report: RunReport) -> dict[str, bytes]:
    prefix = Path(report.prefix)
    return {name: data for name, data in _files(prefix).items() if not name.startswith("plans")}
