"""Bytes that are set aside: in memory while they are few, otherwise in a temporary file."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from segcore.errors import StorageError, StorageFull

MEMORY_BYTES = 64 << 20  # two or three million names


class SpillFile:
    """Pieces of bytes, appended once and read again by their place.

    The first pieces stay in memory; those beyond `memory_bytes` go to a file without a name in the
    temporary folder, which vanishes with this object or with its process. May be read by several
    threads.

    Args:
        memory_bytes: How much is kept in memory.
    """

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._memory_bytes = memory_bytes
        self._kept: dict[int, bytes] = {}
        self._file: BinaryIO | None = None
        self._file_start = 0  # place of the first piece that is in the file
        self._end = 0
        self._lock = threading.Lock()

    def append(self, data: bytes) -> int:
        """Set a piece aside; returns its place.

        Raises:
            StorageFull: The temporary folder has no room for it.
            StorageError: It cannot be written there.
        """
        with self._lock:
            place = self._end
            if self._file is None and place + len(data) <= self._memory_bytes:
                if data:
                    self._kept[place] = data
            elif data:
                self._write(data)
            self._end = place + len(data)
        return place

    def _write(self, data: bytes) -> None:
        with _translate_errors("A large archive is planned there, with some 80 bytes an image"):
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
                self._file_start = self._end
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]

    def read(self, place: int, length: int) -> bytes:
        """The piece of this length that was appended at this place."""
        if not length:
            return b""
        if place in self._kept:
            return self._kept[place]
        assert self._file is not None, "a piece that was appended"
        pieces = []
        while length:
            piece = os.pread(self._file.fileno(), length, place - self._file_start)
            if not piece:
                raise StorageError(f"A file in {tempfile.gettempdir()} lost its end.")
            pieces.append(piece)
            place, length = place + len(piece), length - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class SpillBuffer:
    """Bytes that are written once, and then copied into a file behind others.

    Errors name the temporary folder: the file that is being written is often on another disk.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._file = tempfile.SpooledTemporaryFile(memory_bytes)  # noqa: SIM115

    def __enter__(self) -> SpillBuffer:
        return self

    def __exit__(self, *details: object) -> None:
        with suppress(OSError):  # of bytes that had no room; `write` or `copy_to` has said so
            self._file.close()

    def write(self, data: bytes) -> None:
        """Append.

        Raises:
            StorageFull: The temporary folder has no room for it.
            StorageError: It cannot be written there.
        """
        with _translate_errors("A large file is put together there"):
            self._file.write(data)

    def copy_to(self, target: BinaryIO) -> None:
        """Write all of it to `target`; raises as `write` does."""
        with _translate_errors("A large file is put together there"):
            self._file.seek(0)  # writes what was held back
        shutil.copyfileobj(self._file, target)


@contextmanager
def _translate_errors(use: str) -> Iterator[None]:
    """Errors of the temporary folder; `use` says what it is needed for."""
    try:
        yield
    except OSError as error:
        folder = tempfile.gettempdir()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(
                f"The temporary folder {folder} is full.",
                f"{use}: free some space, or set TMPDIR to a folder on a larger disk.",
            ) from error
        raise StorageError(
            f"The temporary folder {folder} cannot be written to: {error.strerror}."
        ) from error
