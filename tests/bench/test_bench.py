"""segcore bench: its measuring tools work, and its report is complete. No times are judged."""

from __future__ import annotations

import json
import os
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segcore.bench import images, plot, throughput
from segcore.bench.machine import describe_machine, own_peak_memory_mb
from segcore.bench.report import BenchReport
from segcore.bench.run import BenchOptions, choose_job_images, run_bench
from segcore.bench.stages import ENCODERS, STAGES, StageTimes, measure_stages
from segcore.bench.throughput import Throughput, find_steady_state
from segcore.cli.bench import command
from segcore.errors import SegcoreError, UsageError
from segcore.images import DecodeOptions, decode_image
from segcore.models.base import ModelOptions
from segcore.models.maskrcnn import model as maskrcnn
from segcore.models.yolo import model as yolo
from segcore.sources import SourceOptions, read_unit
from segcore.storage import Storage
from tests.support.fake_models import BrightModel
from tests.support.image_files import pixels, save

MODEL = "tests.support.fake_models:BrightModel"


@pytest.mark.parametrize(
    ("text", "size"), [("640x480", (640, 480)), ("12MP", (4000, 3000)), ("1080p", (1920, 1080))]
)
def test_a_size_is_a_name_or_two_numbers(text, size):
    assert images.parse_size(text) == size


@pytest.mark.parametrize("text", ["640", "0x480", "640x99999", "640X", "big"])
def test_other_sizes_are_refused(text):
    with pytest.raises(UsageError, match="WIDTHxHEIGHT"):
        images.parse_size(text)


@pytest.mark.parametrize("size", [(640, 480), (300, 900), (900, 300)])
def test_synthetic_images_have_the_size_asked_for(tmp_path, size):
    archive = images.write_synthetic(Storage(), str(tmp_path), size, 5, 2)
    units = images.plan_archive(archive, Storage()).units
    samples = [s for unit in units for s in read_unit(unit, Storage(), SourceOptions())]
    assert len(units) == 3
    assert len(samples) == archive.images == 5
    shapes = {decode_image(s.data, DecodeOptions()).shape for s in samples}
    assert shapes == {(size[1], size[0], 3)}


def _folder_of_jpegs(folder, n_images):
    folder.mkdir()
    for i in range(n_images):
        (folder / f"{i}.jpg").write_bytes(save(pixels(), "JPEG", quality=80 + i))
    return folder


def test_images_of_the_user_are_copied_and_left_unchanged(tmp_path):
    original = _folder_of_jpegs(tmp_path / "original", 5)
    (original / "9.jpg").write_bytes(b"")
    before = sorted((p.name, p.read_bytes()) for p in original.iterdir())
    target = str(tmp_path / "copy")
    archive = images.copy_images(Storage(), target, str(original), SourceOptions(), 3, 2)
    assert archive.images == 3
    assert archive.read_ms > 0
    assert sorted(os.listdir(target)) == ["shard-00000.tar", "shard-00001.tar"]
    assert sorted((p.name, p.read_bytes()) for p in original.iterdir()) == before


def test_an_archive_without_images_is_refused(tmp_path):
    original = tmp_path / "original"
    original.mkdir()
    (original / "1.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match="no image"):
        images.copy_images(Storage(), str(tmp_path), str(original), SourceOptions(), 3, 2)


def test_every_stage_is_timed_and_masks_on_their_own(tmp_path, monkeypatch):
    class SlowMasks(BrightModel):
        def postprocess(self, raw, prepared):
            sys.modules[__name__].encode_logits()
            return super().postprocess(raw, prepared)

    def encode_logits():
        time.sleep(0.02)

    monkeypatch.setattr(sys.modules[__name__], "encode_logits", encode_logits, raising=False)
    storage, model = Storage(), SlowMasks(ModelOptions(batch_size=1))
    archive = images.write_synthetic(storage, str(tmp_path / "in"), (64, 48), 8, 4)
    parts = throughput.make_parts(model, storage, str(tmp_path / "out"))
    times = measure_stages(model, archive, parts, storage, 6, 60.0)
    assert tuple(times.ms) == STAGES
    assert times.images == 6
    assert times.ms["masks"] >= 20 > times.ms["postprocess"] > 0
    assert min(times.ms.values()) > 0
    assert sum(times.percent.values()) == pytest.approx(100)
    assert sys.modules[__name__].encode_logits is encode_logits  # put back
    assert len(os.listdir(tmp_path / "out" / "images")) == 2


def test_the_models_call_the_encoders_that_are_timed():
    assert [name for name in ENCODERS if hasattr(yolo, name)] == list(ENCODERS[:2])
    assert [name for name in ENCODERS if hasattr(maskrcnn, name)] == [ENCODERS[2]]


def _write_part(folder, name, n_rows, modified):
    path = folder / "images" / f"{name}.parquet"
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"x": list(range(n_rows))}), path)
    os.utime(path, (modified, modified))


