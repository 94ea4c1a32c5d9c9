"""The progress line: what is committed, how fast, what is left, and what is wrong."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from segcore.distributed.progress import ProgressSnapshot
from segcore.text import format_duration, plural

_PACE_WINDOW_S = 300.0  # the pace is that of the last minutes
_STALL_S = 60.0  # from here on the line says that nothing happens
# No time left is told from the first images: workers are warming up. Archives of one or two units
# commit too late to wait for that, so a share of the images does as well.
_MIN_UNITS_FOR_ETA = 2
_MIN_SHARE_FOR_ETA = 0.1
_MIN_SECONDS_FOR_ETA = 10.0
_MAX_PROBLEM_CHARACTERS = 120


@dataclass(frozen=True)
class ProgressGoal:
    """What the run has to do; `images` is None when shards are counted only as they are read."""

    images: int | None
    units: int
    bytes: int


class ProgressLine:
    """Makes the lines of one pass; remembers what it has seen to tell the pace.

    Args:
        now: The clock, monotonic seconds.
    """

    def __init__(self, goal: ProgressGoal, now: Callable[[], float] = time.monotonic) -> None:
        self._goal = goal
        self._now = now
        self._began = self._work_began = self._changed = now()
        self._last: tuple[int, int] | None = None  # images with a result, committed units
        self._history: deque[tuple[float, int]] = deque()  # when, images with a result

    def text(self, progress: ProgressSnapshot, problems: Sequence[str] = ()) -> str:
        """The line now.

        For example ``384 / 1,000 images, 28 in progress · 41.2/s · 3 failed · 1 / 4 units ·
        ETA 0:14``.

        Args:
            problems: What is wrong, each a few words.
        """
        now = self._now()
        self._observe(progress, now)
        if not (progress.images or progress.in_progress or progress.units):
            parts = [f"starting workers · {format_duration(now - self._began)}"]
        else:
            parts = self._describe_work(progress, now)
        if progress.deaths:
            died = plural(progress.deaths, "worker process", "worker processes")
            parts.append(f"{died} died and restarted")
        parts += [_shorten(problem) for problem in problems]
        if self._last != (0, 0) and now - self._changed >= _STALL_S:
            parts.append(f"nothing new for {format_duration(now - self._changed)}")
        return " · ".join(parts)

    def _observe(self, progress: ProgressSnapshot, now: float) -> None:
        seen = progress.images + progress.in_progress, progress.units
        if seen == (0, 0):
            self._work_began = now  # the time of starting is no part of the pace
        if seen != self._last:
            self._last, self._changed = seen, now
        self._history.append((now, seen[0]))
        while self._history[0][0] < now - _PACE_WINDOW_S:
            self._history.popleft()

    def _describe_work(self, progress: ProgressSnapshot, now: float) -> list[str]:
        goal = self._goal
        if goal.images is None:
            images = plural(progress.images, "image")
        else:
            images = f"{progress.images:,} / {plural(goal.images, 'image')}"
        if progress.in_progress:
            images += f", {progress.in_progress:,} in progress"
        remaining_s = self._remaining_seconds(progress, now)
        return [
            images,
            f"{self._images_per_second(now):.1f}/s",
            f"{progress.failed:,} failed",
            f"{progress.units:,} / {plural(goal.units, 'unit')}",
            f"ETA {'-' if remaining_s is None else format_duration(remaining_s)}",
        ]

    def _images_per_second(self, now: float) -> float:
        """The pace of the last minutes, of all images that have a result."""
        began, images = self._history[0]
        began = max(began, self._work_began)
        seconds = now - began
        return max(0.0, (self._history[-1][1] - images) / seconds) if seconds > 0 else 0.0

    def _remaining_seconds(self, progress: ProgressSnapshot, now: float) -> float | None:
        """Seconds to go at this pace; None where too little is done to tell."""
        seconds = now - self._work_began
        if seconds < _MIN_SECONDS_FOR_ETA or not self._has_pace(progress):
            return None
        if n_images := self._goal.images or self._estimated_images(progress):
            left = n_images - progress.images - progress.in_progress
            pace = self._images_per_second(now)
        elif self._goal.bytes:
            left, pace = self._goal.bytes - progress.bytes, progress.bytes / seconds
        else:
            left, pace = self._goal.units - progress.units, progress.units / seconds
        return max(0.0, left / pace) if pace else None

    def _has_pace(self, progress: ProgressSnapshot) -> bool:
        if progress.units >= _MIN_UNITS_FOR_ETA:
            return True
        if not self._goal.images:
            return False
        return progress.images + progress.in_progress >= _MIN_SHARE_FOR_ETA * self._goal.images

    def _estimated_images(self, progress: ProgressSnapshot) -> float:
        """Images of all units, if a byte of the others holds as many as one of those committed.

        So the time left goes by all images that have a result: by committed bytes alone it would
        grow while units are in progress.
        """
        if not progress.bytes:
            return 0.0
        return self._goal.bytes * progress.images / progress.bytes


def _shorten(text: str) -> str:
    if len(text) <= _MAX_PROBLEM_CHARACTERS:
        return text
    return text[: _MAX_PROBLEM_CHARACTERS - 1] + "…"
