"""Looks objects up among a hundred million others, in 16 bytes of memory per object.

An object is hashed with its version to 96 bits (of BLAKE2b). By the birthday bound, a hundred
million of them collide with a probability of 10^-13, as that of the 80-bit ids of their units.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

_DIGEST_BYTES = 16
_BUCKET_BITS = 6  # the index is sorted bucket by bucket, so that sorting takes little memory
_BUCKETS = 1 << _BUCKET_BITS
_PIECE_ROWS = 1 << 16


def object_digests(uris: Sequence[str], sizes: Sequence[int], etags: Sequence[str]) -> bytes:
    """The digests of all objects, 16 bytes each, one after another."""
    blake2b = hashlib.blake2b
    return b"".join(
        [
            blake2b(f"{len(uri)} {uri} {size} {etag}".encode(), digest_size=_DIGEST_BYTES).digest()
            for uri, size, etag in zip(uris, sizes, etags, strict=True)
        ]
    )


class HashIndex:
    """Finds the row of a digest.

    Args:
        digests: The digests of all rows in order, in pieces of any length.
    """

    def __init__(self, digests: Iterable[bytes]) -> None:
        pieces: list[list[tuple[np.ndarray, ...]]] = [[] for _ in range(_BUCKETS)]
        self.num_rows = 0
        for data in _gather(digests):
            high, low = _halves(data)
            rows = np.arange(self.num_rows, self.num_rows + len(high))
            rows = rows.astype(np.uint32 if rows[-1] < 2**32 else np.int64)
            self.num_rows += len(rows)
            for bucket, selected in _split_by_bucket(high):
                pieces[bucket].append((high[selected], low[selected], rows[selected]))
        # Of each bucket: the first 64 bits of its digests, ascending; 32 more bits; their rows.
        self._buckets: list[tuple[np.ndarray, ...] | None] = []
        while pieces:
            self._buckets.insert(0, _sort_bucket(pieces.pop()))

    def find(self, digests: bytes) -> np.ndarray:
        """(M,) int64: the rows of M digests, -1 for a digest that no row has."""
        high, low = _halves(digests)
        found = np.full(len(high), -1, np.int64)
        for number, selected in _split_by_bucket(high):
            bucket = self._buckets[number]
            if bucket is not None:
                found[selected] = _find_in_bucket(bucket, high[selected], low[selected])
        return found


def _gather(digests: Iterable[bytes]) -> Iterator[bytes]:
    """The same digests in pieces that are worth to be split, none of them empty."""
    pending: list[bytes] = []
    n_bytes = 0
    for piece in digests:
        pending.append(piece)
        n_bytes += len(piece)
        if n_bytes >= _PIECE_ROWS * _DIGEST_BYTES:
            yield b"".join(pending)
            pending, n_bytes = [], 0
    if n_bytes:
        yield b"".join(pending)


def _halves(digests: bytes) -> tuple[np.ndarray, np.ndarray]:
    """((M,) uint64, (M,) uint32): the parts of the digests that are kept."""
    halves = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    return halves[:, 0].copy(), halves[:, 1].astype(np.uint32)


def _split_by_bucket(high: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(bucket, its rows in their order, sorted by `high`) of each bucket that has some."""
    order = np.argsort(high, kind="stable")
    numbers = (high[order] >> np.uint64(64 - _BUCKET_BITS)).astype(np.int64)
    bounds = np.searchsorted(numbers, np.arange(_BUCKETS + 1))
    for bucket in np.flatnonzero(np.diff(bounds)).tolist():
        yield bucket, order[bounds[bucket] : bounds[bucket + 1]]


def _sort_bucket(pieces: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...] | None:
    if not pieces:
        return None
    high, low, rows = (np.concatenate(columns) for columns in zip(*pieces, strict=True))
    order = np.argsort(high, kind="stable")
    return high[order], low[order], rows[order]


def _find_in_bucket(
    bucket: tuple[np.ndarray, ...], high: np.ndarray, low: np.ndarray
) -> np.ndarray:
    bucket_high, bucket_low, bucket_rows = bucket
    found = np.full(len(high), -1, np.int64)
    place = np.searchsorted(bucket_high, high)
    unresolved = np.arange(len(high))
    while unresolved.size:  # more than once only if two rows share their first 64 bits
        unresolved = unresolved[place[unresolved] < len(bucket_high)]
        unresolved = unresolved[bucket_high[place[unresolved]] == high[unresolved]]
        is_match = bucket_low[place[unresolved]] == low[unresolved]
        matched = unresolved[is_match]
        found[matched] = bucket_rows[place[matched]]
        unresolved = unresolved[~is_match]
        place[unresolved] += 1
    return found
