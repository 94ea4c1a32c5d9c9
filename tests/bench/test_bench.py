"""segcore bench: what it measures with, and that all it says is there. No times are judged."""

from __future__ import annotations

import json
import os
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segcore.bench import images, plot, throughput
from segcore.bench.machine import describe, own_peak_mb
from segcore.bench.report import BenchReport
from segcore.bench.run import BenchOptions, images_of_a_pass, run_bench
from segcore.bench.stages import STAGES, StageTimes, measure_stages
from segcore.bench.throughput import Throughput, steady_state
from segcore.cli.bench import command
from segcore.errors import SegcoreError, UsageError
from segcore.images import DecodeOptions, decode_image
from segcore.models.base import ModelOptions
from segcore.models.yolo import model as yolo_seg
from segcore.sources import SourceOptions, read_unit
from segcore.storage import Storage
from tests.support.fake_models import BrightModel
from tests.support.image_files import pixels, save

MODEL = "tests.support.fake_models:BrightModel"


@pytest.mark.parametrize(
    ("text", "size"), [("640x480", (640, 480)), ("12MP", (4000, 3000)), ("1080p", (1920, 1080))]
)
def test_sizes(text, size):
    assert images.parse_size(text) == size


@pytest.mark.parametrize("text", ["640", "0x480", "640x99999", "640X", "big"])
def test_refuses_sizes(text):
    with pytest.raises(UsageError, match="WIDTHxHEIGHT"):
        images.parse_size(text)


@pytest.mark.parametrize("size", [(640, 480), (300, 900), (900, 300)])
def test_synthetic_images_have_the_size_asked_for(tmp_path, size):
    shards = images.synthetic(Storage(), str(tmp_path), size, 5, 2)
    units = images.plan_shards(shards, Storage()).units
    samples = [s for unit in units for s in read_unit(unit, Storage(), SourceOptions())]
    assert len(units) == 3
    assert len(samples) == shards.images == 5
    shapes = {decode_image(s.data, DecodeOptions()).shape for s in samples}
    assert shapes == {(size[1], size[0], 3)}


def _archive(folder, n):
    folder.mkdir()
    for i in range(n):
        (folder / f"{i}.jpg").write_bytes(save(pixels(), "JPEG", quality=80 + i))
    return folder


def test_given_images_are_copied_and_left_alone(tmp_path):
    given = _archive(tmp_path / "given", 5)
    (given / "9.jpg").write_bytes(b"")
    before = sorted((p.name, p.read_bytes()) for p in given.iterdir())
    target = str(tmp_path / "copy")
    shards = images.copied(Storage(), target, str(given), SourceOptions(), 3, 2)
    assert shards.images == 3
    assert shards.read_ms > 0
    assert sorted(os.listdir(target)) == ["shard-00000.tar", "shard-00001.tar"]
    assert sorted((p.name, p.read_bytes()) for p in given.iterdir()) == before


def test_an_archive_without_images_is_refused(tmp_path):
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "1.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match="no image"):
        images.copied(Storage(), str(tmp_path), str(tmp_path / "given"), SourceOptions(), 3, 2)


def test_every_stage_is_timed_and_masks_apart_from_the_rest(tmp_path, monkeypatch):
    class Slow(BrightModel):
        def postprocess(self, raw, prepared):
            sys.modules[__name__].encode_logits()
            return super().postprocess(raw, prepared)

    def encode_logits():
        time.sleep(0.02)

    monkeypatch.setattr(sys.modules[__name__], "encode_logits", encode_logits, raising=False)
    storage, model = Storage(), Slow(ModelOptions(batch_size=1))
    shards = images.synthetic(storage, str(tmp_path / "in"), (64, 48), 8, 4)
    parts = throughput.parts_for(model, storage, str(tmp_path / "out"))
    times = measure_stages(model, shards, parts, storage, 6, 60.0)
    assert tuple(times.ms) == STAGES
    assert times.images == 6
    assert times.ms["masks"] >= 20 > times.ms["postprocess"] > 0
    assert min(times.ms.values()) > 0
    assert sum(times.percent.values()) == pytest.approx(100)
    assert sys.modules[__name__].encode_logits is encode_logits  # put back
    assert len(os.listdir(tmp_path / "out" / "images")) == 2


def test_models_call_what_the_clock_looks_for():
    from segcore.bench.stages import ENCODERS
    from segcore.models.maskrcnn import model as maskrcnn

    assert [name for name in ENCODERS if hasattr(yolo_seg, name)] == list(ENCODERS[:2])
    assert [name for name in ENCODERS if hasattr(maskrcnn, name)] == [ENCODERS[2]]


