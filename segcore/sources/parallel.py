"""Work on the pieces of a large plan in several threads, in their order.

Arrow, NumPy and zstd let other threads run meanwhile.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Piece = TypeVar("Piece")
Result = TypeVar("Result")

_THREADS = min(4, os.cpu_count() or 1)
_AHEAD = _THREADS + 1  # results and pieces that are in memory at once


def map_in_order(function: Callable[[Piece], Result], pieces: Iterable[Piece]) -> Iterator[Result]:
    """As `map`, with a few pieces in progress at a time; these are taken from the calling thread.

    Raises:
        Exception: What `function` raises, at the place of its piece; later pieces are given up.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(_THREADS, "segcore-plan") as pool:
        try:
            for piece in pieces:
                pending.append(pool.submit(function, piece))
                if len(pending) > _AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # also where the caller stops early
            for future in pending:
                future.cancel()
