"""From many workers into one log: each error once, in full; the others are counted."""

from __future__ import annotations

import json
import logging
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.logs.records import record_fields
from segcore.logs.relay import LogBuffer, LogRelay


class _Places:
    """Raises errors at different lines."""

    def raise_at(self, place: int) -> None:
        if place == 0:
            raise TypeError("0")
        if place == 1:
            raise TypeError("1")
        if place == 2:
            raise KeyError("2")
        [][place]


def _fail(worker: LogBuffer, place: int, image: str) -> None:
    logger = logging.Logger("segcore.worker")
    logger.addHandler(worker)
    try:
        _Places().raise_at(place)
    except Exception:
        logger.exception("failed", extra={"image": image})


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.fields: list[dict] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.fields.append(record_fields(record))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.booleans()), max_size=60))
def test_each_error_once_with_its_image_and_the_count_of_all(failures) -> None:
    workers = [LogBuffer(logging.INFO, f"worker {i}") for i in range(3)]
    relay, kept, own = LogRelay(), _Kept(), logging.getLogger("segcore")
    own.addHandler(kept)
    expected: Counter[int] = Counter()
    try:
        for number, (worker, place, is_sent) in enumerate(failures):
            _fail(workers[worker], place, f"image {number}")
            expected[place] += 1
            if is_sent:
                relay.log(json.loads(json.dumps(workers[worker].take())))
        for buffer in workers:
            relay.log(buffer.take())
        relay.finish()
    finally:
        own.removeHandler(kept)
    tracebacks = [fields for fields in kept.fields if "traceback" in fields]
    assert len(tracebacks) == len(expected)
    assert all(fields["image"].startswith("image ") for fields in tracebacks)
    assert all(fields["worker"].startswith("worker ") for fields in tracebacks)
    assert len({fields["error"] for fields in tracebacks}) == len(expected)
    totals = {
        line["message"].rpartition(":")[2]: int(line["message"].split()[0])
        for line in kept.fields
        if "in all" in line["message"]
    }
    repeated = [times for times in expected.values() if times > 1]
    assert sorted(totals.values()) == sorted(repeated)


def test_a_million_failures_are_a_few_lines() -> None:
    worker, relay, kept = LogBuffer(logging.INFO, "w"), LogRelay(), _Kept()
    own = logging.getLogger("segcore")
    own.addHandler(kept)
    try:
        for second in range(6):
            for number in range(50):
                _fail(worker, 0, f"{second} {number}")
            entries = worker.take()
            assert len(entries) <= 2
            relay.log(entries)
        relay.finish()
    finally:
        own.removeHandler(kept)
    messages = [fields["message"] for fields in kept.fields]
    assert messages[0] == "failed"
    assert [message.split(":")[0] for message in messages[1:]] == [
        "50 times so far",
        "100 times so far",
        "300 times in all",
    ]


def test_lines_without_an_error_are_bounded_and_counted() -> None:
    worker = LogBuffer(logging.INFO, "w")
    logger = logging.Logger("some.library")
    logger.addHandler(worker)
    for number in range(200):
        logger.warning("retry %s", number)
        logger.info("not wanted")
    entries = worker.take()
    assert len(entries) < 50
    assert sum(entry.get("repeats", 1) for entry in entries) == 200
    assert worker.take() == []


def test_a_wrong_call_of_logging_does_not_end_a_worker(capsys, monkeypatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    worker = LogBuffer(logging.INFO, "w")
    logger = logging.Logger("some.library")
    logger.addHandler(worker)
    logger.warning("%s %s", 1)
    assert worker.take() == []


@pytest.mark.parametrize("name", ["segcore.worker", "py.warnings"])
def test_what_other_libraries_say_can_be_told_apart(name: str, caplog) -> None:
    worker = LogBuffer(logging.INFO, "w")
    logger = logging.Logger(name)
    logger.addHandler(worker)
    logger.warning("careful")
    LogRelay().log(worker.take())
    (record,) = caplog.records
    is_library = name == "py.warnings"
    assert record.name == ("segcore.libraries.py.warnings" if is_library else name)
