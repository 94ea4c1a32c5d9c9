"""The one live line on stderr, and the counter that feeds it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from segcore.text import format_duration

LIVE_INTERVAL_S = 0.5
PLAIN_INTERVAL_S = 10.0


@dataclass(frozen=True)
class ProgressSnapshot:
    """Where the run stands: images of this run only, not those done before."""

    ok: int = 0
    failed: int = 0
    instances: int = 0
    units: int = 0
    bytes: int = 0

    @property
    def images(self) -> int:
        """Images that went through, well or not."""
        return self.ok + self.failed


class ProgressCounter:
    """Adds up what the workers report. Reports are totals of a unit, so a retry replaces them."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[int, int, int]] = {}
        self._done = ProgressSnapshot()
        self._closed: set[str] = set()

    def report(self, unit: str, ok: int, failed: int, instances: int) -> None:
        """Counts so far of a unit under way."""
        if unit not in self._closed:
            self._open[unit] = (ok, failed, instances)

    def close(self, unit: str, ok: int, failed: int, instances: int, n_bytes: int) -> None:
        """Final counts of a committed unit."""
        self._open.pop(unit, None)
        if unit in self._closed:
            return
        self._closed.add(unit)
        done = self._done
        self._done = ProgressSnapshot(
            done.ok + ok,
            done.failed + failed,
            done.instances + instances,
            done.units + 1,
            done.bytes + n_bytes,
        )

    def snapshot(self) -> ProgressSnapshot:
        """Committed units and those under way, together."""
        done = self._done
        ok, failed, instances = (
            (sum(values) for values in (zip(*self._open.values(), strict=True) or ()))
            if self._open
            else (0, 0, 0)
        )
        return ProgressSnapshot(
            done.ok + ok, done.failed + failed, done.instances + instances, done.units, done.bytes
        )


@dataclass(frozen=True)
class ProgressGoal:
    """What the run has to do; `images` is None when shards are counted only as they are read."""

    images: int | None
    units: int
    bytes: int


def progress_line(now: ProgressSnapshot, goal: ProgressGoal, seconds: float) -> str:
    """The progress line: ``412 / 1,000 images · 24.1/s · 409 ok · 3 failed · ETA 0:25``."""
    total = f" / {goal.images:,}" if goal.images is not None else ""
    rate = now.images / seconds if seconds > 0 else 0.0
    left = _left(now, goal, seconds)
    eta = f"ETA {format_duration(left)}" if left is not None else "ETA -"
    return (
        f"{now.images:,}{total} images · {rate:.1f}/s · {now.ok:,} ok · {now.failed:,} failed · "
        f"{now.units:,} / {goal.units:,} units · {eta}"
    )


def _left(now: ProgressSnapshot, goal: ProgressGoal, seconds: float) -> float | None:
    """Seconds to go at the pace so far; None before there is a pace."""
    if goal.images:
        done, of = now.images, goal.images
    elif goal.bytes:
        done, of = now.bytes, goal.bytes
    else:
        done, of = now.units, goal.units
    return max(0.0, seconds * (of - done) / done) if done else None


@contextmanager
def show_progress(
    read: Callable[[], ProgressSnapshot | None], goal: ProgressGoal, stream: TextIO | None = None
) -> Iterator[None]:
    """Show progress on stderr while the block runs.

    A terminal gets one line that is redrawn; anything else gets a plain line now and then.
    `read` may return None (nothing known at this moment); it must not raise.
    """
    stream = stream or sys.stderr
    console = Console(file=stream, highlight=False)
    began = working = time.monotonic()
    stop = threading.Event()

    def line() -> str | None:
        nonlocal working
        now = read()
        if now is None:
            return None
        if not now.images:
            working = time.monotonic()  # the pace is that of work, not of starting
            return f"starting workers · {format_duration(working - began)}"
        return progress_line(now, goal, time.monotonic() - working)

    def live() -> None:
        with Live(console=console, auto_refresh=False, transient=True) as view:
            while not stop.wait(LIVE_INTERVAL_S):
                if (text := line()) is not None:
                    view.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)

    def plain() -> None:
        while not stop.wait(PLAIN_INTERVAL_S):
            if (text := line()) is not None:
                print(text, file=stream, flush=True)

    thread = threading.Thread(target=live if console.is_terminal else plain, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)
