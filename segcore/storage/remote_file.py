"""A remote object as a seekable file, read by concurrent range requests."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

# One connection to an object store gives some 50 to 100 MB/s after a round trip of tens of
# milliseconds. With much smaller ranges the round trips dominate; with larger ones the first image
# comes later.
_RANGE_BYTES = 2 << 20
_MAX_CONCURRENT_REQUESTS = 12  # per file, which therefore holds at most 24 MiB in memory


class RemoteFile(io.RawIOBase):
    """Reads bytes of a remote object; for use behind `io.BufferedReader`.

    Args:
        fetch: (start, length) -> bytes from there; fewer at the end of the object.
        size: Size of the object in bytes.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch, self._size = fetch, size
        self._position = 0

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def tell(self) -> int:
        """The byte at which the next read starts."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position of the next read; does not fetch anything."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to the negative position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read the bytes of one range into `buffer` and return their number; 0 at the end."""
        length = min(len(buffer), self._size - self._position)
        if length <= 0:
            return 0
        data = self._read_range(self._position, length)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read_range(self, start: int, length: int) -> bytes | memoryview:
        """At least one byte from `start`, at most `length`; none if the object has shrunk."""
        return self._fetch(start, length)


@dataclass(frozen=True)
class _RequestedRange:
    start: int
    stop: int
    data: Future[bytes]


class PrefetchingRemoteFile(RemoteFile):
    """Splits long reads into concurrent requests, and reads ahead.

    Args:
        fetch: As for `RemoteFile`; called from several threads.
        size: Size of the object in bytes.
        prefetch_until: Bytes before this position are fetched before they are read, as soon as
            reading comes near them. 0 turns prefetching off.
    """

    def __init__(
        self, fetch: Callable[[int, int], bytes], size: int, prefetch_until: int = 0
    ) -> None:
        super().__init__(fetch, size)
        self._prefetch_until = min(prefetch_until, size)
        self._ranges: deque[_RequestedRange] = deque()  # adjacent to each other
        self._pool = ThreadPoolExecutor(_MAX_CONCURRENT_REQUESTS, "segcore-range")

    def _read_range(self, start: int, length: int) -> memoryview:
        self._discard_before(start)
        # A read that starts before `prefetch_until` may end there: the bytes after it may never be
        # needed.
        is_prefetched = start < self._prefetch_until
        self._request_until(start, self._prefetch_until if is_prefetched else start + length)
        first = self._ranges[0]
        try:
            data = first.data.result()
        except BaseException:
            self._discard_before(self._size)  # so that another attempt sends new requests
            raise
        begin = start - first.start
        return memoryview(data)[begin : begin + length]

    def _discard_before(self, start: int) -> None:
        """Discard the ranges before `start`; all of them if none contains it."""
        is_covered = bool(self._ranges) and self._ranges[0].start <= start < self._ranges[-1].stop
        while self._ranges and not (is_covered and start < self._ranges[0].stop):
            self._ranges.popleft().data.cancel()

    def _request_until(self, start: int, stop: int) -> None:
        """Request the ranges from `start` to `stop`, as many as may be in flight."""
        position = self._ranges[-1].stop if self._ranges else start
        while position < stop and len(self._ranges) < _MAX_CONCURRENT_REQUESTS:
            end = min(position + _RANGE_BYTES, stop)
            data = self._pool.submit(self._fetch, position, end - position)
            self._ranges.append(_RequestedRange(position, end, data))
            position = end

    def close(self) -> None:
        """Discard prefetched bytes; does not wait for requests in flight."""
        if not self.closed:
            self._ranges.clear()
            self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()
