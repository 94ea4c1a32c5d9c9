"""Failed images are segmented again, and only these."""

from __future__ import annotations

import io
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segcore.config import Config
from segcore.errors import StorageError, UsageError
from segcore.images import DecodeOptions
from segcore.inspection.verify import verify_output
from segcore.output.part_counts import PartCounts
from segcore.output.parts import Parts
from segcore.output.tables import results_from_tables
from segcore.planning.plan import make_plan
from segcore.run.segment import segment
from segcore.sources import SourceOptions, open_source
from segcore.sources.units import Unit, UnitLimits
from segcore.storage import Storage
from segcore.worker.image_worker import ImageWorker
from segcore.worker.read_options import ReadOptions
from segcore.worker.unit_worker import UnitReader, UnitWorker
from tests.support import serial_run
from tests.support.archives import parquet_bytes, tar_bytes
from tests.support.bright_images import bright_pngs
from tests.support.fake_models import RAISES, BrightModel
from tests.support.jobs import job_config, part_bytes, part_bytes_by_unit, write_files
from tests.support.run_without_ray import without_ray
from tests.support.whole_units import read_whole


class MendedModel(BrightModel):
    """`BrightModel`, except that no image makes `forward` raise any more; counts its images."""

    images_seen = 0

    def forward(self, prepared):
        self.images_seen += len(prepared)
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
CONTENTS["07.png"] = b"not an image, with any model"


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


def _times(prefix: Path) -> dict[Path, int]:
    """When each part was written, nanoseconds."""
    return {path: path.stat().st_mtime_ns for path in prefix.rglob("*.parquet")}


def _segment_image_by_image(worker: ImageWorker, unit, retry_failed: bool):
    worker.open(unit, 0, retry_failed)
    results = []
    while worker.read_next() is not None:
        results.append(worker.segment())
    return worker.commit(unit, results, retry_failed)


# Each path and each kind once in `make test`, all pairs in `make faults`.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("images", "batches"),
        ("tar", "image_by_image"),
        ("parquet", "split"),
        *(
            pytest.param(kind, path, marks=pytest.mark.faults)
            for kind, path in [
                ("images", "image_by_image"),
                ("images", "split"),
                ("tar", "batches"),
                ("tar", "split"),
                ("parquet", "batches"),
                ("parquet", "image_by_image"),
            ]
        ),
    ],
)
def test_the_result_is_that_of_a_run_without_failures(tmp_path, kind, path):
    storage, source = Storage(), SourceOptions()
    archive = open_source(_archive(tmp_path / "in", kind), source, storage)
    units = make_plan(archive, UnitLimits()).units
    read_options = ReadOptions(storage, source, DecodeOptions(), 2, 1 << 20)
    for unit in units:
        UnitWorker(BrightModel(), read_options, _parts(tmp_path / "retried")).segment(unit)
        UnitWorker(MendedModel(), read_options, _parts(tmp_path / "without_failures")).segment(unit)
    retried, expected = str(tmp_path / "retried"), str(tmp_path / "without_failures")
    assert part_bytes(retried) != part_bytes(expected)

    model = MendedModel()
    parts = _parts(tmp_path / "retried")
    failed = Counter()
    for unit in units:
        if path == "image_by_image":
            counts = _segment_image_by_image(ImageWorker(model, read_options, parts), unit, True)
        elif path == "split":
            read = read_whole(UnitReader(model, read_options, parts).read(unit, retry_failed=True))
            counts = UnitWorker(model, read_options, parts).segment_prepared(
                unit, *read, retry_failed=True
            )
        else:
            counts = UnitWorker(model, read_options, parts).segment(unit, retry_failed=True)
        failed.update(counts.failures)
    assert model.images_seen == 4  # and none of the good ones
    assert failed == {"not_an_image": 1}
    assert part_bytes_by_unit(retried) == part_bytes_by_unit(expected)
    assert all("-g1." in name for name in part_bytes(retried))  # every unit had failed images

    before = _times(tmp_path / "retried")
    for unit in units:
        UnitWorker(model, read_options, parts).segment(unit, retry_failed=True)
    assert _times(tmp_path / "retried") == before  # no image recovered, so nothing is written


def test_rows_read_back_are_the_rows_that_were_written(tmp_path):
    storage, source = Storage(), SourceOptions()
    archive = open_source(_archive(tmp_path / "in", "images"), source, storage)
    (unit,) = make_plan(archive, UnitLimits()).units
    read_options = ReadOptions(storage, source, DecodeOptions(), 2, 1 << 20)
    parts = _parts(tmp_path / "out")
    UnitWorker(MendedModel(), read_options, parts).segment(unit)
    results = results_from_tables(*parts.read_tables(unit.unit))
    assert len(results) == 11
    assert [len(result.instances or ()) for result in results] == [0, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1]
    copied_parts = _parts(tmp_path / "copy")
    copied_parts.commit(unit, results)
    _, copied_instances = copied_parts.read_tables(unit.unit)
    _, instances = parts.read_tables(unit.unit)
    assert copied_instances.equals(instances)


