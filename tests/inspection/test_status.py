"""Whether a run is at work, was stopped or died: its record against its lease."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from segcore.errors import AccessDenied
from segcore.inspection.status import Status, read_status
from segcore.lease.hold import hold_lease
from segcore.lease.holder import Holder
from segcore.output.layout import EditionLayout
from segcore.output.report import RUNNING, RunReport
from segcore.storage import ObjectInfo, Storage, join
from tests.support import serial_run
from tests.support.bright_images import bright_png
from tests.support.jobs import job_config

storage = Storage()


def _run_in_progress(folder: str) -> RunReport:
    """A run whose record says that it is in progress."""
    storage.write(f"{folder}/in/a.png", bright_png(0))
    report = serial_run.segment(job_config(f"{folder}/in", f"{folder}/out"))
    serial_run.write_record(replace(report, status=RUNNING, started="just now"))
    return report


@pytest.fixture
def report(folder: str) -> RunReport:
    """A run whose record says that it is in progress."""
    return _run_in_progress(folder)


def _lease_folder(report: RunReport) -> str:
    return EditionLayout(report.prefix).lease_folder


def _write_lease(report: RunReport, generation: int = 7, **changes: object) -> str:
    """A lease file by a process of another machine, unless `changes` say otherwise."""
    elsewhere = {"machine": "f" * 16, "host": "far-away", "pid": 4711, **changes}
    uri = join(_lease_folder(report), f"{generation:08d}.json")
    storage.write(uri, Holder.of_current_process(60).model_copy(update=elsewhere).to_json())
    return uri


def _states(status: Status) -> tuple[str, str | None]:
    """States of the run and of its lease."""
    return status.state, status.lease and status.lease.state


def test_without_a_lease_nobody_is_at_work(report: RunReport) -> None:
    status = read_status(storage, report.output)
    assert _states(status) == ("died", None)
    assert status.pace is None
    assert "died, since just now" in status.summary()


def test_a_run_of_this_machine(report: RunReport) -> None:
    with hold_lease(storage, _lease_folder(report), 60):
        status = read_status(storage, report.output)
    assert _states(status) == ("running", "held")
    assert status.pace is not None
    assert status.lease is not None
    assert (status.lease.pid, status.lease.host) == (os.getpid(), Holder.of_current_process(1).host)
    assert 0 <= (status.lease.last_heartbeat_s or 0.0) < 60
    assert f"process {os.getpid()}" in status.summary()
    assert "last heartbeat 0:" in status.summary()
    assert status.to_dict()["lease"]["state"] == "held"

    after = read_status(storage, report.output)  # it released the lease, and its record has no end
    assert _states(after) == ("stopped", "released")
    assert "lease" not in after.summary()

    this_process = Holder.of_current_process(60)
    _write_lease(
        report,
        machine=this_process.machine,
        host=this_process.host,
        pid=this_process.pid,
        process_start_ticks=this_process.process_start_ticks + 1,
    )
    assert _states(read_status(storage, report.output)) == ("died", "gone")


@pytest.mark.slow
def test_a_run_of_another_machine_is_judged_by_its_heartbeat(report: RunReport) -> None:
    _write_lease(report)
    status = read_status(storage, report.output)
    assert _states(status) == ("running", "held")
    assert "host far-away, process 4711" in status.summary()
    uris = {info.uri for info in storage.list(_lease_folder(report))}
    assert len(uris) == 1  # reading the lease leaves no trace

    _write_lease(report, ttl_s=0.001)
    time.sleep(2.1)  # the storage of S3 dates to the second
    status = read_status(storage, report.output)
    assert _states(status) == ("died", "expired")
    assert status.lease is not None
    assert (status.lease.last_heartbeat_s or 0.0) > 1


def test_a_lease_file_that_is_not_one_of_segcores(report: RunReport) -> None:
    storage.write(join(_lease_folder(report), "00000007.json"), b"{")
    status = read_status(storage, report.output)
    assert _states(status) == ("running", "held")
    assert "an unknown holder" in status.summary()
    assert status.lease is not None
    assert status.lease.pid is None


@pytest.mark.slow
def test_a_stopped_process_of_this_machine_may_wake_up(report: RunReport) -> None:
    this_process = Holder.of_current_process(0.001)
    _write_lease(report, **this_process.model_dump())
    time.sleep(2.1)
    assert _states(read_status(storage, report.output)) == ("running", "expired")


def test_the_end_of_a_run_is_not_taken_for_its_death(report: RunReport) -> None:
    """It ends between the look at its lease and the look at its record."""

    class EndsMeanwhile(Storage):
        def list_folder(self, prefix: str) -> Iterator[tuple[ObjectInfo, float]]:
            yield from super().list_folder(prefix)
            if prefix.endswith("/runs"):  # listed, and then the run ends
                serial_run.write_record(report)
                _write_lease(report, released=True)

    _write_lease(report, released=True, generation=6)
    _write_lease(report)
    assert _states(read_status(EndsMeanwhile(), report.prefix)) == ("success", "held")
    serial_run.write_record(replace(report, status=RUNNING))
    assert _states(read_status(storage, report.output)) == ("stopped", "released")


def test_a_run_that_begins_meanwhile_is_not_taken_for_dead(report: RunReport) -> None:
    class BeginsMeanwhile(Storage):
        def list_folder(self, prefix: str) -> Iterator[tuple[ObjectInfo, float]]:
            if prefix.endswith("/runs"):
                _write_lease(report, generation=8)
            yield from super().list_folder(prefix)

    _write_lease(report, released=True)
    assert _states(read_status(BeginsMeanwhile(), report.output)) == ("running", "held")


class ReadOnlyStorage(Storage):
    def write(self, uri: str, data: bytes) -> None:
        raise AccessDenied(f"No permission for {uri}.")


@pytest.mark.parametrize(
    ("ago_s", "state"), [(0, "running"), (300, "running"), (2000, "died"), (-2000, "running")]
)
def test_without_permission_to_write_clocks_may_differ(
    tmp_path: Path, ago_s: float, state: str
) -> None:
    report = _run_in_progress(str(tmp_path))
    os.utime(_write_lease(report), (time.time() - ago_s,) * 2)
    status = read_status(ReadOnlyStorage(), report.output)
    assert status.state == state
    assert status.lease is not None
    assert (status.lease.last_heartbeat_s is None) == (state == "running")
