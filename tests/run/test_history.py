"""Every execution that began is on record for good, however it ended."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from segcore.errors import Interrupted, NothingFound, StorageError
from segcore.inspection.status import read_status
from segcore.lease.lease import LeaseLost
from segcore.output.executions import new_execution_id, read_recent_executions
from segcore.output.layout import EditionLayout
from segcore.output.report import RUNNING, RunReport
from segcore.output.run_records import read_run_records
from segcore.run.job import Job
from segcore.run.passes import Notify, Pass, RunState
from segcore.run.segment import segment
from segcore.storage import Storage
from tests.support import serial_run
from tests.support.archives import tar_bytes
from tests.support.bright_images import bright_png
from tests.support.jobs import job_config, write_files

ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Has an archive `in` of two images."""
    write_files(tmp_path / "in", {f"{i}.png": bright_png(i) for i in range(2)})
    return tmp_path


def _segment(folder: Path, *sets: str) -> RunReport:
    return segment(job_config(folder / "in", folder / "out", *sets))


def _history(folder: Path) -> dict[str, bytes]:
    """Bytes of all records of executions by their ids."""
    files = (folder / "out").glob("*/runs/history/*.json")
    return {path.name.removesuffix(".json"): path.read_bytes() for path in files}


def _log(folder: Path, execution: str) -> str:
    """The log of an execution."""
    pieces = sorted((folder / "out").glob(f"*/runs/history/{execution}/*.log"))
    return "".join(path.read_text() for path in pieces)


def _fail(error: BaseException) -> serial_run.RunPasses:
    """Passes that do the first unit, and then raise."""

    def run(job: Job, passes: Sequence[Pass], state: RunState, notify: Notify) -> None:
        serial_run.run_passes(job, [Pass(passes[0].units[:1])], state, notify)
        raise error

    return run


@pytest.mark.slow
def test_the_history_grows_and_what_it_has_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = [
        (_fail(StorageError("The disk is gone.")), StorageError, "failed", "The disk is gone."),
        (_fail(ZeroDivisionError("oops")), ZeroDivisionError, "failed", "ZeroDivisionError: oops"),
        (_fail(KeyboardInterrupt()), Interrupted, "interrupted", "Stopped by Ctrl-C or SIGTERM."),
        (_fail(LeaseLost("Another run took over.")), LeaseLost, "failed", "Another run took over."),
        (serial_run.run_passes, None, "success", ""),
    ]
    before: dict[str, bytes] = {}
    for i, (run, error, status, message) in enumerate(ends):
        write_files(folder / "in", {f"new{i}.png": bright_png(i)})
        serial_run.without_ray(monkeypatch, run)
        if error is None:
            _segment(folder)
        else:
            with pytest.raises(error):
                _segment(folder)
        history = _history(folder)
        assert before.items() < history.items()
        (execution,) = history.keys() - before.keys()
        assert ID.fullmatch(execution)
        record = json.loads(history[execution])
        assert (record["execution"], record["status"]) == (execution, status)
        assert (record["errors"] or [""])[0] == message
        assert record["started"] <= record["finished"]
        assert ("images" in record) == (status == "success")  # nobody has counted the others
        log = _log(folder, execution)
        assert "Plan: " in log.splitlines()[0]
        assert (message or "Ended: success") in log
        assert ("Traceback" in log) == (error is ZeroDivisionError)
        assert record["log"].endswith(execution)
        before = history
    assert _segment(folder).nothing_to_do  # writes nothing
    assert _history(folder) == before

    (prefix,) = {str(path.parent) for path in (folder / "out").glob("*/edition.json")}
    layout = EditionLayout(prefix)
    newest = read_run_records(Storage(), layout)[-1]
    assert newest.values == record
    status_now = read_status(Storage(), str(folder / "out"))
    assert len(status_now.executions) == len(ends)
    assert {end.status for end in status_now.executions} == {"failed", "interrupted", "success"}
    shown = status_now.summary()
    assert "history" in shown
    assert "failed: The disk is gone." in shown
    assert [end.execution for end in read_recent_executions(Storage(), layout, 2)] == sorted(
        before, reverse=True
    )[:2]


def test_the_death_of_an_execution_is_recorded_by_the_next_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serial_run.without_ray(monkeypatch)
    first = _segment(folder)
    (folder / "in" / "new.png").write_bytes(bright_png(5))
    killed = replace(first, status=RUNNING, execution=new_execution_id(), finished="")
    serial_run.write_record(killed)
    second = _segment(folder)
    history = {name: json.loads(data) for name, data in _history(folder).items()}
    assert {name: record["status"] for name, record in history.items()} == {
        first.execution: "success",
        killed.execution: "died",
        second.execution: "success",
    }
    assert history[killed.execution]["started"] == first.started


def test_an_execution_that_finds_no_image_is_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serial_run.without_ray(monkeypatch)
    write_files(tmp_path / "in", {"a.tar": tar_bytes([("readme.txt", b"no image")])})
    for _ in range(2):  # the second one finds nothing to do, and yet no image
        with pytest.raises(NothingFound, match="holds no images"):
            _segment(tmp_path)
    assert {json.loads(data)["status"] for data in _history(tmp_path).values()} == {"nothing_found"}
    assert not (tmp_path / "out" / "latest.json").exists()
    empty = _segment(tmp_path, "source.allow_empty=true")
    assert (empty.status, empty.exit_code, empty.images) == ("success", 0, 0)
    assert (tmp_path / "out" / "latest.json").exists()


def test_a_damaged_record_of_the_history_is_shown_as_such(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serial_run.without_ray(monkeypatch)
    report = _segment(folder)
    layout = EditionLayout(report.prefix)
    for name, data in (("20990101T000000Z-0", b"\x1b{"), ("20990102T000000Z-0", b'{"errors": 3}')):
        Storage().write(layout.execution(name), data)
    status = read_status(Storage(), report.output)
    assert [execution.status for execution in status.executions] == [
        "unknown",
        "unreadable",
        "success",
    ]
    assert "\x1b" not in status.summary()
