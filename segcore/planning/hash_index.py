"""Looks objects up among ten million others, in 20 bytes of memory per object.

An object is hashed with its version to 128 bits (BLAKE2b). By the birthday bound, ten million of
them collide with a probability of 10^-25, which is less than that of the 80-bit ids of units.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

_DIGEST_BYTES = 16


def object_digests(uris: Sequence[str], sizes: Sequence[int], etags: Sequence[str]) -> bytes:
    """The digests of all objects, 16 bytes each, one after another."""
    blake2b = hashlib.blake2b
    return b"".join(
        blake2b(f"{len(uri)} {uri} {size} {etag}".encode(), digest_size=_DIGEST_BYTES).digest()
        for uri, size, etag in zip(uris, sizes, etags, strict=True)
    )


class HashIndex:
    """Finds the row of a digest among `num_rows` rows.

    Args:
        digests: The digests of all rows in order, in pieces of any length.
        num_rows: Number of rows.
    """

    def __init__(self, digests: Iterable[bytes], num_rows: int) -> None:
        halves = np.empty((num_rows, 2), np.uint64)
        filled = 0
        for piece in digests:
            rows = np.frombuffer(piece, np.uint64).reshape(-1, 2)
            halves[filled : filled + len(rows)] = rows
            filled += len(rows)
        assert filled == num_rows, "a digest for each row"
        order = np.argsort(halves[:, 0], kind="stable")
        self._high = halves[order, 0]  # ascending
        self._low = halves[order, 1]
        del halves  # 160 MB for ten million rows
        self._row = order.astype(np.uint32 if num_rows < 2**32 else np.int64)

    def find(self, digests: bytes) -> np.ndarray:
        """(M,) int64: the rows of M digests, -1 for a digest that no row has."""
        queries = np.frombuffer(digests, np.uint64).reshape(-1, 2)
        high, low = queries[:, 0], queries[:, 1]
        rows = np.full(len(queries), -1, np.int64)
        if not len(self._high):
            return rows
        place = np.searchsorted(self._high, high)
        unresolved = np.arange(len(queries))
        while unresolved.size:  # more than once only if two rows share their first 64 bits
            unresolved = unresolved[place[unresolved] < len(self._high)]
            unresolved = unresolved[self._high[place[unresolved]] == high[unresolved]]
            is_match = self._low[place[unresolved]] == low[unresolved]
            matched = unresolved[is_match]
            rows[matched] = self._row[place[matched]]
            unresolved = unresolved[~is_match]
            place[unresolved] += 1
        return rows
