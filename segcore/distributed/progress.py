"""The progress line on stderr, and the counter that feeds it."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from segcore.text import format_duration, plural

LIVE_INTERVAL_S = 0.5
REPORT_INTERVAL_S = 1.0  # of a worker
_MAX_REPORTS_PER_S = 100  # of all workers together: one costs the `ProgressActor` a millisecond
PLAIN_INTERVAL_S = 10.0
_THREAD_END_TIMEOUT_S = 5


UnitTotals = tuple[int, int, int]  # ok, failed, instances
CommittedUnit = tuple[str, str, UnitTotals, int]  # node, unit, its counts and bytes


@dataclass(frozen=True)
class ProgressSnapshot:
    """What this run has done so far; images done before it do not count.

    Attributes:
        ok, failed, instances: Of committed units and of units in progress.
        units: Committed units.
        bytes: Compressed bytes of the committed units.
    """

    ok: int = 0
    failed: int = 0
    instances: int = 0
    units: int = 0
    bytes: int = 0

    @property
    def images(self) -> int:
        """Images that have a result, ok or failed."""
        return self.ok + self.failed


class ProgressCounter:
    """Adds up what the workers report.

    Reports are totals of a unit, so those of a retry replace those of the attempt before.
    """

    def __init__(self) -> None:
        self._in_progress: dict[str, UnitTotals] = {}
        self._committed = ProgressSnapshot()
        self._committed_units: set[str] = set()

    def report(self, unit: str, ok: int, failed: int, instances: int) -> None:
        """Set the counts so far of a unit in progress."""
        if unit not in self._committed_units:
            self._in_progress[unit] = (ok, failed, instances)

    def complete(self, unit: str, ok: int, failed: int, instances: int, n_bytes: int) -> None:
        """Add the final counts of a committed unit."""
        self._in_progress.pop(unit, None)
        if unit in self._committed_units:
            return
        self._committed_units.add(unit)
        before = self._committed
        self._committed = ProgressSnapshot(
            ok=before.ok + ok,
            failed=before.failed + failed,
            instances=before.instances + instances,
            units=before.units + 1,
            bytes=before.bytes + n_bytes,
        )

    def snapshot(self) -> ProgressSnapshot:
        """Committed units and those in progress, together."""
        committed, in_progress = self._committed, self._in_progress.values()
        return ProgressSnapshot(
            ok=committed.ok + sum(ok for ok, _, _ in in_progress),
            failed=committed.failed + sum(failed for _, failed, _ in in_progress),
            instances=committed.instances + sum(instances for _, _, instances in in_progress),
            units=committed.units,
            bytes=committed.bytes,
        )


class ProgressActor(ProgressCounter):
    """The small actor beside the pool: counts progress and knows the actors of the graph.

    It lives in this module because its process imports what the module imports: PyTorch, for one,
    would cost it seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self._registered: list[bytes] = []
        self._nodes: dict[str, str] = {}  # actor id -> its node
        self._deaths: Counter[str] = Counter()  # node -> since it committed a unit

    def register(self, handle: bytes, actor_id: str, node: str) -> None:
        """Remember an actor of the pool; one that is known was restarted after its death.

        Args:
            handle: Of the actor, pickled: as an object it would make this process import Ray Data.
        """
        self._registered.append(handle)
        if actor_id in self._nodes:
            self._deaths[self._nodes[actor_id]] += 1
        self._nodes[actor_id] = node

    def complete_on(self, node: str, unit: str, counts: UnitTotals, n_bytes: int) -> None:
        """As `complete`, for a unit that this node committed."""
        self._deaths.pop(node, None)
        self.complete(unit, *counts, n_bytes)

    def update(
        self, in_progress: Mapping[str, UnitTotals], committed: Sequence[CommittedUnit]
    ) -> None:
        """Take what a `ProgressReporter` has gathered."""
        for unit, counts in in_progress.items():
            self.report(unit, *counts)
        for entry in committed:
            self.complete_on(*entry)

    def placements(self) -> dict[str, str]:
        """Actor id -> node, of all actors that registered since the last `drain`."""
        return dict(self._nodes)

    def deaths(self) -> dict[str, int]:
        """Node -> how many of its processes died since it committed a unit."""
        return dict(self._deaths)

    def drain(self) -> list[bytes]:
        """The pickled handles of all actors that registered since the last call."""
        drained, self._registered = self._registered, []
        self._nodes.clear()
        return drained


