"""The clock that leases measure waiting times with; tests replace it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class SteadyClock:
    """A clock that never jumps, and a way to wait.

    Attributes:
        now: Seconds since an arbitrary moment.
        sleep: Waits for a number of seconds.
    """

    now: Callable[[], float]
    sleep: Callable[[float], None] = time.sleep


def _seconds_since_boot() -> float:
    boottime = getattr(time, "CLOCK_BOOTTIME", None)  # continues while the machine sleeps
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


SYSTEM_CLOCK = SteadyClock(_seconds_since_boot)
