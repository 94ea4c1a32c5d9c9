"""Nights of real processes: killed while one publishes, two at once; on disk and S3."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

import pytest

from segcore.errors import SegcoreError
from segcore.inspection.history import read_past_calls
from segcore.inspection.verify import verify_output
from segcore.output.results import open_results
from segcore.run.segment import segment
from segcore.storage import Storage
from tests.support.bright_images import bright_png, bright_pngs
from tests.support.jobs import job_config
from tests.support.night_process import NightProcess
from tests.support.run_without_ray import without_ray

pytestmark = pytest.mark.faults
storage = Storage()
NEW_MODEL = "model.conf=0.5"


def _put(folder: str, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        storage.write(f"{folder}/in/{name}", data)


def _rows(output: str) -> list[dict[str, Any]]:
    """Both tables, sorted, without the column `unit`."""
    try:
        results = open_results(storage, output)
    except SegcoreError:
        return []
    rows = [*results.to_arrow("images").to_pylist(), *results.to_arrow("instances").to_pylist()]
    return sorted(
        ({name: value for name, value in row.items() if name != "unit"} for row in rows), key=str
    )


def _fresh(folder: str, name: str, *sets: str) -> list[dict[str, Any]]:
    output = f"{folder}/fresh-{name}"
    with without_ray():
        segment(job_config(f"{folder}/in", output, *sets))
    return _rows(output)


def test_nights_of_real_processes(folder: str) -> None:
    def night(*sets: str, kill_before: str = "") -> tuple[int | None, str]:
        return NightProcess(folder, *sets, kill_before=kill_before).join()

    _put(folder, bright_pngs(8))
    assert night() == (0, "published")
    # Night two: two schedulers at once.
    _put(folder, {"new.png": bright_png(20)})
    both = [NightProcess(folder) for _ in range(2)]
    assert sorted(process.join() for process in both) == [(0, "nothing_to_do"), (0, "published")]
    assert _rows(f"{folder}/out") == (expected := _fresh(folder, "2"))
    # Night seven: a new model, and the process is killed before its decision, and at the pointer.
    for place in ("/reprocess/decisions/", "/out/latest.json"):
        assert night(NEW_MODEL, kill_before=place) == (-signal.SIGKILL, "")
        assert _rows(f"{folder}/out") == expected
    assert night(NEW_MODEL) == (0, "published")
    assert _rows(f"{folder}/out") == _fresh(folder, "7", NEW_MODEL)
    assert night(NEW_MODEL) == (0, "nothing_to_do")
    assert not verify_output(storage, f"{folder}/out").counts
    calls = read_past_calls(storage, f"{folder}/out", 10)
    assert [call.status for call in calls] == ["published"] * 3
