"""Keeping Ray off the terminal: its words go to its own log files.

Ray writes in four ways: loggers, C++ log lines on stderr, threads that print to stdout (which
would spoil ``--json``), and warnings. None of this hides an error of ours.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Read by Ray and its workers when they start: no tips, no usage report, our own progress line,
# and none of its C++ log lines on our stderr.
SETTINGS = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS": "0",  # or it holds lines back and prints them at its end, from our own thread
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TQDM": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
}


def set_environment() -> None:
    """Put `SETTINGS` in the environment, before Ray is imported; what is set already stays."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


@contextmanager
def no_native_stderr() -> Iterator[None]:
    """Drop what C++ code writes to stderr in the block: Ray announces its log level there."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def no_ray_output() -> Iterator[None]:
    """Keep the lines of Ray's loggers and threads off the terminal during the block."""
    import ray.data  # noqa: F401  sets its handlers on import

    for name in ("ray", "ray.data"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(logging.CRITICAL + 1)
    kept = sys.stdout, sys.stderr
    wrapped = _WithoutRay(sys.stdout), _WithoutRay(sys.stderr)
    sys.stdout, sys.stderr = wrapped
    try:
        yield
    finally:
        if (sys.stdout, sys.stderr) == wrapped:
            sys.stdout, sys.stderr = kept


class _WithoutRay:
    """A stream that swallows what threads of Ray print; all else goes through."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if threading.current_thread().name.startswith("ray_"):
            return len(text)
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
