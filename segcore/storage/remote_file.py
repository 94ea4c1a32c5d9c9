"""A remote object as a seekable file, fetched by several range requests at once."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

# One connection to an object store gives some 50 to 100 MB/s after a round trip of tens of
# milliseconds. Much smaller pieces are all round trip; larger ones keep the first image waiting.
_PIECE_BYTES = 2 << 20
_AT_ONCE = 12  # requests of one file; with the pieces, what it holds in memory: 24 MiB


class RemoteFile(io.RawIOBase):
    """Reads bytes of a remote object; for use behind `io.BufferedReader`.

    Args:
        fetch: (start, length) -> bytes from there; fewer at the end of the object.
        size: Of the object, bytes.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch, self._size = fetch, size
        self._at = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Byte at which the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Next read elsewhere; nothing is fetched yet."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to the negative position {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill what comes in one go; 0 at the end."""
        length = min(len(buffer), self._size - self._at)
        if length <= 0:
            return 0
        data = self._bytes(self._at, length)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _bytes(self, start: int, length: int) -> bytes | memoryview:
        """At least one byte from `start`, at most `length`; none where the object has shrunk."""
        return self._fetch(start, length)


@dataclass(frozen=True)
class _Piece:
    start: int
    stop: int
    data: Future[bytes]


class FastRemoteFile(RemoteFile):
    """The same with long reads as several requests at once, and with reading ahead.

    Args:
        fetch, size: As above; `fetch` is called by several threads.
        until: What lies before this byte is fetched before it is asked for, as soon as reading
            comes near. 0: nothing is.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int, until: int = 0) -> None:
        super().__init__(fetch, size)
        self._until = min(until, size)
        self._pieces: deque[_Piece] = deque()  # without gaps between them
        self._pool = ThreadPoolExecutor(_AT_ONCE, "segcore-range")

    def _bytes(self, start: int, length: int) -> memoryview:
        self._drop_all_but(start)
        # short of `until`, a read may end there: what lies behind is perhaps not wanted
        self._extend(start, self._until if start < self._until else start + length)
        piece = self._pieces[0]
        try:
            data = piece.data.result()
        except BaseException:
            self._drop_all_but(self._size)  # who tries again asks the store again
            raise
        begin = start - piece.start
        return memoryview(data)[begin : begin + length]

    def _drop_all_but(self, start: int) -> None:
        """Forget the pieces before `start`; all, when it lies in none of them."""
        near = bool(self._pieces) and self._pieces[0].start <= start < self._pieces[-1].stop
        while self._pieces and not (near and start < self._pieces[0].stop):
            self._pieces.popleft().data.cancel()

    def _extend(self, start: int, stop: int) -> None:
        """Ask for pieces from `start` to `stop`, as many as may be under way."""
        at = self._pieces[-1].stop if self._pieces else start
        while at < stop and len(self._pieces) < _AT_ONCE:
            end = min(at + _PIECE_BYTES, stop)
            self._pieces.append(_Piece(at, end, self._pool.submit(self._fetch, at, end - at)))
            at = end

    def close(self) -> None:
        """Also drops what was fetched in vain; does not wait for requests under way."""
        if not self.closed:
            self._pieces.clear()
            self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()
