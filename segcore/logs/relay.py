"""The way of log records from many workers into one log, however many there are.

A worker has a `LogBuffer`, whose entries travel with its progress; the driver has a `LogRelay`.
Of each error (type and place) the log gets the first one in full, and of the others how many they
were.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from threading import Lock
from typing import Any

from segcore.logs.cleaning import clean_line
from segcore.logs.faults import DistinctErrors
from segcore.logs.records import KEPT_ONLY, error_of, is_ours, record_fields, record_of_fields

Entry = dict[str, Any]  # either `fields` of a record, or `repeats` of a key
_MAX_WAITING = 500  # records in a worker between two messages
_MAX_SAME_LINES = 20  # of one kind, from one worker; all of them are counted
_MAX_SAME_LINES_OF_ALL = 200
_MAX_KEY_CHARACTERS = 300
_MAX_KINDS = 1000


class LogBuffer(logging.Handler):
    """In a worker: collects records of segcore, and warnings of other libraries; thread-safe.

    Args:
        level: The least severe records of segcore that are wanted.
        worker: Which process this is, for people.
    """

    def __init__(self, level: int, worker: str) -> None:
        super().__init__(level)
        self._worker = worker
        self._entries: list[Entry] = []
        self._seen = DistinctErrors()
        self._repeats = DistinctErrors()
        self._entries_lock = Lock()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record, or count it if there were enough of its kind."""
        if not is_ours(record.name) and record.levelno < logging.WARNING:
            return
        error = error_of(record)
        key = error or clean_line(f"{record.name}: {record.msg}"[:_MAX_KEY_CHARACTERS])
        with self._entries_lock:
            is_enough = self._seen.count(key).times > (1 if error else _MAX_SAME_LINES)
            if is_enough or len(self._entries) >= _MAX_WAITING:
                self._repeats.count(key, image=str(getattr(record, "image", "")))
                return
        try:
            fields = {**record_fields(record), "worker": self._worker}
        except Exception:  # a wrong call of a library; logging has its own way to say so
            self.handleError(record)
            return
        with self._entries_lock:
            self._entries.append({"key": key, "fields": fields})

    def take(self) -> list[Entry]:
        """What was collected since the last call."""
        with self._entries_lock:
            entries, self._entries = self._entries, []
            for key, repeats in self._repeats.take().items():
                entries.append({"key": key, "repeats": repeats.times, "image": repeats.image})
            return entries


class LogRelay:
    """On the driver: logs what the workers send, each error once."""

    def __init__(self) -> None:
        self._errors = DistinctErrors()
        self._first: dict[str, tuple[str, int]] = {}  # key -> logger and level of its first record

    def log(self, entries: Iterable[Entry]) -> None:
        """Log records of workers; of those that repeat, how often, in ever larger steps."""
        for entry in entries:
            key, fields = entry["key"], entry.get("fields")
            image = entry.get("image", "") if fields is None else fields.get("image", "")
            number = entry.get("repeats", 1)
            times = self._errors.count(key, number, image).times
            if fields is not None:
                limit = 1 if "error" in fields else _MAX_SAME_LINES_OF_ALL
                record = record_of_fields(fields)
                if len(self._first) < _MAX_KINDS:
                    self._first.setdefault(key, (record.name, record.levelno))
                if times <= limit:
                    logging.getLogger(record.name).handle(record)
                    continue
            if len(str(times)) > len(str(times - number)):  # 10, 100, 1000, ...
                self._log_repeats(key, f"{times:,} times so far", image)

    def finish(self) -> None:
        """Log how often each error that repeated occurred in all."""
        for key, repeats in self._errors.take().items():
            if repeats.times > 1:
                self._log_repeats(
                    key, f"{repeats.times:,} times in all", repeats.image, **KEPT_ONLY
                )

    def _log_repeats(self, key: str, how_often: str, image: str, **more: Any) -> None:
        name, level = self._first.get(key, (__name__, logging.WARNING))
        extra = {"image": image and f"{image}, the last one", **more}
        logging.getLogger(name).log(level, "%s: %s", how_often, key, extra=extra)
