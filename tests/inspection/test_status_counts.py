"""What `segcore status` counts, in a run that is finished, in progress, or damaged."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from segcore.inspection.status import read_status
from segcore.lease.hold import hold_lease
from segcore.output.report import RUNNING
from segcore.storage import Storage
from tests.support.finished_output import FinishedOutput, finish_run
from tests.support.tiff_files import Page, noise, tiff_file

storage = Storage()


def test_status_of_a_finished_run(folder: str) -> None:
    out = finish_run(folder)
    status = read_status(storage, out.output)
    assert status.state == "success"
    assert (status.units, status.units_done, status.units_left) == (3, 3, 0)
    assert (status.images, status.images_done, status.images_left) == (11, 11, 0)
    assert (status.ok, status.failed, status.failures) == (10, 1, {"not_an_image": 1})
    assert status.instances == 10
    assert status.pace is None
    assert json.loads(json.dumps(status.to_dict()))["units_left"] == 0


@pytest.mark.slow
def test_status_counts_pages_and_warnings(folder: str) -> None:
    storage.write(f"{folder}/in/pages.tif", tiff_file([Page(noise(seed)) for seed in range(3)]))
    first = read_status(storage, finish_run(folder).output)
    assert (first.images, first.warnings) == (12, {"pages_left_out": 1})
    assert "pages_left_out 1" in first.summary()
    every = read_status(storage, finish_run(folder, pages="all").output)
    assert (every.images, every.images_left, every.warnings) == (14, 0, {})


@pytest.mark.slow
def test_status_while_the_job_runs_elsewhere(folder: str) -> None:
    out = finish_run(folder)
    with hold_lease(storage, out.layout.lease_folder, 60):
        _watch_a_run(out)


def _watch_a_run(out: FinishedOutput) -> None:
    record = out.layout.run_record(out.report.run)
    storage.delete(out.layout.output.latest_json)  # not published yet
    parts = {uri: storage.read(uri) for uri in (out.part("images", n) for n in range(3))}
    for uri in parts:
        storage.delete(uri)
    started = replace(out.report, status=RUNNING, started="2026-01-01T00:00:00+00:00")
    storage.write(record, started.to_json())

    before = read_status(storage, out.output)
    assert (before.state, before.units_done, before.images_done) == ("running", 0, 0)
    assert (before.images, before.images_left) == (11, 11)
    assert before.pace is not None
    assert before.pace.eta_s is None
    assert "no part committed yet" in before.summary()

    for uri, data in list(parts.items())[:2]:
        storage.write(uri, data)
    during = read_status(storage, out.output)
    assert (during.units_done, during.units_left) == (2, 1)
    assert during.images_done + during.images_left == 11
    assert during.pace is not None
    assert during.pace.images_per_second > 0
    assert during.pace.eta_s is not None
    assert during.pace.last_commit_s is not None
    assert "ETA" in during.summary()


def test_status_names_foreign_and_unreadable_parts(out: FinishedOutput) -> None:
    uri = out.part("images")
    storage.write(out.layout.part("images", "ab" * 10), storage.read(uri))
    storage.write(uri, b"PAR1 no")
    status = read_status(storage, out.output)
    assert status.units_foreign == 1
    assert status.unreadable == (uri,)
    assert status.images_done < 11
    assert status.images is None  # what the unreadable part held is not known


def test_status_of_a_large_footer_is_read_whole(
    out: FinishedOutput, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segcore.output.counts_cache._FOOTER_BYTES", 64)
    assert read_status(storage, out.output).images_done == 11
