"""Watching a pass: its progress line on stderr, and the log of its workers."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from segcore.distributed.progress import ProgressSnapshot
from segcore.distributed.progress_line import ProgressGoal, ProgressLine
from segcore.logs.options import LogOptions
from segcore.logs.records import KEPT_ONLY, JsonFormatter
from segcore.logs.relay import Entry, LogRelay
from segcore.text import plural, printable

LIVE_INTERVAL_S = 0.5
PLAIN_INTERVAL_S = 10.0
LOG_INTERVAL_S = 5.0
KEPT_LINE_INTERVAL_S = 300.0  # of progress lines in the log
_THREAD_END_TIMEOUT_S = 5
_LOGGER = logging.getLogger(__name__)


class Watched(Protocol):
    """What is watched; none of these may raise."""

    def snapshot(self) -> ProgressSnapshot | None:
        """The progress; None where nothing is known at this moment."""

    def problems(self) -> list[str]:
        """What is wrong, each a few words."""

    def take_log(self) -> list[Entry]:
        """The log of the workers since the last call."""


@contextmanager
def watch(
    watched: Watched,
    goal: ProgressGoal,
    relay: LogRelay,
    options: LogOptions,
    stream: TextIO | None = None,
) -> Iterator[None]:
    """Show progress and log what the workers log, while the block runs.

    A terminal gets one line that is redrawn; anything else gets a plain line every
    `PLAIN_INTERVAL_S`.

    Args:
        stream: Where progress is shown; stderr by default.
    """
    stop = threading.Event()
    watcher = _Watcher(watched, goal, relay, options, stream or sys.stderr)
    thread = threading.Thread(target=watcher.run, args=(stop,), name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=_THREAD_END_TIMEOUT_S)
        relay.log(watched.take_log())


class _Watcher:
    """The thread of `watch`."""

    def __init__(
        self,
        watched: Watched,
        goal: ProgressGoal,
        relay: LogRelay,
        options: LogOptions,
        stream: TextIO,
    ) -> None:
        self._watched = watched
        self._line = ProgressLine(goal)
        self._relay = relay
        self._stream = stream
        self._is_shown = options.shown_level <= logging.INFO
        self._is_json = options.format == "json"
        self._console = Console(file=stream, highlight=False)
        self._deaths = 0

    def run(self, stop: threading.Event) -> None:
        """Watch until `stop` is set."""
        is_live = self._is_shown and not self._is_json and self._console.is_terminal
        tick_s = LIVE_INTERVAL_S if is_live else min(LOG_INTERVAL_S, PLAIN_INTERVAL_S)
        is_log_due = _interval(LOG_INTERVAL_S)
        is_plain_due = _interval(PLAIN_INTERVAL_S)
        is_kept_due = _interval(KEPT_LINE_INTERVAL_S)
        with self._live_display() if is_live else nullcontext() as live:
            while not stop.wait(tick_s):
                if is_log_due():
                    self._relay.log(self._watched.take_log())
                if (progress := self._watched.snapshot()) is None:
                    continue
                self._log_deaths(progress.deaths)
                line = printable(self._line.text(progress, self._watched.problems()))
                if live is not None:
                    live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
                elif self._is_shown and is_plain_due():
                    print(self._plain(line), file=self._stream, flush=True)
                if is_kept_due():
                    _LOGGER.info("%s", line, extra=KEPT_ONLY)

    def _live_display(self) -> Live:
        return Live(console=self._console, auto_refresh=False, transient=True)

    def _plain(self, line: str) -> str:
        if not self._is_json:
            return line
        record = logging.makeLogRecord({"msg": line, "name": __name__})
        record.levelno, record.levelname = logging.INFO, "INFO"
        return JsonFormatter().format(record)

    def _log_deaths(self, deaths: int) -> None:
        if deaths > self._deaths:
            died = plural(deaths - self._deaths, "worker process", "worker processes")
            _LOGGER.warning("%s died and restarted; %s so far.", died, f"{deaths:,}")
        self._deaths = deaths


def _interval(seconds: float) -> Callable[[], bool]:
    """A function that says whether so much time has passed since the start or its last yes."""
    last = time.monotonic()

    def is_over() -> bool:
        nonlocal last
        if time.monotonic() - last < seconds:
            return False
        last = time.monotonic()
        return True

    return is_over
