"""The heartbeat of a lease: threads that renew it and interrupt the main thread when it is lost."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from segcore.errors import StorageError
from segcore.lease.lease import Lease


class HeartbeatThread:
    """Renews a lease while the block runs, and interrupts the block when the lease is lost."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._is_main_thread = threading.current_thread() is threading.main_thread()
        self._previous_handler: object = None

    def __enter__(self) -> None:
        if self._is_main_thread and not callable(previous := signal.getsignal(signal.SIGINT)):
            # SIGINT is ignored, as in jobs that a shell starts in the background
            self._previous_handler = previous
            signal.signal(signal.SIGINT, self._on_sigint)
        for target in (self._renew_regularly, self._watch):
            threading.Thread(target=target, name="segcore-lease", daemon=True).start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:  # no interrupt is sent after this
            self._stopped.set()
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)  # type: ignore[arg-type]

    def _on_sigint(self, number: int, frame: FrameType | None) -> None:
        if self._lease.lost is not None or self._previous_handler is signal.SIG_DFL:
            raise KeyboardInterrupt

    def _renew_regularly(self) -> None:
        ttl_s = self._lease.ttl_s
        interval_s = ttl_s / 4
        while not self._stopped.wait(interval_s) and self._lease.lost is None:
            try:
                self._lease.renew()
                interval_s = ttl_s / 4
            except StorageError:  # `_watch` notices when this goes on for too long
                interval_s = ttl_s / 16

    def _watch(self) -> None:
        """Detect the loss; in a thread of its own, as a heartbeat may hang in the storage."""
        n_expired = 0
        while not self._stopped.wait(self._lease.ttl_s / 16):
            # a machine that wakes up from sleep gets the chance of a heartbeat first
            n_expired = n_expired + 1 if self._lease.is_expired else 0
            if n_expired > 4:
                self._lease.mark_lost()
            if self._lease.lost is not None:
                break
        with self._lock:
            is_unreported = self._lease.lost is not None and not self._lease.loss_reported
            if self._is_main_thread and is_unreported and not self._stopped.is_set():
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
