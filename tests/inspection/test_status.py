"""Whether a run is at work, was stopped or died: its record against its lease."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from segcore.config import load_config
from segcore.errors import AccessDenied
from segcore.inspection.status import Status, read_status
from segcore.lease.hold import hold_lease
from segcore.lease.holder import Holder
from segcore.output.report import RUNNING, RunReport
from segcore.storage import ObjectInfo, Storage, join
from tests.support import serial_run
from tests.support.lease_files import lease_folder

storage = Storage()


def _record(report: RunReport) -> str:
    return join(report.prefix, "runs", f"{report.run}.json")


def _run(folder: str) -> RunReport:
    image = cv2.imencode(".png", np.zeros((24, 32, 3), np.uint8))[1].tobytes()
    storage.write(f"{folder}/in/a.png", image)
    flags = {
        "input": ("input", f"{folder}/in"),
        "output": ("output", f"{folder}/out"),
        "model": ("model.name", "tests.support.fake_models:BrightModel"),
    }
    report = serial_run.segment(load_config(flags=flags))
    storage.write(_record(report), replace(report, status=RUNNING, started="just now").to_json())
    return report


@pytest.fixture
def report(folder: str) -> RunReport:
    """A run whose record says that it goes on."""
    return _run(folder)


def _lease(report: RunReport, generation: int = 7, **changes: object) -> str:
    """A lease file by a process of another machine, unless told otherwise."""
    there = {"machine": "f" * 16, "host": "far-away", "pid": 4711, **changes}
    uri = join(lease_folder(report.prefix), f"{generation:08d}.json")
    storage.write(uri, Holder.here(60).model_copy(update=there).to_json())
    return uri


def _states(found: Status) -> tuple[str, str | None]:
    return found.state, found.lease and found.lease.state


def test_without_a_lease_nobody_is_at_work(report: RunReport) -> None:
    found = read_status(storage, report.output)
    assert _states(found) == ("died", None)
    assert found.pace is None
    assert "died, since just now" in found.summary()


def test_a_run_of_this_machine(report: RunReport) -> None:
    with hold_lease(storage, lease_folder(report.prefix), 60):
        found = read_status(storage, report.output)
    assert _states(found) == ("running", "held")
    assert found.pace is not None
    assert found.lease is not None
    assert (found.lease.pid, found.lease.host) == (os.getpid(), Holder.here(1).host)
    assert 0 <= (found.lease.last_heartbeat_s or 0.0) < 60
    assert f"process {os.getpid()}" in found.summary()
    assert "last sign of life 0:" in found.summary()
    assert found.to_dict()["lease"]["state"] == "held"

    after = read_status(storage, report.output)  # it let go, and its record has no end
    assert _states(after) == ("stopped", "released")
    assert "lease" not in after.summary()

    me = Holder.here(60)
    _lease(
        report,
        machine=me.machine,
        host=me.host,
        pid=me.pid,
        process_start_ticks=me.process_start_ticks + 1,
    )
    assert _states(read_status(storage, report.output)) == ("died", "gone")


def test_a_run_of_another_machine_is_judged_by_its_heartbeat(report: RunReport) -> None:
    _lease(report)
    found = read_status(storage, report.output)
    assert _states(found) == ("running", "held")
    assert "host far-away, process 4711" in found.summary()
    uris = {info.uri for info in storage.list(lease_folder(report.prefix))}
    assert len(uris) == 1  # no traces of looking

    _lease(report, ttl_s=0.001)
    time.sleep(2.1)  # the storage of S3 dates to the second
    found = read_status(storage, report.output)
    assert _states(found) == ("died", "expired")
    assert found.lease is not None
    assert (found.lease.last_heartbeat_s or 0.0) > 1


def test_a_lease_file_that_is_none_of_ours(report: RunReport) -> None:
    storage.write(join(lease_folder(report.prefix), "00000007.json"), b"{")
    found = read_status(storage, report.output)
    assert _states(found) == ("running", "held")
    assert "an unknown holder" in found.summary()
    assert found.lease is not None
    assert found.lease.pid is None


def test_a_stopped_process_of_this_machine_may_wake_up(report: RunReport) -> None:
    me = Holder.here(0.001)
    _lease(report, **me.model_dump())
    time.sleep(2.1)
    assert _states(read_status(storage, report.output)) == ("running", "expired")


def test_the_end_of_a_run_is_not_taken_for_its_death(report: RunReport) -> None:
    """It ends between the look at its lease and the look at its record."""

    class Meanwhile(Storage):
        def list_dated(self, prefix: str) -> Iterator[tuple[ObjectInfo, float]]:
            yield from super().list_dated(prefix)
            if prefix.endswith("/runs"):  # listed, and then the run ends
                self.write(_record(report), report.to_json())
                _lease(report, released=True)

    _lease(report, released=True, generation=6)
    _lease(report)
    assert _states(read_status(Meanwhile(), report.output)) == ("success", "held")
    storage.write(_record(report), replace(report, status=RUNNING).to_json())
    assert _states(read_status(storage, report.output)) == ("stopped", "released")


def test_a_run_that_begins_meanwhile_is_no_dead_one(report: RunReport) -> None:
    class Meanwhile(Storage):
        def list_dated(self, prefix: str) -> Iterator[tuple[ObjectInfo, float]]:
            if prefix.endswith("/runs"):
                _lease(report, generation=8)
            yield from super().list_dated(prefix)

    _lease(report, released=True)
    assert _states(read_status(Meanwhile(), report.output)) == ("running", "held")


class ReadOnly(Storage):
    def write(self, uri: str, data: bytes) -> None:
        raise AccessDenied(f"No permission for {uri}.")


@pytest.mark.parametrize(
    ("ago_s", "state"), [(0, "running"), (300, "running"), (2000, "died"), (-2000, "running")]
)
def test_without_leave_to_write_clocks_may_differ(tmp_path: Path, ago_s: float, state: str) -> None:
    report = _run(str(tmp_path))
    os.utime(_lease(report), (time.time() - ago_s,) * 2)
    found = read_status(ReadOnly(), report.output)
    assert found.state == state
    assert found.lease is not None
    assert (found.lease.last_heartbeat_s is None) == (state == "running")
