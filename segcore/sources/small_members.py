"""The members of small units, packed and unpacked many units at a time.

A value is what `segcore.sources.packed_members` keeps uncompressed of a unit whose members have no
ids of their own: as 64-bit numbers the length of the rest, the number of members, 0, and their
sizes; as 32-bit numbers the lengths of their URIs and those of their etags; then all URIs and all
etags. An archive may have a unit for each image: no Python object is made for a unit here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

_HEADER_BYTES = 24
_MEMBER_BYTES = 16  # of a member, besides its texts


class Members(NamedTuple):
    """The members of K units, N in all.

    Attributes:
        counts: (K,) int64: how many each unit has.
        sizes: (N,) int64.
        uri_lengths, etag_lengths: (N,) int64: bytes of each text.
        uris, etags: (bytes,) uint8: the texts one after the other.
    """

    counts: np.ndarray
    sizes: np.ndarray
    uri_lengths: np.ndarray
    etag_lengths: np.ndarray
    uris: np.ndarray
    etags: np.ndarray


class _Places(NamedTuple):
    """Where in the bytes of all values what is: of each member, and of each unit its texts."""

    sizes: np.ndarray
    uri_lengths: np.ndarray
    etag_lengths: np.ndarray
    texts: np.ndarray


def value_lengths(members: Members) -> np.ndarray:
    """(K,) int64: bytes of the value of each unit; 0 for one without members."""
    texts = _sums(members.uri_lengths + members.etag_lengths, members.counts)
    lengths = _HEADER_BYTES + _MEMBER_BYTES * members.counts + texts
    return np.where(members.counts == 0, 0, lengths)


def pack_small(members: Members) -> pa.Array:
    """(K,) large_binary: the value of each unit."""
    lengths = value_lengths(members)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    data = np.zeros(int(offsets[-1]), np.uint8)
    filled = members.counts > 0
    starts = offsets[:-1][filled]
    _put(data, starts, lengths[filled] - 8, 8)
    _put(data, starts + 8, members.counts[filled], 8)
    places = _find(offsets[:-1], members.counts)
    _put(data, places.sizes, members.sizes, 8)
    _put(data, places.uri_lengths, members.uri_lengths, 4)
    _put(data, places.etag_lengths, members.etag_lengths, 4)
    uri_bytes = _sums(members.uri_lengths, members.counts)
    etag_bytes = _sums(members.etag_lengths, members.counts)
    data[_ranges(places.texts, uri_bytes)] = members.uris
    data[_ranges(places.texts + uri_bytes, etag_bytes)] = members.etags
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), len(lengths), buffers)


def unpack_small(values: pa.Array) -> Members | None:
    """Inverse of `pack_small`; None if one of the values is not what that makes."""
    n = len(values)
    offsets = np.frombuffer(values.buffers()[1], np.int64, n + 1, 8 * values.offset)
    content = values.buffers()[2]
    data = np.frombuffer(content, np.uint8) if content is not None else np.zeros(0, np.uint8)
    starts, lengths = offsets[:-1], np.diff(offsets)
    filled = lengths > 0
    if (lengths[filled] < _HEADER_BYTES).any():
        return None
    header = [_get(data, starts[filled] + 8 * number, 8) for number in range(3)]
    if (header[0] != lengths[filled] - 8).any() or header[2].any():
        return None  # compressed, set aside, or with ids
    counts = np.zeros(n, np.int64)
    counts[filled] = header[1]
    places = _find(starts, counts)
    uri_lengths, etag_lengths = (_get(data, place, 4) for place in places[1:3])
    uri_bytes, etag_bytes = _sums(uri_lengths, counts), _sums(etag_lengths, counts)
    uris = data[_ranges(places.texts, uri_bytes)]
    etags = data[_ranges(places.texts + uri_bytes, etag_bytes)]
    return Members(counts, _get(data, places.sizes, 8), uri_lengths, etag_lengths, uris, etags)


def _find(starts: np.ndarray, counts: np.ndarray) -> _Places:
    first_rows = np.cumsum(counts) - counts
    number = np.arange(int(counts.sum())) - np.repeat(first_rows, counts)  # in its unit
    sizes = np.repeat(starts + _HEADER_BYTES, counts)
    in_unit = np.repeat(counts, counts)
    return _Places(
        sizes + 8 * number,
        sizes + 8 * in_unit + 4 * number,
        sizes + 12 * in_unit + 4 * number,
        starts + _HEADER_BYTES + _MEMBER_BYTES * counts,
    )


def _sums(numbers: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The sum of the numbers of each unit."""
    ends = np.concatenate(([0], np.cumsum(numbers)))
    rows = np.concatenate(([0], np.cumsum(counts)))
    return np.diff(ends[rows])


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers from each start on, as many as its length, one range after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def _put(data: np.ndarray, places: np.ndarray, numbers: np.ndarray, width: int) -> None:
    """Write numbers of `width` bytes to places that need not be aligned."""
    as_bytes = numbers.astype(f"<i{width}").view(np.uint8).reshape(-1, width)
    data[places[:, None] + np.arange(width)] = as_bytes


def _get(data: np.ndarray, places: np.ndarray, width: int) -> np.ndarray:
    """Inverse of `_put`, as int64."""
    as_bytes = np.ascontiguousarray(data[places[:, None] + np.arange(width)])
    return as_bytes.view(f"<i{width}").reshape(-1).astype(np.int64)