class ProgressReporter:
    """A worker's way to the `ProgressActor`: gathers what was done, and sends it now and then.

    The first unit that a process commits is told at once: it shows that its node works.
    Thread-safe.

    Args:
        progress: Handle of the `ProgressActor`.
        n_workers: How many share it.
    """

    def __init__(self, progress: Any, n_workers: int) -> None:
        self._progress = progress
        self._interval_s = max(REPORT_INTERVAL_S, n_workers / _MAX_REPORTS_PER_S)
        self._in_progress: dict[str, UnitTotals] = {}
        self._committed: list[CommittedUnit] = []
        self._has_committed = False
        self._sent_at = float("-inf")  # monotonic seconds
        self._lock = threading.Lock()

    def report(self, unit: str, ok: int, failed: int, instances: int) -> None:
        """See `ProgressCounter.report`."""
        with self._lock:
            self._in_progress[unit] = (ok, failed, instances)
            self._send_when_due()

    def complete(self, node: str, unit: str, counts: UnitTotals, n_bytes: int) -> None:
        """See `ProgressActor.complete_on`."""
        with self._lock:
            self._in_progress.pop(unit, None)
            self._committed.append((node, unit, counts, n_bytes))
            self._send_when_due(at_once=not self._has_committed)
            self._has_committed = True

    def flush(self) -> None:
        """Send what has not been sent; to be called before the worker may have to wait for work."""
        with self._lock:
            self._send_when_due(at_once=True)

    def _send_when_due(self, at_once: bool = False) -> None:
        if not (self._in_progress or self._committed):
            return
        if at_once or time.monotonic() - self._sent_at >= self._interval_s:
            self._progress.update.remote(self._in_progress, self._committed)
            self._in_progress, self._committed = {}, []
            self._sent_at = time.monotonic()


@dataclass(frozen=True)
class ProgressGoal:
    """What the run has to do; `images` is None when shards are counted only as they are read."""

    images: int | None
    units: int
    bytes: int


def progress_line(progress: ProgressSnapshot, goal: ProgressGoal, elapsed_s: float) -> str:
    """The progress line.

    For example ``412 / 1,000 images · 41.2/s · 409 ok · 3 failed · 1 / 4 units · ETA 0:14``.
    """
    if goal.images is None:
        images = plural(progress.images, "image")
    else:
        images = f"{progress.images:,} / {plural(goal.images, 'image')}"
    images_per_s = progress.images / elapsed_s if elapsed_s > 0 else 0.0
    remaining_s = _remaining_seconds(progress, goal, elapsed_s)
    eta = "-" if remaining_s is None else format_duration(remaining_s)
    return (
        f"{images} · {images_per_s:.1f}/s · {progress.ok:,} ok · {progress.failed:,} failed · "
        f"{progress.units:,} / {plural(goal.units, 'unit')} · ETA {eta}"
    )


def _remaining_seconds(
    progress: ProgressSnapshot, goal: ProgressGoal, elapsed_s: float
) -> float | None:
    """Seconds to go at the pace so far; None before there is a pace."""
    if goal.images:
        done, total = progress.images, goal.images
    elif goal.bytes:
        done, total = progress.bytes, goal.bytes
    else:
        done, total = progress.units, goal.units
    return max(0.0, elapsed_s * (total - done) / done) if done else None


@contextmanager
def show_progress(
    read_snapshot: Callable[[], ProgressSnapshot | None],
    goal: ProgressGoal,
    stream: TextIO | None = None,
) -> Iterator[None]:
    """Show progress on stderr while the block runs.

    A terminal gets one line that is redrawn; anything else gets a plain line every
    `PLAIN_INTERVAL_S`.

    Args:
        read_snapshot: May return None (nothing known at this moment); must not raise.
        stream: Where to show it; stderr by default.
    """
    stream = stream or sys.stderr
    console = Console(file=stream, highlight=False)
    started = work_started = time.monotonic()
    stop = threading.Event()

    def current_line() -> str | None:
        nonlocal work_started
        progress = read_snapshot()
        if progress is None:
            return None
        if not progress.images:
            work_started = time.monotonic()  # the time of starting is no part of the pace
            return f"starting workers · {format_duration(work_started - started)}"
        return progress_line(progress, goal, time.monotonic() - work_started)

    def redraw_line() -> None:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while not stop.wait(LIVE_INTERVAL_S):
                if (line := current_line()) is not None:
                    live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)

    def print_lines() -> None:
        while not stop.wait(PLAIN_INTERVAL_S):
            if (line := current_line()) is not None:
                print(line, file=stream, flush=True)

    show = redraw_line if console.is_terminal else print_lines
    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=_THREAD_END_TIMEOUT_S)
