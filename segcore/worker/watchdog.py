"""A time limit for work that may hang in native code, where no exception can reach it."""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2


class Watchdog:
    """Ends the process when a piece of work takes longer than it may.

    The timer is that of `faulthandler`, a thread of C code: it fires also while a decoder or a
    kernel that never returns holds the interpreter lock. There is one such timer in a process, so
    there may be one watchdog in use. The tracebacks of all threads go to stderr first.

    Args:
        limit_s: Seconds that one image may take in one step (decoding, or the model).
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._lock = threading.Lock()
        self._deadlines: dict[object, float] = {}
        self._armed: float | None = None

    @contextmanager
    def working(self, images: int = 1, extra_s: float = 0.0) -> Iterator[None]:
        """The block must end within ``images * limit_s + extra_s`` seconds. Thread-safe."""
        key = object()
        with self._lock:
            self._deadlines[key] = time.monotonic() + images * self.limit_s + extra_s
            self._arm()
        try:
            yield
        finally:
            with self._lock:
                del self._deadlines[key]
                self._arm()

    def _arm(self) -> None:
        nearest = min(self._deadlines.values(), default=None)
        if nearest == self._armed:
            return
        self._armed = nearest
        if nearest is None:
            faulthandler.cancel_dump_traceback_later()
            return
        left = max(nearest - time.monotonic(), 1e-3)
        faulthandler.dump_traceback_later(left, exit=True, file=_STDERR)
