"""Exceptions as facts for the log: of what kind, where, and which of them were there before."""

from __future__ import annotations

import traceback
from pathlib import Path
from threading import Lock
from typing import NamedTuple

_PACKAGE = str(Path(__file__).resolve().parents[1])
_SHOWN_PATH_PARTS = 3
_MAX_KINDS = 500  # then all others count as one kind
_OTHERS = "other errors"
# A decoder or a network does not raise these for what its data are.
_PROGRAMMING_ERRORS = (
    TypeError, AttributeError, NameError, LookupError, AssertionError, ArithmeticError,
)  # fmt: skip


def fault_key(error: BaseException) -> str:
    """Type and place of an exception: ``TypeError at segcore/masks/rle.py:83``."""
    kind = type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return kind
    path = "/".join(Path(frames[-1].filename).parts[-_SHOWN_PATH_PARTS:])
    return f"{kind} at {path}:{frames[-1].lineno}"


def is_own_fault(error: BaseException) -> bool:
    """Whether it shows a bug in segcore: raised by a statement of ours, and not about the data."""
    if not isinstance(error, _PROGRAMMING_ERRORS):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(_PACKAGE)


class Repeats(NamedTuple):
    """How often an error occurred.

    Attributes:
        times: All of them, the first included.
        image: Where it occurred last.
    """

    times: int
    image: str = ""


class DistinctErrors:
    """Counts errors by type and place; thread-safe."""

    def __init__(self) -> None:
        self._repeats: dict[str, Repeats] = {}
        self._lock = Lock()

    def count(self, key: str, number: int = 1, image: str = "") -> Repeats:
        """Add occurrences of an error; returns how often it has occurred now."""
        with self._lock:
            if key not in self._repeats and len(self._repeats) >= _MAX_KINDS:
                key = _OTHERS
            before = self._repeats.get(key, Repeats(0))
            now = Repeats(before.times + number, image or before.image)
            self._repeats[key] = now
            return now

    def take(self) -> dict[str, Repeats]:
        """All errors, which are forgotten."""
        with self._lock:
            repeats, self._repeats = self._repeats, {}
            return repeats
