from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcore.distributed import progress
from segcore.distributed.progress import (
    ProgressActor,
    ProgressCounter,
    ProgressReporter,
    ProgressSnapshot,
)
from segcore.logs.relay import LogBuffer
from segcore.worker.measures import MEASURES


def test_a_retried_unit_is_counted_once():
    counter = ProgressCounter()
    counter.report("a", 5, 1, 50)
    counter.report("b", 2, 0, 10)
    assert counter.snapshot() == ProgressSnapshot(in_progress=8)
    counter.report("a", 3, 0, 30)  # its actor died; another one began again
    assert counter.snapshot() == ProgressSnapshot(in_progress=5)
    counter.complete("a", 9, 1, 90, 1000)
    counter.report("a", 1, 0, 1)  # a late message of the dead actor
    counter.complete("a", 9, 1, 90, 1000)
    assert counter.snapshot() == ProgressSnapshot(9, 1, 90, 1, 1000, in_progress=2)


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


def test_what_workers_log_travels_with_their_progress():
    MEASURES.take()  # what other tests left
    handle = _Handle()
    reporter = ProgressReporter(handle, 1, log := LogBuffer(logging.INFO, "worker 1"))
    logger = logging.Logger("segcore.x")
    logger.addHandler(log)
    reporter.flush()
    assert handle.messages == 0
    logger.warning("careful")
    reporter.flush()
    logger.warning("and again")
    reporter.complete("node", "a", (1, 0, 0), 10)
    assert handle.messages == 2
    messages = [entry["fields"]["message"] for entry in handle.actor.take_log()]
    assert messages == ["careful", "and again"]
    assert handle.actor.take_log() == []


def test_deaths_are_counted_for_good():
    handle = _Handle()
    for _ in range(3):
        handle.actor.register(b"", "actor", "node")
    ProgressReporter(handle, 1).complete("node", "a", (1, 0, 0), 10)
    assert handle.actor.deaths() == {}
    assert handle.actor.snapshot().deaths == 2
