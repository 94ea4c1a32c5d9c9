"""A time limit for work that may hang in native code, where no exception can reach it."""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2
_SHORTEST_TIMER_S = 1e-3  # faulthandler takes no timer of zero seconds


class Watchdog:
    """Ends the process when a piece of work takes longer than it may.

    The timer is that of `faulthandler`, a thread of C code: it also fires while a decoder or a
    kernel that never returns holds the interpreter lock. A process has only one such timer, so it
    may use only one watchdog. Before the process ends, the tracebacks of all threads go to stderr.

    Args:
        limit_s: Seconds that one image may take in one step (decoding, or the model).
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._lock = threading.Lock()
        self._deadlines: dict[object, float] = {}  # running block -> deadline, monotonic seconds
        self._armed_for: float | None = None

    @contextmanager
    def guard(self, images: int = 1, extra_s: float = 0.0) -> Iterator[None]:
        """The block must end within ``images * limit_s + extra_s`` seconds. Thread-safe."""
        block = object()
        with self._lock:
            self._deadlines[block] = time.monotonic() + images * self.limit_s + extra_s
            self._rearm()
        try:
            yield
        finally:
            with self._lock:
                del self._deadlines[block]
                self._rearm()

    def _rearm(self) -> None:
        """Set the timer to the next deadline, or cancel it when there is none."""
        next_deadline = min(self._deadlines.values(), default=None)
        if next_deadline == self._armed_for:
            return
        self._armed_for = next_deadline
        if next_deadline is None:
            faulthandler.cancel_dump_traceback_later()
            return
        remaining_s = max(next_deadline - time.monotonic(), _SHORTEST_TIMER_S)
        faulthandler.dump_traceback_later(remaining_s, exit=True, file=_STDERR)
