"""Keeping Ray's own output off the terminal; it goes to Ray's log files.

Ray writes in four ways: loggers, C++ log lines on stderr, threads that print to stdout (which
would spoil ``--json``), and warnings. Nothing here hides an error of segcore.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_STDERR = 2
_NO_HOME = "/nonexistent"

# Ray and its workers read these when they start: no tips, no usage report, no progress line but
# ours, and none of Ray's C++ log lines on our stderr.
ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS": "0",  # or Ray holds lines back and prints them at its end, from our thread
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TQDM": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
}


def set_environment() -> None:
    """Set the variables of `ENVIRONMENT`, before Ray is imported; those that are set stay.

    Ray does not start for a user who has no home directory, but it does if that does not exist.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = _NO_HOME


@contextmanager
def no_native_stderr() -> Iterator[None]:
    """Drop what C++ code writes to stderr in the block: Ray announces its log level there."""
    sys.stderr.flush()
    saved_stderr = os.dup(_STDERR)
    null_device = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null_device, _STDERR)
        yield
    finally:
        os.dup2(saved_stderr, _STDERR)
        os.close(saved_stderr)
        os.close(null_device)


@contextmanager
def no_ray_output() -> Iterator[None]:
    """Keep the lines of Ray's loggers and threads off the terminal during the block."""
    import ray.data  # noqa: F401  sets its handlers on import

    of_the_program = logging.getLogger().handlers
    for logger in (logging.getLogger("ray"), logging.getLogger("ray.data")):
        for handler in list(logger.handlers):
            if handler in of_the_program:  # Ray took it over; others write to it, too
                logger.removeHandler(handler)
            elif isinstance(handler, logging.StreamHandler):
                handler.setLevel(logging.CRITICAL + 1)
    streams = sys.stdout, sys.stderr
    filtered_streams = _WithoutRayThreads(sys.stdout), _WithoutRayThreads(sys.stderr)
    sys.stdout, sys.stderr = filtered_streams
    try:
        yield
    finally:
        if (sys.stdout, sys.stderr) == filtered_streams:
            sys.stdout, sys.stderr = streams


class _WithoutRayThreads:
    """A stream that drops what Ray's threads print; everything else goes through."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if threading.current_thread().name.startswith("ray_"):
            return len(text)
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
