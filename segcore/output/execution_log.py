"""The log of an execution, beside its record.

Object stores do not append, so it is written in pieces, each of them once. What is said before the
execution has its id waits in memory, and is dropped if it never begins.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from segcore.errors import SegcoreError
from segcore.logs.options import LogOptions
from segcore.logs.records import LIBRARIES, LOGGER_NAME, make_formatter
from segcore.text import format_bytes, plural

MAX_BYTES = 64_000_000  # of all pieces of one execution
PIECE_INTERVAL_S = 30.0  # a piece that fails is tried again within a minute
_MAX_WAITING_BYTES = 8_000_000  # while storage does not take them
_PIECE_BYTES = 1_000_000  # so many are written at once
_NOTE_BYTES = 500  # room for the line that says what was left out
_END_TIMEOUT_S = 20.0

WritePiece = Callable[[int, bytes], None]  # number and content


class ExecutionLog(logging.Handler):
    """Collects lines, and has a thread write them in pieces once it is opened; thread-safe.

    Lines over the limits are left out and counted. Storage that fails does not disturb the run.
    """

    def __init__(self, options: LogOptions) -> None:
        super().__init__(options.kept_level)
        self.setFormatter(make_formatter(options.format))
        self._lines_lock = threading.Lock()
        self._waiting: list[bytes] = []
        self._waiting_bytes = self._total_bytes = 0
        self._n_left_out = 0
        self._number = 0
        self._write: WritePiece | None = None
        self._wake, self._stop = threading.Event(), False
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record."""
        try:
            line = f"{self.format(record)}\n".encode("utf-8", "backslashreplace")
        except Exception:  # a wrong call of a library; logging has its own way to say so
            self.handleError(record)
            return
        with self._lines_lock:
            self._add(line)

    def open(self, write: WritePiece) -> None:
        """Write what there is and what comes.

        Args:
            write: Writes the piece of a number; raises `SegcoreError` if it cannot.
        """
        self._write = write
        self._thread = threading.Thread(target=self._write_pieces, name="log", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Write the rest; what storage does not take in time is lost."""
        self._stop = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_END_TIMEOUT_S)

    def _add(self, line: bytes) -> None:
        is_over = self._total_bytes + len(line) > MAX_BYTES - _NOTE_BYTES
        if is_over or self._waiting_bytes + len(line) > _MAX_WAITING_BYTES:
            self._n_left_out += 1
            return
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        self._total_bytes += len(line)
        if self._waiting_bytes >= _PIECE_BYTES:
            self._wake.set()

    def _write_pieces(self) -> None:
        while not self._stop:
            self._wake.wait(PIECE_INTERVAL_S)
            self._wake.clear()
            if not self._stop and not self._write_piece():
                # Full pieces would wake this up at once, again and again.
                self._wake.wait(PIECE_INTERVAL_S)
        if self._n_left_out:
            with self._lines_lock:
                self._waiting.append(self._note())
        self._write_piece()

    def _write_piece(self) -> bool:
        """Write all that waits; whether storage took it."""
        assert self._write is not None, "open() starts the thread"
        with self._lines_lock:
            lines = list(self._waiting)
        if not lines:
            return True
        piece = b"".join(lines)
        try:
            self._write(self._number, piece)
        except SegcoreError:
            return False
        self._number += 1
        with self._lines_lock:
            del self._waiting[: len(lines)]
            self._waiting_bytes = sum(map(len, self._waiting))
        return True

    def _note(self) -> bytes:
        lines = plural(self._n_left_out, "more line")
        message = f"{lines} left out: a log holds {format_bytes(MAX_BYTES)}, and what storage takes"
        record = logging.makeLogRecord({"msg": message, "name": LOGGER_NAME})
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return f"{self.format(record)}\n".encode()


class _Forwarder(logging.Handler):
    """Gives our records to the handlers above our logger, as if its level had not been lowered."""

    def emit(self, record: logging.LogRecord) -> None:
        """Hand the record on."""
        root = logging.getLogger()
        others = [handler for handler in root.handlers if not isinstance(handler, _Tap)]
        for handler in others:
            if record.levelno >= handler.level:
                handler.handle(record)
        own = logging.getLogger(LOGGER_NAME).handlers
        if record.name.startswith(f"{LIBRARIES}."):
            return  # they were never seen outside of their workers
        if not others and all(isinstance(handler, ExecutionLog | _Forwarder) for handler in own):
            _show_at_last(record)


class _Tap(logging.Handler):
    """On the root logger: gives the records of other libraries to the log, too."""

    def __init__(self, log: ExecutionLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Hand the record on."""
        self._log.handle(record)
        if all(isinstance(handler, _Tap) for handler in logging.getLogger().handlers):
            _show_at_last(record)


def _show_at_last(record: logging.LogRecord) -> None:
    """Do what `logging` does for a record without a handler."""
    if logging.lastResort is not None and record.levelno >= logging.lastResort.level:
        logging.lastResort.handle(record)


@contextmanager
def collect_log(options: LogOptions) -> Iterator[ExecutionLog]:
    """A log that gets the records of segcore, and the warnings of all libraries, in the block.

    The logging of the program around us stays as it is: what it did not show, it does not show.
    """
    own, root = logging.getLogger(LOGGER_NAME), logging.getLogger()
    log = ExecutionLog(options)
    handlers = [(own, log), (root, _Tap(log))]
    _LOGGER.take(options.kept_level)
    for logger, handler in handlers:
        logger.addHandler(handler)
    try:
        yield log
    finally:
        for logger, handler in handlers:
            logger.removeHandler(handler)
        _LOGGER.give_back()
        log.finish()


class _OwnLogger:
    """The logger of segcore: the first log that takes it changes it, the last restores it.

    Runs in threads of one process end in any order.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_takers = 0
        self._before = (logging.NOTSET, True)
        self._forwarder: logging.Handler | None = None

    def take(self, level: int) -> None:
        """Let records of this level and above reach the handlers of the logger, and only these."""
        own = logging.getLogger(LOGGER_NAME)
        with self._lock:
            if self._n_takers == 0:
                self._before = (own.level, own.propagate)
                if own.propagate:
                    self._forwarder = _Forwarder(own.getEffectiveLevel())
                    own.addHandler(self._forwarder)
            self._n_takers += 1
            own.setLevel(min(level, own.getEffectiveLevel()))
            own.propagate = False

    def give_back(self) -> None:
        """Undo `take`, unless others need it still."""
        own = logging.getLogger(LOGGER_NAME)
        with self._lock:
            self._n_takers -= 1
            if self._n_takers:
                return
            if self._forwarder is not None:
                own.removeHandler(self._forwarder)
                self._forwarder = None
            level, own.propagate = self._before
            own.setLevel(level)


_LOGGER = _OwnLogger()
