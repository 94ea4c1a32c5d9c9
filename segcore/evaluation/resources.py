"""How a measurement uses the machine: all cores, and no search for garbage that cannot be there."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager


def n_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def paused_collection() -> Iterator[None]:
    """Let Python not look for garbage in cycles meanwhile, also as a decorator.

    While millions of objects are made that all stay, as those of a ground truth, it looks through
    all of them again and again: a quarter of the time of `segcore evaluate`.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
