"""Runs and the lease: a second run is refused, and one that lost the lease deletes nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from segcore.config import Config, load_config
from segcore.inspection.status import read_status
from segcore.inspection.verify import verify_output
from segcore.lease.hold import hold_lease
from segcore.lease.lease import LeaseHeld, LeaseLost
from segcore.output.report import RunReport
from segcore.run.job import prepare_job, refresh_job
from segcore.run.segment import preview, segment
from segcore.storage import join
from tests.support import serial_run
from tests.support.lease_files import foreign_holder, lease_folder, storage, write_lease_file
from tests.support.paths import PYTHONPATH


def _write_images(folder: str, n_images: int) -> None:
    rng = np.random.default_rng(1)
    for i in range(n_images):
        pixels = np.zeros((24, 32, 3), np.uint8)
        y, x = rng.integers(1, 12, 2)
        pixels[y : y + 9, x : x + 12, 1] = 220
        storage.write(f"{folder}/{i:03d}.png", cv2.imencode(".png", pixels)[1].tobytes())


def _config(folder: Path, *settings: str) -> Config:
    flags = {
        "input": ("input", str(folder / "in")),
        "output": ("output", str(folder / "out")),
        "model": ("model.name", "tests.support.fake_models:BrightModel"),
    }
    return load_config(sets=["plan.images=4", *settings], flags=flags)


@pytest.fixture
def finished(tmp_path: Path) -> RunReport:
    """A finished run of 10 images whose input has changed since."""
    _write_images(str(tmp_path / "in"), 10)
    report = serial_run.segment(_config(tmp_path))
    storage.write(join(report.prefix, "runs", f"{report.run}.json"), report.to_json())
    (tmp_path / "in" / "000.png").rename(tmp_path / "in" / "new.png")
    return report


def _read_files(folder: Path) -> dict[str, bytes]:
    """The content of all files except those of the lease, by path."""
    paths = [path for path in folder.rglob("*.*") if path.parent.name != "lease"]
    return {str(path): path.read_bytes() for path in paths}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_run_is_refused_and_changes_nothing(
    tmp_path: Path, finished: RunReport, overwrite: bool
) -> None:
    before = _read_files(tmp_path)
    with hold_lease(storage, lease_folder(finished.prefix), 60):
        with pytest.raises(LeaseHeld) as caught:
            segment(_config(tmp_path), overwrite=overwrite)
        assert preview(_config(tmp_path), overwrite=overwrite).units  # needs no lease
    assert caught.value.exit_code == 1
    assert _read_files(tmp_path) == before


def test_a_dry_run_takes_no_lease(tmp_path: Path) -> None:
    _write_images(str(tmp_path / "in"), 3)
    preview(_config(tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("step", ["carry_over", "run_passes"])
def test_a_run_that_lost_its_lease_deletes_and_publishes_nothing(
    tmp_path: Path, finished: RunReport, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    parts = {path for path in _read_files(tmp_path) if "/images/" in path}
    latest = (tmp_path / "out" / "latest.json").read_bytes()

    def take_over(*args: object) -> set[str]:
        write_lease_file(finished.prefix, foreign_holder(60.0), 99)
        return set()

    serial_run.without_ray(monkeypatch)
    monkeypatch.setattr(f"segcore.run.segment.{step}", take_over)
    with pytest.raises(LeaseLost, match="host far-away"):
        segment(_config(tmp_path))
    if step == "carry_over":
        assert parts <= set(_read_files(tmp_path))
    assert (tmp_path / "out" / "latest.json").read_bytes() == latest
    records = Path(finished.prefix, "runs").glob("*.json")
    statuses = {json.loads(path.read_bytes())["status"] for path in records}
    assert statuses == {"success", "running"}


def test_a_run_that_waited_sees_what_the_other_one_committed(tmp_path: Path) -> None:
    _write_images(str(tmp_path / "in"), 10)
    config = _config(tmp_path)
    job = prepare_job(config)
    assert job.committed == frozenset()

    report = serial_run.segment(config)
    storage.write(join(report.prefix, "runs", f"{report.run}.json"), report.to_json())
    job = refresh_job(job)
    assert job.committed == set(job.planned)
    assert (job.last_run and job.last_run.run) == report.run
    assert refresh_job(job, overwrite=True).committed == frozenset()

    other = replace(report, run="0" * 16, sequence=2)
    storage.write(join(report.prefix, "runs", f"{other.run}.json"), other.to_json())
    assert refresh_job(job).sequence == 3


class Command:
    """`segcore segment`, started as by a terminal."""

    def __init__(self, folder: Path, log_name: str, delay_s: float = 0.0) -> None:
        self.log, self.folder = folder / log_name, folder
        arguments = ["segment", str(folder / "in"), str(folder / "out"), "--actors", "1", "--json"]
        arguments += ["--model", "tests.support.fake_models:BrightModel", "--set", "plan.images=2"]
        with self.log.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "segcore", *arguments],
                env=os.environ | {"PYTHONPATH": PYTHONPATH, "FAKE_MODEL_DELAY": str(delay_s)},
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )

    def wait(self) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        stdout, _ = self.process.communicate()
        return self.process.returncode, stdout, self.log.read_text()

    def wait_for_first_unit(self) -> None:
        while not list(self.folder.glob("out/*/images/*.parquet")):
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)


@pytest.mark.ray
@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_second_command_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    _write_images(str(tmp_path / "in"), 40)
    output = str(tmp_path / "out")
    first = Command(tmp_path, "1.log", delay_s=2.0)  # 80 s of work, cut short
    first.wait_for_first_unit()

    code, stdout, stderr = Command(tmp_path, "2.log").wait()
    assert (code, json.loads(stdout)["error"]["code"]) == (1, "lease_held")
    assert f"host {socket.gethostname()}, process {first.process.pid}" in stderr
    assert "Traceback" not in stderr
    assert first.process.poll() is None
    running = read_status(storage, output)
    assert running.lease is not None
    assert (running.state, running.lease.state) == ("running", "held")
    assert running.lease.pid == first.process.pid

    os.killpg(first.process.pid, signal.SIGKILL)
    first.wait()
    dead = read_status(storage, output)
    assert dead.lease is not None
    assert (dead.state, dead.lease.state, dead.pace) == ("died", "gone", None)

    code, stdout, stderr = Command(tmp_path, "3.log").wait()
    assert code == 0, stderr
    assert "Waiting" not in stderr
    report = json.loads(stdout)
    assert (report["images"], report["ok"], report["units"]) == (40, 40, 20)
    assert report["units_done_before"] > 0
    ended = read_status(storage, output)
    assert ended.lease is not None
    assert (ended.state, ended.lease.state) == ("success", "released")
    assert verify_output(storage, output).exit_code == 0
