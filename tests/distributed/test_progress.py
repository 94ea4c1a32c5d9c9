from __future__ import annotations

import io
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcore.distributed import progress
from segcore.distributed.progress import (
    ProgressActor,
    ProgressCounter,
    ProgressGoal,
    ProgressReporter,
    ProgressSnapshot,
    progress_line,
    show_progress,
)


def test_a_retried_unit_is_counted_once():
    counter = ProgressCounter()
    counter.report("a", 5, 1, 50)
    counter.report("b", 2, 0, 10)
    assert counter.snapshot() == ProgressSnapshot(7, 1, 60, 0, 0)
    counter.report("a", 3, 0, 30)  # its actor died; another one began again
    assert counter.snapshot() == ProgressSnapshot(5, 0, 40, 0, 0)
    counter.complete("a", 9, 1, 90, 1000)
    counter.report("a", 1, 0, 1)  # a late message of the dead actor
    counter.complete("a", 9, 1, 90, 1000)
    assert counter.snapshot() == ProgressSnapshot(11, 1, 100, 1, 1000)


class _Handle:
    """A `ProgressActor` behind what looks like a handle of Ray; counts the messages."""

    def __init__(self):
        self.actor = ProgressActor()
        self.messages = 0
        self.update = self

    def remote(self, *args):
        self.messages += 1
        self.actor.update(*args)


@given(st.lists(st.sampled_from(["report", "complete", "flush", "wait"]), max_size=60), st.data())
def test_gathered_reports_come_to_what_single_ones_do(steps, data):
    handle, directly = _Handle(), ProgressActor()
    now = [100.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress.time, "monotonic", lambda: now[0])
        reporter = ProgressReporter(handle, n_workers=8)
        for step in steps:
            unit = data.draw(st.sampled_from("abc"))
            if step == "report":
                counts = data.draw(st.tuples(*[st.integers(0, 9)] * 3))
                reporter.report(unit, *counts)
                directly.report(unit, *counts)
            elif step == "complete":
                counts = (len(unit), 0, ord(unit))
                reporter.complete("node", unit, counts, 10)
                directly.complete_on("node", unit, counts, 10)
            elif step == "flush":
                reporter.flush()
            else:
                now[0] += 0.6
        assert handle.messages <= 3 + len(steps) // 2 + steps.count("flush")
        reporter.flush()
    assert handle.actor.snapshot() == directly.snapshot()


def test_messages_are_few_however_many_workers_and_units(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    handle = _Handle()
    reporters = [ProgressReporter(handle, n_workers=500) for _ in range(500)]
    for second in range(60):
        for number, reporter in enumerate(reporters):
            reporter.report(f"{second} {number}", 1, 0, 5)
            reporter.complete("node", f"{second} {number}", (2, 0, 9), 10)
        now[0] += 1
    assert handle.messages <= 60 * 100 + 2 * 500
    for reporter in reporters:
        reporter.flush()
    assert handle.actor.snapshot() == ProgressSnapshot(60_000, 0, 270_000, 30_000, 300_000)


def test_the_first_commit_of_a_process_clears_its_node_at_once():
    handle = _Handle()
    for _ in range(3):  # restarts
        handle.actor.register(b"", "actor", "node")
    assert handle.actor.deaths() == {"node": 2}
    reporter = ProgressReporter(handle, n_workers=500)
    reporter.report("a", 1, 0, 0)
    assert handle.actor.deaths() == {"node": 2}
    reporter.complete("node", "a", (1, 0, 0), 10)
    assert handle.actor.deaths() == {}


def test_the_line_with_a_known_number_of_images():
    line = progress_line(ProgressSnapshot(409, 3, 9000, 1, 10), ProgressGoal(1000, 4, 100), 10.0)
    assert line == "412 / 1,000 images · 41.2/s · 409 ok · 3 failed · 1 / 4 units · ETA 0:14"


def test_without_a_known_number_of_images_the_estimate_goes_by_bytes():
    goal = ProgressGoal(None, 4, 100)
    line = progress_line(ProgressSnapshot(10, 0, 0, 1, 25), goal, 10.0)
    assert line == "10 images · 1.0/s · 10 ok · 0 failed · 1 / 4 units · ETA 0:30"
    assert progress_line(ProgressSnapshot(), goal, 0.0).endswith("ETA -")


def test_the_line_of_one_image_is_singular():
    line = progress_line(ProgressSnapshot(1, 0, 2, 1, 10), ProgressGoal(1, 1, 10), 1.0)
    assert line == "1 / 1 image · 1.0/s · 1 ok · 0 failed · 1 / 1 unit · ETA 0:00"


def test_plain_lines_where_stderr_is_not_a_terminal(monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0.01)
    stream = io.StringIO()
    all_read = threading.Event()
    snapshots = [None, ProgressSnapshot(), ProgressSnapshot(1, 0, 2, 0, 0)]

    def read_snapshot() -> ProgressSnapshot | None:
        if snapshots:
            return snapshots.pop(0)
        all_read.set()
        return None

    with show_progress(read_snapshot, ProgressGoal(2, 1, 1), stream):
        assert all_read.wait(10)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("starting workers")
    assert lines[1].startswith("1 / 2 images")
    assert "\x1b" not in stream.getvalue()
