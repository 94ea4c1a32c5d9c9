"""`segcore reprocess` beside another call: one at work, and one that took its lease."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from segcore.lease.hold import hold_lease
from segcore.lease.lease import LeaseHeld, LeaseLost
from segcore.output.layout import OutputLayout
from segcore.run.job import Job
from segcore.run.passes import Notify, Pass, RunState
from segcore.storage import Storage
from tests.support import serial_run
from tests.support.lease_files import foreign_holder
from tests.support.nights import night

pytestmark = pytest.mark.usefixtures("serial")
storage = Storage()


def _is_published(folder: Path) -> bool:
    return Path(OutputLayout(str(folder / "out")).latest_json).exists()


@pytest.mark.parametrize("if_busy", ["fail", "skip"])
def test_another_call_is_at_work(folder: Path, if_busy: str) -> None:
    lease = OutputLayout(str(folder / "out")).reprocess_lease
    with hold_lease(storage, lease, 60.0):
        if if_busy == "fail":
            with pytest.raises(LeaseHeld):
                night(folder)
        else:
            report = night(folder, "schedule.if_busy=skip")
            assert (report.status, report.exit_code) == ("busy", 0)
    assert not _is_published(folder)


@pytest.mark.parametrize("if_busy", ["fail", "skip", "wait"])
def test_another_call_takes_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch, if_busy: str
) -> None:
    """This call was silent for too long; the one that took over has ended by now."""
    lease = OutputLayout(str(folder / "out")).reprocess_lease
    begun: list[int] = []

    def take_over(job: Job, passes: Sequence[Pass], state: RunState, notify: Notify) -> None:
        serial_run.run_passes(job, passes, state, notify)
        if not begun:
            other = foreign_holder(60.0, released=True)
            storage.write(f"{lease}/{99:08d}.json", other.to_json())
        begun.append(len(passes))

    monkeypatch.setattr("segcore.run.segment.run_passes", take_over)
    monkeypatch.setattr("segcore.run.reprocess._WAIT_S", 0.01)
    if if_busy == "fail":
        with pytest.raises(LeaseLost, match="host far-away"):
            night(folder, "schedule.if_busy=fail")
        assert not _is_published(folder)
        return
    report = night(folder, f"schedule.if_busy={if_busy}")
    assert report.status == {"skip": "busy", "wait": "published"}[if_busy]
    assert report.exit_code == 0
    assert _is_published(folder) == (if_busy == "wait")


def test_a_lease_that_cannot_be_renewed_ends_the_call(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(call: object) -> None:
        raise LeaseLost("No heartbeat could be written.")

    monkeypatch.setattr("segcore.run.reprocess._reprocess", lose)
    with pytest.raises(LeaseLost):
        night(folder, "schedule.if_busy=wait")
