"""SIGINT and SIGTERM: both stop a run, and neither arrives where it would break something."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NoReturn, TypeVar

Result = TypeVar("Result")

# Some wrappers pass Ctrl-C on, so that it arrives twice: within this time that is one.
_DUPLICATE_WINDOW_S = 1.0


def raise_interrupt(number: int, frame: object) -> NoReturn:
    """A signal handler that turns any signal into what Ctrl-C is."""
    raise KeyboardInterrupt


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM, which batch systems send, stop the run as Ctrl-C does."""
    if not _in_main_thread():
        yield
        return
    handler_before = signal.signal(signal.SIGTERM, raise_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler_before)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the block ends; another one after 1 s ends the process.

    For code that would be left broken by an exception at an arbitrary place, or that swallows it.
    Outside the main thread, where Python handles no signals, this does nothing.
    """
    if not _in_main_thread():
        yield
        return
    deferred: list[tuple[int, float]] = []  # signal and time of arrival, monotonic seconds

    def defer(number: int, frame: object) -> None:
        if deferred and time.monotonic() - deferred[0][1] > _DUPLICATE_WINDOW_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        deferred.append((number, time.monotonic()))
        # While Ray's C++ starts, abseil takes SIGTERM for a crash: an alarm of 3 s would abort us.
        signal.alarm(0)

    handlers_before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not set by Python
            handlers_before[number] = signal.signal(number, defer)
    try:
        yield
    finally:
        for number, handler in handlers_before.items():
            signal.signal(number, handler)
        if deferred:
            signal.raise_signal(deferred[0][0])


class SignalShield:
    """A thread for calls that no signal may interrupt and that may install no signal handlers.

    The thread lives as long as this object: Ray waits 5 s at its end for a thread that started it
    and has ended.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "signal-shield")

    def run(self, function: Callable[[], Result]) -> Result:
        """Call `function` in the thread and return or raise what it does, under `defer_signals`."""
        with defer_signals():
            return self._thread.submit(function).result()


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