def _config(source: str, output: str) -> Config:
    sets = ["plan.images=8", "ray.max_actors=1", "run.max_failed_fraction=0.3"]
    return job_config(source, output, *sets)


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
        sentences: list[str] = []
        retried = segment(_config(source, output), retry_failed=True, notify=sentences.append)
        expected = serial_run.segment(_config(source, str(tmp_path / "without_failures")))
    finally:
        mended.unlink()
    assert (retried.exit_code, retried.images, retried.failures) == (0, 12, {"not_an_image": 1})
    assert (retried.images_retried, retried.images_recovered) == (5, 4)
    assert retried.images_this_time == 5
    assert "Trying 5 failed images in 2 units again." in sentences
    assert "5 failed images, 4 now ok" in retried.summary()
    assert verify_output(Storage(), output).exit_code == 0
    assert part_bytes_by_unit(retried.prefix) == part_bytes_by_unit(expected.prefix)
    with pytest.raises(UsageError, match="contradict"):
        segment(_config(source, output), retry_failed=True, overwrite=True)


def _two_units_with_failures(folder: Path) -> Config:
    failing = {f"{seed}.png": _png(seed, RAISES) for seed in (1, 2)}
    write_files(folder / "in", {**failing, "3.png": _png(3), "4.png": _png(4)})
    sets = ("plan.images=1", "run.max_failed_fraction=0.5")
    config = job_config(folder / "in", folder / "out", *sets)
    assert segment(config).failed == 2
    return config


def test_failed_images_that_an_outage_left_were_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with without_ray():
        config = _two_units_with_failures(tmp_path)
        monkeypatch.setattr(BrightModel, "forward", MendedModel.forward)
        MendedModel.images_seen = BrightModel.images_seen = 0  # type: ignore[attr-defined]
        with pytest.MonkeyPatch.context() as outage:
            outage.setattr(UnitWorker, "segment", _refuse_first(UnitWorker.segment))
            report = segment(config, retry_failed=True)
        assert (report.status, report.exit_code) == ("incomplete", 1)
        assert (report.images_retried, report.images_recovered, report.failed) == (1, 1, 1)
        assert report.errors == ("1 failed image could not be tried again.", "an outage")
        report = segment(config, retry_failed=True)
        assert (report.exit_code, report.images_retried, report.failed) == (0, 1, 0)
        assert segment(config).nothing_to_do


def _refuse_first(method: Callable[..., PartCounts]) -> Callable[..., PartCounts]:
    calls: list[Unit] = []

    def segment_or_refuse(worker: UnitWorker, unit: Unit, **options: bool) -> PartCounts:
        calls.append(unit)
        if len(calls) == 1:
            raise StorageError("an outage")
        return method(worker, unit, **options)

    return segment_or_refuse


def test_failed_images_that_the_budget_left_were_not_tried(tmp_path: Path) -> None:
    with without_ray():
        config = _two_units_with_failures(tmp_path)
        run = config.run.model_copy(update={"max_images": 1})
        report = segment(config.model_copy(update={"run": run}), retry_failed=True)
    assert (report.status, report.exit_code) == ("success", 0)
    assert (report.images_retried, report.images_this_time, report.failed) == (1, 1, 2)
    assert "1 failed image is left to be tried again." in report.advice()


def test_a_budget_counts_failed_images_and_comes_to_all_of_them(tmp_path: Path) -> None:
    """Eight units of two images, of which one always fails; two failed images a call."""
    pngs = bright_pngs(16)
    files = {f"{i:02}.png": b"no image" if i % 2 else png for i, png in enumerate(pngs.values())}
    source = write_files(tmp_path / "in", files)
    sets = ("plan.images=2", "run.max_failed_fraction=0.9", "run.max_images=2")
    tried: list[set[str]] = []

    def note(worker: UnitWorker, unit: Unit, **options: bool) -> PartCounts:
        tried[-1].add(unit.unit)
        return segment_unit(worker, unit, **options)

    with without_ray(), pytest.MonkeyPatch.context() as patch:
        assert segment(job_config(source, tmp_path / "out", *sets[:2])).failed == 8
        segment_unit = UnitWorker.segment
        patch.setattr(UnitWorker, "segment", note)
        config = job_config(source, tmp_path / "out", *sets)
        random.seed(0)
        for _ in range(20):
            tried.append(set())
            assert segment(config, retry_failed=True).images_retried == 2
    assert {len(units) for units in tried} == {2}
    assert len(set().union(*tried)) == 8
