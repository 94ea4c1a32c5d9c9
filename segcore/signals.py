"""SIGINT and SIGTERM: both stop a run, and neither lands where it would break something."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NoReturn, TypeVar

T = TypeVar("T")
_PATIENCE_S = 1.0  # some wrappers pass Ctrl-C on, so that it comes twice


def raise_interrupt(number: int, frame: object) -> NoReturn:
    """A handler that makes of any signal what Ctrl-C is."""
    raise KeyboardInterrupt


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM, as batch systems send it, stop the run the way Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    before = signal.signal(signal.SIGTERM, raise_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Keep SIGINT and SIGTERM back until the block ends; one more after 1 s ends the process.

    For code that an exception out of nowhere leaves in pieces, or that swallows it. Outside of the
    main thread, where Python handles no signals, nothing is to be held.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, float]] = []

    def hold(number: int, frame: object) -> None:
        if came and time.monotonic() - came[0][1] > _PATIENCE_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        came.append((number, time.monotonic()))
        # While Ray's C++ starts, abseil takes SIGTERM for a crash: an alarm of 3 s would abort us.
        signal.alarm(0)

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not Python's to change
            before[number] = signal.signal(number, hold)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0][0])


class SignalShield:
    """A thread for calls that no signal may disturb, and that may put no handlers in place.

    It lives as long as this does: Ray waits 5 s at its end for a thread that started it and died.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "segcore-aside")

    def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises; signals that come meanwhile are `defer_signals`."""
        with defer_signals():
            return self._thread.submit(work).result()