def test_steady_state_leaves_the_start_out(tmp_path):
    for i, modified in enumerate([100, 101, 110, 120, 130]):
        _write_part(tmp_path, f"{i:020x}", 10 + i, modified)
    assert find_steady_state(str(tmp_path), 2) == (12 + 13 + 14, 101, 130)
    with pytest.raises(SegcoreError, match="too few"):
        find_steady_state(str(tmp_path), 4)


def test_the_plain_loop_segments_everything_once(tmp_path):
    storage = Storage()
    archive = images.write_synthetic(storage, str(tmp_path / "in"), (64, 48), 9, 2)
    model = BrightModel(ModelOptions(batch_size=2))
    parts = throughput.make_parts(model, storage, str(tmp_path / "out"))
    units = images.plan_archive(archive, storage).units
    assert [throughput.segment_unit(model, u, parts, storage) for u in units] == [2, 2, 2, 2, 1]
    assert sum(part.ok for part in parts.read_counts(parts.committed_units())) == 9


def _report(**changes):
    ms = dict(zip(STAGES, (1.0, 2.0, 1.0, 10.0, 1.0, 3.0, 2.0), strict=True))
    job = Throughput(
        500, 8e4, "2 actors", 50.0, 52.0, (51.0, 53.0), 50 / 52, 20.0, 19.0, 0.95, 30.0, 0.0, 400.0
    )
    values = {
        "machine": describe_machine(),
        "model": "m",
        "device": "cpu",
        "batch_size": 1,
        "masks_by": "numpy",
        "stages": (StageTimes("640x480", 9, 7.5, ms),),
        "job": job,
        "price_per_hour": 3.6,
    }
    return BenchReport(**(values | changes))


def test_the_report_has_every_number_as_json_and_as_text():
    report = _report()
    document = json.loads(json.dumps(report.to_dict()))
    assert document["cost_per_million_images"] == pytest.approx(20.0)
    assert document["stages"][0]["percent"]["forward"] == pytest.approx(50.0)
    assert document["stages"][0]["total_ms"] == pytest.approx(20.0)
    summary = report.summary()
    for expected in (
        "640x480",
        "10.00   50.0 %",
        "50.0 images/s",
        "0.96",
        "20.00 for a million",
        "efficiency 0.95",
    ):
        assert expected in summary
    assert "not known" in summary  # an actor's memory, here 0
    assert _report(job=None).cost_per_million is None
    assert _report(price_per_hour=None).cost_per_million is None
    assert own_peak_memory_mb() > 50


@pytest.mark.slow
def test_a_plot_is_drawn_or_refused_before_measuring(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib (extra `plot`) is not installed")
    path = tmp_path / "bench.png"
    plot.draw_plot(str(path), "m", _report().stages)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="No such file"):
        plot.draw_plot(str(tmp_path / "none" / "bench.png"), "m", _report().stages)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs matplotlib") as caught:
        command(plot=str(path))  # before anything is measured
    assert "segcore[plot]" in caught.value.hint


@pytest.mark.parametrize(
    ("ms", "processes", "n_images"), [(200.0, 2, 150), (1e6, 2, 24), (0.1, 8, 2000), (1e6, 64, 192)]
)
def test_a_pass_takes_about_a_quarter_of_a_minute(ms, processes, n_images):
    assert choose_job_images(ms, processes) == n_images


@pytest.mark.parametrize(
    ("seconds", "n_images"), [(1, 24), (300, 2 * 100 * 10), (3000, 2 * 1000 * 10)]
)
def test_a_stated_time_says_on_how_many_images_the_job_runs(seconds, n_images):
    assert choose_job_images(100.0, 2, seconds) == n_images


def test_a_number_of_images_and_a_time_contradict_each_other():
    with pytest.raises(UsageError, match="--seconds"):
        run_bench(BenchOptions(MODEL, images=100, seconds=10))


def test_contradicting_options_are_refused():
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
@pytest.mark.faults
def test_a_whole_measurement(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    monkeypatch.setattr("segcore.bench.run.n_cores", lambda: 1)
    options = BenchOptions(MODEL, sizes=("64x48",), images=24, stage_images=4)
    messages: list[str] = []
    report = run_bench(options, messages.append)
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
    assert messages
