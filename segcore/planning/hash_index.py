"""Looks objects up among a hundred million others, in 16 bytes of memory per object.

An object is hashed with its version to 96 bits, by a multilinear hash with keys that each process
draws anew (Lemire and Kaser, "Strongly universal string hashing is fast", 2014): whatever the names
are, two different ones collide with a probability of 2^-96, and a hundred million of them with one
of 10^-13, as the 80-bit ids of their units do. Nobody can choose names that collide, because the
keys are secret; hashes are therefore never stored.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

_LANES = 3  # hashes of 32 bits
_MAX_WORDS = 1024  # of four bytes; longer texts are hashed by BLAKE2b first
_BUCKET_BITS = 6  # the index is sorted bucket by bucket, so that sorting takes little memory
_BUCKETS = 1 << _BUCKET_BITS
_PIECE_ROWS = 1 << 16
_UNDIVIDED_ROWS = 1 << 20  # of an index of no more rows, all buckets are searched at once


def _draw_keys(n: int) -> np.ndarray:
    return np.frombuffer(secrets.token_bytes(8 * n * _LANES), np.uint64).reshape(n, _LANES)


_FIRST_KEYS = _draw_keys(3)
_TEXT_KEYS = [_draw_keys(_MAX_WORDS + 1) for _ in range(2)]  # of URIs and of etags


class Digests(NamedTuple):
    """Hashes of N objects: (N,) uint64 and (N,) uint32."""

    high: np.ndarray
    low: np.ndarray

    def select(self, rows: np.ndarray) -> Digests:
        """Those of some rows, copied."""
        return Digests(self.high[rows], self.low[rows])


def object_digests(uris: pa.Array, sizes: np.ndarray, etags: pa.Array) -> Digests:
    """The digests of objects; valid in this process alone.

    Args:
        uris, etags: (N,) large_string without nulls.
        sizes: (N,) int64.
    """
    sums = np.tile(_FIRST_KEYS[0], (len(uris), 1)).T.copy()
    for keys, half in zip(_FIRST_KEYS[1:], (sizes & 0xFFFFFFFF, sizes >> 32), strict=True):
        sums += keys[:, None] * (half & 0xFFFFFFFF).astype(np.uint64)
    for text, text_keys in zip((uris, etags), _TEXT_KEYS, strict=True):
        _add_text(sums, text, text_keys)
    upper = np.uint64(0xFFFFFFFF00000000)  # the lower bits are weaker
    shift = np.uint64(32)
    return Digests((sums[0] & upper) | (sums[1] >> shift), (sums[2] >> shift).astype(np.uint32))


def uri_digests(uris: pa.Array) -> Digests:
    """The digests of URIs alone."""
    no_etags = pa.array([""], pa.large_string()).take(pa.array(np.zeros(len(uris), np.int64)))
    return object_digests(uris, np.zeros(len(uris), np.int64), no_etags)


def _add_text(sums: np.ndarray, text: pa.Array, keys: np.ndarray) -> None:
    """Add the length and the words of each text, each times a key of its own, modulo 2^64."""
    starts, lengths, data = _locate(text)
    sums += keys[0][:, None] * lengths.astype(np.uint64)
    is_long = lengths > 4 * _MAX_WORDS
    if is_long.any():
        lengths = np.where(is_long, 0, lengths)
        for row in np.flatnonzero(is_long).tolist():
            digest = hashlib.blake2b(text[row].as_py().encode(), digest_size=32).digest()
            words = np.frombuffer(digest, "<u4").astype(np.uint64)
            sums[:, row] += (keys[1 : 1 + len(words)] * words[:, None]).sum(0, np.uint64)
    words_at = np.ndarray(len(data) - 3, "<u4", data, strides=(1,))  # the word at each byte
    rows = np.arange(len(lengths))
    for number in range(-(-int(lengths.max(initial=0)) // 4)):
        left = lengths[rows] - 4 * number
        if left.min() <= 0:
            rows = rows[left > 0]
            left = left[left > 0]
        words = words_at[starts[rows] + 4 * number].astype(np.uint64)
        if left.min() < 4:  # the last word is cut off
            words &= (np.uint64(1) << (np.minimum(left, 4) * 8).astype(np.uint64)) - np.uint64(1)
        for lane in range(_LANES):
            product = words * keys[number + 1, lane]
            if len(rows) == len(lengths):
                sums[lane] += product
            else:
                sums[lane, rows] += product


def _locate(text: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """((N,) starts, (N,) lengths, all bytes and three more) of an array of texts."""
    n = len(text)
    if not n:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(4, np.uint8)
    _, offset_buffer, content = text.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64, n + 1, 8 * text.offset)
    data = np.zeros(int(offsets[-1] - offsets[0]) + 4, np.uint8)
    if content is not None:
        data[:-4] = np.frombuffer(content, np.uint8)[offsets[0] : offsets[-1]]
    return offsets[:-1] - offsets[0], np.diff(offsets), data


class HashIndex:
    """Finds the row of a digest.

    Args:
        digests: The digests of all rows in order, in pieces of any length.
        n_rows: How many they are.
    """

    def __init__(self, digests: Iterable[Digests], n_rows: int) -> None:
        filling = [_Bucket(n_rows) for _ in range(_BUCKETS)]
        first = 0
        for high, low in _gather(digests):
            for number, selected in _split_by_bucket(high):
                filling[number].append(high[selected], low[selected], first + selected)
            first += len(high)
        self.num_rows = n_rows
        # Of each bucket: the first 64 bits of its digests, ascending; 32 more bits; their rows.
        self._buckets = [bucket.sort() for bucket in filling]
        self._whole: tuple[np.ndarray, ...] | None = None
        if 0 < self.num_rows <= _UNDIVIDED_ROWS:
            filled = [bucket for bucket in self._buckets if bucket is not None]
            self._whole = tuple(map(np.concatenate, zip(*filled, strict=True)))
            self._buckets = []

    def find(self, digests: Digests) -> np.ndarray:
        """(M,) int64: the rows of M digests, -1 for a digest that no row has."""
        high, low = digests
        if self._whole is not None:
            return _find_in_bucket(self._whole, high, low)
        found = np.full(len(high), -1, np.int64)
        for number, selected in _split_by_bucket(high):
            bucket = self._buckets[number]
            if bucket is not None:
                found[selected] = _find_in_bucket(bucket, high[selected], low[selected])
        return found


class _Bucket:
    """Digests with the same first bits, and their rows.

    They go into arrays that have room for all of them. Pieces that are joined at the end would
    take twice the memory, since the allocator does not give back so many small ones.

    Args:
        n_rows: Of all buckets; each gets about the same share, unless objects are listed often.
    """

    def __init__(self, n_rows: int) -> None:
        share = n_rows / _BUCKETS
        capacity = int(share + 6 * share**0.5) + 1
        row_type = np.uint32 if n_rows < 2**32 else np.int64
        self._columns = [np.empty(capacity, t) for t in (np.uint64, np.uint32, row_type)]
        self._n = 0

    def append(self, *values: np.ndarray) -> None:
        """Add the two parts of digests, and their rows."""
        stop = self._n + len(values[0])
        if stop > len(self._columns[0]):
            room = stop - self._n + stop // 4
            self._columns = [
                np.concatenate([column[: self._n], np.empty(room, column.dtype)])
                for column in self._columns
            ]
        for column, new in zip(self._columns, values, strict=True):
            column[self._n : stop] = new
        self._n = stop

    def sort(self) -> tuple[np.ndarray, ...] | None:
        """What was added, by the first part of the digests; None if nothing was."""
        if not self._n:
            return None
        columns = [column[: self._n] for column in self._columns]
        order = np.argsort(columns[0], kind="stable")
        for column in columns:
            column[:] = column[order]
        return tuple(columns)


def _gather(digests: Iterable[Digests]) -> Iterator[Digests]:
    """The same digests in pieces that are worth to be split, none of them empty."""
    pending: list[Digests] = []
    n_rows = 0
    for piece in digests:
        pending.append(piece)
        n_rows += len(piece.high)
        if n_rows >= _PIECE_ROWS:
            yield _concat(pending)
            pending, n_rows = [], 0
    if n_rows:
        yield _concat(pending)


def _concat(pieces: list[Digests]) -> Digests:
    return Digests(*map(np.concatenate, zip(*pieces, strict=True)))


def _split_by_bucket(high: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(bucket, its rows in their order, sorted by `high`) of each bucket that has some."""
    order = np.argsort(high, kind="stable")
    numbers = (high[order] >> np.uint64(64 - _BUCKET_BITS)).astype(np.int64)
    bounds = np.searchsorted(numbers, np.arange(_BUCKETS + 1))
    for bucket in np.flatnonzero(np.diff(bounds)).tolist():
        yield bucket, order[bounds[bucket] : bounds[bucket + 1]]


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
