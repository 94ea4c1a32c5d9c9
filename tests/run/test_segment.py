"""Whole runs on a real Ray, with models that misbehave on demand."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from segcore.config import Config, load_config
from segcore.errors import CheckpointError, ClusterError, UsageError
from segcore.output.committed import list_committed
from segcore.output.layout import EditionLayout
from segcore.output.report import RunReport
from segcore.output.unit_counts import decode_unit_counts, sum_counts
from segcore.run.segment import preview, segment
from segcore.storage import Storage
from segcore.testing.synthetic import render_scene
from tests.support.bright_images import BRIGHT_AREA, bright_png
from tests.support.fake_models import RAISES
from tests.support.jobs import BRIGHT_MODEL, job_config, part_bytes
from tests.support.paths import PYTHONPATH

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def _archive(folder: str, n_images: int, **extra: bytes) -> str:
    """A folder with this many good images, and others by their names."""
    storage = Storage()
    for i in range(n_images):
        storage.write(f"{folder}/good{i:03d}.png", bright_png(i))
    for name, data in extra.items():
        storage.write(f"{folder}/{name}.png", data)
    return folder


def _config(source: str, output: str, *sets: str, model: str = BRIGHT_MODEL) -> Config:
    return job_config(source, output, "plan.images=8", "ray.max_actors=1", *sets, model=model)


def _rows(report: RunReport) -> dict[str, tuple[str, str | None, int]]:
    """File name of each image -> its status, error code and number of instances."""
    storage = Storage()
    rows: dict[str, tuple[str, str | None, int]] = {}
    for info in storage.list(EditionLayout(report.prefix).parts_folder("images")):
        for row in pq.read_table(io.BytesIO(storage.read(info.uri))).to_pylist():
            name = row["image_id"].rpartition("/")[2]
            assert name not in rows
            rows[name] = (row["status"], row["error_code"], row["n_instances"])
    return rows


def _times(output: str) -> dict[Path, int]:
    """When each file was written, nanoseconds."""
    return {path: path.stat().st_mtime_ns for path in Path(output).rglob("*.*")}


def test_a_folder_becomes_tables_and_a_second_run_does_nothing(ray_session, tmp_path):
    broken = {
        "cut": bright_png(1)[:70],
        "void": b"",
        "words": b"no image at all",
        "bad": bright_png(2, RAISES),
    }
    source = _archive(str(tmp_path / "in"), 20, **broken)
    sets = ["ray.max_actors=2", "run.max_failed_fraction=0.5"]
    config = _config(source, str(tmp_path / "out"), *sets)
    assert preview(config).units_done == 0
    report = segment(config)

    assert report.exit_code == 0
    assert (report.images, report.ok, report.failed, report.units) == (24, 20, 4, 3)
    assert report.failures == {"empty": 1, "model_error": 1, "not_an_image": 1, "truncated": 1}
    assert report.images_this_time == 24
    rows = _rows(report)
    assert rows["bad.png"] == ("failed", "model_error", 0)
    assert rows["void.png"] == ("failed", "empty", 0)
    assert rows["good007.png"] == ("ok", None, 1)
    assert len(rows) == 24

    instances = duckdb.sql(f"from read_parquet('{report.prefix}/instances/*.parquet')").to_df()
    assert len(instances) == 20 == report.instances
    for row in instances.itertuples():
        rle = {"size": [row.height, row.width], "counts": row.counts.encode()}
        assert coco_mask.area(rle) == row.area == BRIGHT_AREA
        image = Image.open(row.image_id)
        assert (image.width, image.height) == (row.width, row.height)
        assert np.array_equal(coco_mask.decode(rle) == 1, np.asarray(image)[:, :, 1] > 127)

    layout = EditionLayout(report.prefix)
    latest = json.loads(Path(layout.output.latest_json).read_text())
    assert (latest["edition"], latest["run"]) == (report.edition, report.run)
    edition = json.loads(Path(layout.edition_json).read_text())
    assert edition["model"]["categories"] == [{"id": 1, "name": "bright"}]
    stored = json.loads(Path(layout.run_record(report.run)).read_text())
    assert stored == json.loads(json.dumps(report.to_dict()))
    assert Path(layout.plan(report.run)).exists()
    (counts,) = Path(layout.counts_folder).iterdir()
    table = decode_unit_counts(counts.read_bytes())
    assert sum_counts(table).failures == report.failures
    committed = list_committed(Storage(), layout).newest  # as the workers said, and as listed
    assert table.select(committed.column_names).sort_by("unit").equals(committed)

    before = _times(config.output)
    again = segment(config)
    assert again.exit_code == 0
    assert (again.images, again.images_this_time, again.units_done_before) == (24, 0, 3)
    assert "Nothing was left to do" in " ".join(again.advice())
    assert _times(config.output) == before
    assert preview(config).units_done == 3

    strict = segment(_config(source, str(tmp_path / "out"), "run.max_failed_fraction=0.1"))
    assert strict.exit_code == 3
    assert "4 of 24 images failed" in " ".join(strict.advice())


@pytest.mark.s3
def test_the_same_on_s3(ray_session, s3_prefix, tmp_path):
    source = _archive(f"{s3_prefix}/in", 10, void=b"")
    report = segment(_config(source, f"{s3_prefix}/out", "run.max_failed_fraction=0.5"))
    assert report.exit_code == 0
    assert (report.images, report.ok, report.failed) == (11, 10, 1)
    assert len(_rows(report)) == 11
    names = {
        info.uri.removeprefix(f"{s3_prefix}/out/") for info in Storage().list(f"{s3_prefix}/out")
    }
    assert {"latest.json", f"{report.edition}/edition.json"} < names
    again = segment(_config(source, f"{s3_prefix}/out", "run.max_failed_fraction=0.5"))
    assert again.images_this_time == 0


def test_new_changed_and_deleted_images_and_no_others(ray_session, tmp_path):
    source = _archive(str(tmp_path / "in"), 16)
    config = _config(source, str(tmp_path / "out"))
    first = segment(config)
    parts_before = part_bytes(first.prefix)

    Path(source, "good001.png").unlink()  # in the first of two units
    _archive(source, 0, new=bright_png(99))
    plan = preview(config)
    assert (plan.units_stale, plan.images, plan.images_done) == (1, 16, 15)
    second = segment(config)

    assert second.exit_code == 0
    assert second.units_withdrawn == 1
    rows = _rows(second)
    names = [path.name for path in Path(source).iterdir()]
    assert sorted(rows) == sorted([*names, "good001.png"])  # what is gone keeps its results
    assert (second.images, second.images_unlisted, len(rows)) == (16, 1, 17)
    assert second.images_this_time == 1  # the new one; what is unchanged is carried over
    assert second.sequence == first.sequence + 1
    parts_after = part_bytes(second.prefix)
    unchanged = parts_before.keys() & parts_after.keys()
    assert len(unchanged) == 2
    assert all(parts_before[name] == parts_after[name] for name in unchanged)


@pytest.mark.faults
def test_results_do_not_depend_on_actors_or_cores(ray_session, tmp_path):
    source = str(tmp_path / "in")
    for i in range(4):
        file = io.BytesIO()
        Image.fromarray(render_scene(3, i).pixels).save(file, "PNG")
        Storage().write(f"{source}/{i}.png", file.getvalue())
    layouts = (
        ["ray.max_actors=1", "ray.cpus_per_actor=2", "ray.decode_threads=3"],
        ["ray.max_actors=2", "ray.cpus_per_actor=0.5", "ray.layout=split", "ray.units_in_flight=2"],
    )
    outputs = []
    for i, layout in enumerate(layouts):
        sets = ["plan.images=2", "model.conf=0.05", *layout]
        config = _config(source, str(tmp_path / f"out{i}"), *sets, model="nuclei-yolo11n")
        report = segment(config)
        assert report.exit_code == 0
        assert report.instances > 20
        outputs.append(part_bytes(report.prefix))
    assert all(parts == outputs[0] for parts in outputs)


def test_overwrite_does_everything_again(ray_session, tmp_path):
    source, other = _archive(str(tmp_path / "a"), 4), _archive(str(tmp_path / "b"), 3)
    output = str(tmp_path / "out")
    first = segment(_config(source, output))
    with pytest.raises(UsageError, match="another input"):
        segment(_config(other, output))
    replaced = segment(_config(other, output), overwrite=True)
    assert (replaced.images, replaced.images_this_time) == (3, 3)
    assert len(_rows(replaced)) == 3
    assert replaced.prefix == first.prefix


@pytest.mark.faults
def test_a_model_that_fails_on_the_workers_is_one_clear_error(ray_session, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_MODEL_HOME", "here")  # Ray runs already: its workers lack this
    source = _archive(str(tmp_path / "in"), 1)
    config = _config(
        source, str(tmp_path / "out"), model="tests.support.fake_models:DriverOnlyModel"
    )
    with pytest.raises(ClusterError, match="has no licence for the model"):
        segment(config)


@pytest.mark.parametrize("option", ["model.device=cuda", "ray.gpus_per_actor=1"])
def test_a_gpu_that_is_not_there_is_an_error_at_once(ray_session, tmp_path, option):
    source = _archive(str(tmp_path / "in"), 1)
    with pytest.raises(ClusterError, match="0 GPU"):
        segment(_config(source, str(tmp_path / "out"), option))


def test_a_run_that_cannot_start_says_why(tmp_path):
    source = _archive(str(tmp_path / "in"), 1)
    output = str(tmp_path / "out")
    with pytest.raises(UsageError, match="INPUT is missing"):
        preview(load_config())
    with pytest.raises(UsageError, match="lies inside the input"):
        preview(_config(source, f"{source}/out"))
    with pytest.raises(CheckpointError, match="no-such-model"):
        preview(_config(source, output, model="no-such-model"))
    assert not Path(output).exists()


class Command:
    """The command itself, in a process group of its own, as a terminal would start it."""

    def __init__(self, source: str, output: str, log: Path, delay: float = 0.0) -> None:
        options = ["--model", BRIGHT_MODEL, "--json", "--set", "plan.images=4", "--actors", "1"]
        self.output, self.log = Path(output), log
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "segcore", "segment", source, output, *options],
                env=os.environ | {"PYTHONPATH": PYTHONPATH, "FAKE_MODEL_DELAY": str(delay)},
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )

    def committed(self) -> int:
        """How many units are committed."""
        return len(list(self.output.glob("*/images/*.parquet")))

    def wait_for_commit(self) -> int:
        """Wait until the workers of this very command have committed a unit; `committed` then."""
        self._wait(lambda: "Working with" in self.log.read_text())
        before = self.committed()
        self._wait(lambda: self.committed() > before)
        return self.committed()

    def _wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    def end(self) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        stdout, _ = self.process.communicate()
        return self.process.returncode, stdout, self.log.read_text()


@pytest.mark.faults
def test_killed_then_interrupted_then_finished_equals_undisturbed(ray_session, tmp_path):
    source = _archive(str(tmp_path / "in"), 31)
    output = str(tmp_path / "out")

    command = Command(source, output, tmp_path / "1.log", delay=1.0)
    assert command.wait_for_commit() < 8
    command.process.kill()
    command.end()

    command = Command(source, output, tmp_path / "2.log", delay=1.0)
    stopped_at = command.wait_for_commit()
    os.killpg(command.process.pid, signal.SIGINT)
    code, stdout, stderr = command.end()
    assert code == 130, stderr
    assert json.loads(stdout)["error"]["code"] == "interrupted"
    assert "Run the same command again" in stderr
    assert "Traceback" not in stderr
    assert stopped_at < 8

    code, stdout, stderr = Command(source, output, tmp_path / "3.log").end()
    assert code == 0, stderr
    noise = [line for line in stderr.splitlines() if "ray" in line.lower() or "WARN" in line]
    assert len(noise) == 1
    assert noise[0].startswith("Started a local Ray")
    report = json.loads(stdout)
    assert (report["images"], report["ok"], report["units"]) == (31, 31, 8)
    assert stopped_at <= report["units_done_before"] < 8
    assert report["images_this_time"] <= 31 - 4 * (report["units_done_before"] - 1)

    undisturbed = segment(_config(source, str(tmp_path / "undisturbed"), "plan.images=4"))
    assert part_bytes(report["prefix"]) == part_bytes(undisturbed.prefix)
    assert len(part_bytes(report["prefix"])) == 16


def test_dry_run_prints_json_and_starts_nothing(tmp_path):
    source = _archive(str(tmp_path / "in"), 3)
    options = ["--model", BRIGHT_MODEL, "--json", "--dry-run"]
    done = subprocess.run(
        [sys.executable, "-m", "segcore", "segment", source, str(tmp_path / "out"), *options],
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        check=True,
    )
    plan = json.loads(done.stdout)
    assert (plan["images"], plan["units"], plan["units_done"], plan["kind"]) == (3, 1, 0, "images")
    assert plan["bytes"] == sum(path.stat().st_size for path in Path(source).iterdir())
    assert not (tmp_path / "out").exists()


def test_workers_of_a_local_ray_share_arenas(ray_session):
    import ray

    assert ray.get(ray.remote(os.getenv).remote("MALLOC_ARENA_MAX")) == "4"
