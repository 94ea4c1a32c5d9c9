from __future__ import annotations

import io
import threading

from segcore.distributed import progress as telemetry
from segcore.distributed.progress import (
    ProgressCounter,
    ProgressGoal,
    ProgressSnapshot,
    progress_line,
    show_progress,
)
from segcore.text import format_duration


def test_a_retried_unit_is_counted_once():
    board = ProgressCounter()
    board.report("a", 5, 1, 50)
    board.report("b", 2, 0, 10)
    assert board.snapshot() == ProgressSnapshot(7, 1, 60, 0, 0)
    board.report("a", 3, 0, 30)  # its actor died; another one began again
    assert board.snapshot() == ProgressSnapshot(5, 0, 40, 0, 0)
    board.close("a", 9, 1, 90, 1000)
    board.report("a", 1, 0, 1)  # a late message of the dead actor
    board.close("a", 9, 1, 90, 1000)
    assert board.snapshot() == ProgressSnapshot(11, 1, 100, 1, 1000)


def test_words_with_a_known_number_of_images():
    line = progress_line(ProgressSnapshot(409, 3, 9000, 1, 10), ProgressGoal(1000, 4, 100), 10.0)
    assert line == ("412 / 1,000 images · 41.2/s · 409 ok · 3 failed · 1 / 4 units · ETA 0:14")


def test_words_without_a_known_number_go_by_bytes():
    line = progress_line(ProgressSnapshot(10, 0, 0, 1, 25), ProgressGoal(None, 4, 100), 10.0)
    assert line == "10 images · 1.0/s · 10 ok · 0 failed · 1 / 4 units · ETA 0:30"
    assert progress_line(ProgressSnapshot(), ProgressGoal(None, 4, 100), 0.0).endswith("ETA -")


def test_clock():
    assert [format_duration(s) for s in (0, 59.6, 3599, 3600)] == [
        "0:00",
        "1:00",
        "59:59",
        "1:00:00",
    ]


def test_plain_lines_when_stderr_is_no_terminal(monkeypatch):
    monkeypatch.setattr(telemetry, "PLAIN_INTERVAL_S", 0.01)
    stream = io.StringIO()
    asked = threading.Event()
    answers = [None, ProgressSnapshot(), ProgressSnapshot(1, 0, 2, 0, 0)]

    def read() -> ProgressSnapshot | None:
        if answers:
            return answers.pop(0)
        asked.set()
        return None

    with show_progress(read, ProgressGoal(2, 1, 1), stream):
        assert asked.wait(10)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("starting workers")
    assert lines[1].startswith("1 / 2 images")
    assert "\x1b" not in stream.getvalue()