def _commit(folder, name, rows, at):
    path = folder / "images" / f"{name}.parquet"
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"x": list(range(rows))}), path)
    os.utime(path, (at, at))


def test_steady_state_leaves_the_start_out(tmp_path):
    for i, at in enumerate([100, 101, 110, 120, 130]):
        _commit(tmp_path, f"{i:020x}", 10 + i, at)
    assert steady_state(str(tmp_path), 2) == (12 + 13 + 14, 101, 130)
    with pytest.raises(SegcoreError, match="too few"):
        steady_state(str(tmp_path), 4)


def test_the_plain_loop_segments_everything_once(tmp_path):
    storage = Storage()
    shards = images.synthetic(storage, str(tmp_path / "in"), (64, 48), 9, 2)
    model = BrightModel(ModelOptions(batch_size=2))
    parts = throughput.parts_for(model, storage, str(tmp_path / "out"))
    units = images.plan_shards(shards, storage).units
    assert [throughput.segment_plainly(model, u, parts, storage) for u in units] == [2, 2, 2, 2, 1]
    assert sum(part.ok for part in parts.read_counts(parts.committed_units())) == 9


def _report(**changes):
    ms = dict(zip(STAGES, (1.0, 2.0, 1.0, 10.0, 1.0, 3.0, 2.0), strict=True))
    job = Throughput(
        500, "2 actors", 50.0, 52.0, (51.0, 53.0), 50 / 52, 20.0, 19.0, 0.95, 30.0, 0.0, 400.0
    )
    values = {
        "machine": describe(),
        "model": "m",
        "device": "cpu",
        "batch_size": 1,
        "masks_by": "numpy",
        "stages": (StageTimes("640x480", 9, 7.5, ms),),
        "job": job,
        "price_per_hour": 3.6,
    }
    return BenchReport(**(values | changes))


def test_report():
    report = _report()
    document = json.loads(json.dumps(report.to_dict()))
    assert document["cost_per_million_images"] == pytest.approx(20.0)
    assert document["stages"][0]["percent"]["forward"] == pytest.approx(50.0)
    assert document["stages"][0]["total_ms"] == pytest.approx(20.0)
    words = report.summary()
    for expected in (
        "640x480",
        "10.00   50.0 %",
        "50.0 images/s",
        "0.96",
        "20.00 for a million",
        "efficiency 0.95",
    ):
        assert expected in words
    assert "not known" in words  # an actor's memory, here 0
    assert _report(job=None).cost_per_million is None
    assert _report(price_per_hour=None).cost_per_million is None
    assert own_peak_mb() > 50


def test_plot(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib (extra `plot`) is not installed")
    path = tmp_path / "bench.png"
    plot.draw(str(path), "m", _report().stages)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="No such file"):
        plot.draw(str(tmp_path / "none" / "bench.png"), "m", _report().stages)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs matplotlib") as caught:
        command(plot=str(path))  # before anything is measured
    assert "segcore[plot]" in caught.value.hint


@pytest.mark.parametrize(
    ("ms", "processes", "images"), [(200.0, 2, 150), (1e6, 2, 24), (0.1, 8, 2000), (1e6, 64, 192)]
)
def test_a_pass_takes_about_a_quarter_of_a_minute(ms, processes, images):
    assert images_of_a_pass(ms, processes) == images


def test_refuses_options_that_contradict():
    with pytest.raises(UsageError, match="--size"):
        command(input="photos", size=["vga"])
    with pytest.raises(UsageError, match="--imgsz 100"):
        command(imgsz=100)
    reduced = DecodeOptions(scale="reduced")
    with pytest.raises(UsageError, match="reduced"):
        run_bench(BenchOptions(MODEL, decode=reduced, sizes=("64x48",), whole_job=False))
    with pytest.raises(UsageError, match="--price-per-hour"):
        run_bench(BenchOptions(MODEL, whole_job=False, price_per_hour=1.0))


@pytest.mark.ray
def test_the_whole_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    monkeypatch.setattr("segcore.bench.run.cores", lambda: 1)
    options = BenchOptions(MODEL, sizes=("64x48",), images=24, stage_images=4)
    said: list[str] = []
    report = run_bench(options, said.append)
    assert report.job.images == 24
    assert report.job.job_images_per_s > 0
    assert min(report.job.plain_passes) > 0
    assert report.job.efficiency == pytest.approx(
        report.job.job_images_per_s / report.job.plain_images_per_s
    )
    assert "1 actor" in report.job.workers
    if sys.platform == "linux":
        assert report.job.actor_peak_mb > 50
        assert report.job.job_cpu_ms > 0
    assert report.job.plain_cpu_ms > 0
    assert said
