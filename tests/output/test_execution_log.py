"""The log of an execution: pieces that add up, within limits, whatever storage does."""

from __future__ import annotations

import logging
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.errors import StorageError
from segcore.logs.options import LogOptions
from segcore.output import execution_log
from segcore.output.execution_log import ExecutionLog, collect_log

OPTIONS = LogOptions()
LOGGER = logging.getLogger("segcore.tests")


class _Pieces(dict[int, bytes]):
    """Storage that fails as it is told, and calls back."""

    def __init__(self, failures: list[bool] | None = None) -> None:
        super().__init__()
        self.failures = failures or []
        self.last_failed = False
        self.written = threading.Event()

    def write(self, number: int, piece: bytes) -> None:
        self.last_failed = bool(self.failures) and self.failures.pop(0)
        if self.last_failed:
            raise StorageError("the server is gone")
        assert number not in self, "a piece is never overwritten"
        self[number] = piece
        self.written.set()

    @property
    def lines(self) -> list[str]:
        assert list(self) == list(range(len(self)))
        return b"".join(self.values()).decode().splitlines()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.booleans(), max_size=5), st.lists(st.booleans(), max_size=30))
def test_every_line_is_in_one_piece_however_storage_fails(failures, steps) -> None:
    pieces = _Pieces(failures)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution_log, "PIECE_INTERVAL_S", 0.001)
        with collect_log(OPTIONS) as log:
            LOGGER.info("before it has a name")
            log.open(pieces.write)
            for number, is_info in enumerate(steps):
                LOGGER.log(logging.INFO if is_info else logging.WARNING, "line %s", number)
            assert pieces.written.wait(10)
    if pieces.last_failed:  # at the end there is no time to try again
        return
    messages = [line.partition(": ")[2] for line in pieces.lines]
    assert messages == ["before it has a name", *(f"line {n}" for n in range(len(steps)))]


def test_a_piece_is_written_while_the_run_goes_on(monkeypatch) -> None:
    monkeypatch.setattr(execution_log, "PIECE_INTERVAL_S", 0.01)
    pieces = _Pieces()
    with collect_log(OPTIONS) as log:
        log.open(pieces.write)
        for number in range(3):
            pieces.written.clear()
            LOGGER.info("%s", number)
            assert pieces.written.wait(10)
        assert len(pieces) == 3
    assert execution_log.PIECE_INTERVAL_S <= 60


def test_a_log_that_never_begins_is_written_nowhere() -> None:
    with collect_log(OPTIONS):
        LOGGER.info("nothing to do")
    assert not [thread for thread in threading.enumerate() if thread.name == "log"]


def test_the_log_ends_at_its_limit_and_says_so(monkeypatch) -> None:
    monkeypatch.setattr(execution_log, "MAX_BYTES", 5_000)
    pieces = _Pieces()
    with collect_log(OPTIONS) as log:
        log.open(pieces.write)
        for _ in range(1000):
            LOGGER.info("x" * 100)
    size = sum(map(len, pieces.values()))
    assert 4_000 < size <= 5_000
    n_left_out = 1001 - len(pieces.lines)
    assert f"{n_left_out} more lines left out" in pieces.lines[-1]


def test_lines_wait_in_bounded_memory(monkeypatch) -> None:
    monkeypatch.setattr(execution_log, "_MAX_WAITING_BYTES", 5_000)
    log = ExecutionLog(OPTIONS)
    for _ in range(1000):
        log.handle(logging.makeLogRecord({"msg": "x" * 100, "levelno": 20, "levelname": "INFO"}))
    assert sum(map(len, log._waiting)) <= 5_000


@pytest.mark.parametrize("root_level", [logging.WARNING, logging.INFO])
def test_the_logging_of_the_program_stays_as_it_is(root_level, caplog) -> None:
    own = logging.getLogger("segcore")
    before = own.level, own.propagate, list(own.handlers), list(logging.getLogger().handlers)
    pieces = _Pieces()
    with caplog.at_level(root_level), collect_log(OPTIONS) as log:
        log.open(pieces.write)
        LOGGER.info("for the log")
        LOGGER.warning("for both")
        logging.getLogger("other").warning("of a library")
        logging.getLogger("other").info("of no interest")
    shown = [record.message for record in caplog.records if record.message.startswith("for")]
    assert shown == ["for the log", "for both"][root_level == logging.WARNING :]
    kept = [line.partition(": ")[2] for line in pieces.lines]
    assert kept == ["for the log", "for both", "of a library"]
    after = own.level, own.propagate, list(own.handlers), list(logging.getLogger().handlers)
    assert after == before


def test_logs_that_overlap_end_in_any_order(caplog) -> None:
    own = logging.getLogger("segcore")
    before = own.level, own.propagate, list(own.handlers)
    first, second = collect_log(OPTIONS), collect_log(OPTIONS)
    pieces = _Pieces()
    first.__enter__()
    second.__enter__().open(pieces.write)
    first.__exit__(None, None, None)
    LOGGER.warning("of the second")
    second.__exit__(None, None, None)
    assert (own.level, own.propagate, list(own.handlers)) == before
    assert [line.partition(": ")[2] for line in pieces.lines] == ["of the second"]
    assert caplog.messages == ["of the second"]


def test_json_lines() -> None:
    pieces = _Pieces()
    with collect_log(LogOptions(format="json", quiet=True, level="error")) as log:
        log.open(pieces.write)
        LOGGER.info("kept, whatever is shown", extra={"image": "a.png"})
    assert '"image": "a.png"' in pieces.lines[0]
