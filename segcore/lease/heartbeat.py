"""The heartbeat of a lease: threads that keep it, and stop the main thread when it is lost."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from segcore.errors import StorageError

if TYPE_CHECKING:
    from segcore.lease.lease import Lease


class HeartbeatThread:
    """Beats for a lease while the block runs, and interrupts the block when it is lost."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._main = threading.current_thread() is threading.main_thread()
        self._before: object = None

    def __enter__(self) -> None:
        if self._main and not callable(before := signal.getsignal(signal.SIGINT)):
            # ignored, as in jobs that a shell starts in the background
            self._before = before
            signal.signal(signal.SIGINT, self._on_signal)
        for work in (self._beat, self._watch):
            threading.Thread(target=work, name="segcore-lease", daemon=True).start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:  # after this, no interrupt comes any more
            self._stop.set()
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)  # type: ignore[arg-type]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._lease.lost is not None or self._before is signal.SIG_DFL:
            raise KeyboardInterrupt

    def _beat(self) -> None:
        ttl_s = self._lease.ttl_s
        pause = ttl_s / 4
        while not self._stop.wait(pause) and self._lease.lost is None:
            try:
                self._lease.beat()
                pause = ttl_s / 4
            except StorageError:  # `_watch` counts the time
                pause = ttl_s / 16

    def _watch(self) -> None:
        """Apart from the heartbeats, as one of them may hang in the storage."""
        overdue = 0
        while not self._stop.wait(self._lease.ttl_s / 16):
            # a machine that wakes up from sleep gets the chance of a heartbeat first
            overdue = overdue + 1 if self._lease.is_stale else 0
            if overdue > 4:
                self._lease.lose()
            if self._lease.lost is not None:
                break
        with self._lock:
            due = self._lease.lost is not None and not self._lease.loss_reported
            if self._main and due and not self._stop.is_set():
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
