"""What is said while a pass runs: on a terminal, in a plain log, as JSON, and quietly."""

from __future__ import annotations

import io
import json
import logging
import threading

import pytest

from segcore.distributed import watch as watching
from segcore.distributed.progress import ProgressSnapshot
from segcore.distributed.progress_line import ProgressGoal
from segcore.distributed.watch import watch
from segcore.logs.options import LogOptions
from segcore.logs.relay import LogRelay

GOAL = ProgressGoal(2, 1, 1)
ENTRY = {
    "key": "E at x.py:1",
    "fields": {
        "time": "2026-01-01T00:00:00.000Z",
        "level": "warning",
        "logger": "segcore.worker",
        "message": "careful",
        "error": "E at x.py:1",
    },
}


class _Pass:
    """Three snapshots, then an event."""

    def __init__(self) -> None:
        self.snapshots = [None, ProgressSnapshot(), ProgressSnapshot(1, deaths=2)]
        self.log = [[ENTRY], [], [ENTRY]]
        self.all_read = threading.Event()

    def snapshot(self) -> ProgressSnapshot | None:
        if self.snapshots:
            return self.snapshots.pop(0)
        self.all_read.set()
        return None

    def problems(self) -> list[str]:
        return ["1 unit not done: \x1b[31mno"]

    def take_log(self) -> list:
        return self.log.pop(0) if self.log else []


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _watch(monkeypatch, options: LogOptions, stream: io.StringIO) -> str:
    for name in ("PLAIN_INTERVAL_S", "LIVE_INTERVAL_S", "LOG_INTERVAL_S", "KEPT_LINE_INTERVAL_S"):
        monkeypatch.setattr(watching, name, 0.01)
    watched = _Pass()
    with watch(watched, GOAL, LogRelay(), options, stream):
        assert watched.all_read.wait(10)
    return stream.getvalue()


def test_plain_lines_where_stderr_is_not_a_terminal(monkeypatch, caplog):
    with caplog.at_level(logging.INFO):
        lines = _watch(monkeypatch, LogOptions(), io.StringIO()).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("starting workers")
    assert lines[1].startswith("1 / 2 images")
    assert lines[1].endswith("2 worker processes died and restarted · 1 unit not done: ?[31mno")
    messages = [record.getMessage() for record in caplog.records]
    assert messages.count("careful") == 1
    assert "2 worker processes died and restarted; 2 so far." in messages
    assert lines[1] in messages  # in the log in the output, too
    assert {r.levelno for r in caplog.records if "died" in r.message} >= {logging.WARNING}


def test_a_terminal_gets_one_line_that_is_redrawn(monkeypatch):
    text = _watch(monkeypatch, LogOptions(), _Terminal())
    assert "starting workers" in text
    assert "\x1b[31mno" not in text


def test_as_json(monkeypatch):
    lines = _watch(monkeypatch, LogOptions(format="json"), _Terminal()).splitlines()
    assert [json.loads(line)["level"] for line in lines] == ["info", "info"]


@pytest.mark.parametrize("options", [LogOptions(quiet=True), LogOptions(level="warning")])
def test_quietly(monkeypatch, caplog, options):
    with caplog.at_level(logging.INFO):  # whatever level another test left behind
        assert _watch(monkeypatch, options, io.StringIO()) == ""
    assert "careful" in caplog.text
