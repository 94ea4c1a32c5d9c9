"""A disk that is full from a moment on, for code that runs in this process."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NEW_NAMES = ("replace", "link", "symlink", "mkdir")


class FullDisk:
    """Counts the calls of the system that take room, and refuses those behind the first `n_left`.

    Attributes:
        n_calls: So many were made.
        refused: Names of the calls that found no room.
    """

    def __init__(self, n_left: int) -> None:
        self.n_calls = 0
        self.refused: list[str] = []
        self._n_left = n_left

    def spend(self, name: str) -> None:
        """Take room, or raise as the system does."""
        self.n_calls += 1
        if self.n_calls > self._n_left:
            self.refused.append(name)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def full_after(n_calls: int) -> Iterator[FullDisk]:
    """Within the block, the disk has room for so many more calls: new files, syncs, new names."""
    disk = FullDisk(n_calls)
    real_open, real_sync = os.open, os.fsync

    def open_file(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT:
            disk.spend("open")
        return real_open(path, flags, *args, **kwargs)

    def sync(handle: int) -> None:
        disk.spend("fsync")  # where a file system gives room late, this is the first to hear
        real_sync(handle)

    def limited(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            disk.spend(name)
            return real(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", open_file)
        patch.setattr(os, "fsync", sync)
        for name in NEW_NAMES:
            patch.setattr(os, name, limited(name, getattr(os, name)))
        yield disk
