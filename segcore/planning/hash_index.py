"""Which of many objects are in a set of ten million others, in 20 bytes an object.

An object is hashed with its version to 128 bits (BLAKE2b): by the birthday bound, ten million of
them collide with probability 10^-25, less than the 80-bit ids of units do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

_BYTES = 16


def object_digests(uris: Sequence[str], sizes: Sequence[int], etags: Sequence[str]) -> bytes:
    """16 bytes for each object, one after another."""
    blake2b = hashlib.blake2b
    return b"".join(
        blake2b(f"{len(uri)} {uri} {size} {etag}".encode(), digest_size=_BYTES).digest()
        for uri, size, etag in zip(uris, sizes, etags, strict=True)
    )


class HashIndex:
    """Finds the row of a digest among `n` rows.

    Args:
        digests: Digests of all rows in order, in pieces of any length.
        n: How many rows.
    """

    def __init__(self, digests: Iterable[bytes], n: int) -> None:
        both = np.empty((n, 2), np.uint64)
        at = 0
        for piece in digests:
            rows = np.frombuffer(piece, np.uint64).reshape(-1, 2)
            both[at : at + len(rows)] = rows
            at += len(rows)
        assert at == n, "a digest for each row"
        order = np.argsort(both[:, 0], kind="stable")
        self._high = both[order, 0]
        self._low = both[order, 1]
        del both
        self._row = order.astype(np.uint32 if n < 2**32 else np.int64)

    def find(self, digests: bytes) -> np.ndarray:
        """(M,) int64 rows of M digests, -1 where there is none."""
        wanted = np.frombuffer(digests, np.uint64).reshape(-1, 2)
        high, low = wanted[:, 0], wanted[:, 1]
        found = np.full(len(wanted), -1, np.int64)
        if not len(self._high):
            return found
        place = np.searchsorted(self._high, high)
        open_ = np.arange(len(wanted))
        while open_.size:  # more than once only where two rows share their first 64 bits
            open_ = open_[place[open_] < len(self._high)]
            open_ = open_[self._high[place[open_]] == high[open_]]
            hit = self._low[place[open_]] == low[open_]
            found[open_[hit]] = self._row[place[open_[hit]]]
            open_ = open_[~hit]
            place[open_] += 1
        return found
