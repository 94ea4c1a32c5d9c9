"""The members of a unit as one compressed value, which a table of units holds for each unit.

A hundred million members as nested Arrow columns would take more than ten gigabytes. Packed they
take some 18 bytes each, and those of a large plan lie in a temporary file: the value in the table
is then a reference. A reference means something in its own process only; `inline_members` puts the
members themselves in its place.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from segcore.errors import SegcoreError
from segcore.sources.small_members import Members, pack_small, unpack_small, value_lengths
from segcore.storage.spill import SpillFile

_REFERENCE = b"\xff" * 8  # where a packed value has its length, which is never as large
_LEVEL = 1
_SMALL_BYTES = 512  # members of so few bytes are kept as they are: compressing them saves little
_NO_MEMBERS = bytes(16)  # what `pack_members` would compress
# References from which no table is left cannot be told from others, so this lives as long as the
# process does. Only plans of more than a few million images use it.
_spill = SpillFile(memory_bytes=0)
_process_token = secrets.token_bytes(8)


@dataclass(frozen=True)
class MemberColumns:
    """The members of a unit, or of several, as columns.

    Attributes:
        image_ids: large_string; null where equal to the uri, which is the usual case.
        uris, etags: large_string.
        sizes: int64.
    """

    image_ids: pa.Array
    uris: pa.Array
    etags: pa.Array
    sizes: pa.Array

    def __len__(self) -> int:
        return len(self.uris)

    def slice(self, start: int, length: int) -> MemberColumns:
        """Some of the members; no copy."""
        return MemberColumns(*(column.slice(start, length) for column in self.columns()))

    def take(self, rows: np.ndarray) -> MemberColumns:
        """The members in these rows."""
        return MemberColumns(*(column.take(pa.array(rows)) for column in self.columns()))

    def columns(self) -> tuple[pa.Array, pa.Array, pa.Array, pa.Array]:
        """In the order of stored plans."""
        return self.image_ids, self.uris, self.etags, self.sizes

    @classmethod
    def of_images(cls, uris: pa.Array, etags: pa.Array, sizes: pa.Array) -> MemberColumns:
        """Loose images, whose ids are their URIs."""
        return cls(pa.nulls(len(uris), pa.large_string()), uris, etags, sizes)

    @classmethod
    def concat(cls, parts: list[MemberColumns]) -> MemberColumns:
        """The members of all parts."""
        if not parts:
            empty = pa.array([], pa.large_string())
            return cls(empty, empty, empty, pa.array([], pa.int64()))
        columns = zip(*(part.columns() for part in parts), strict=True)
        return cls(*map(pa.concat_arrays, columns))


def pack_members(members: MemberColumns) -> bytes:
    """Members as one compressed value; inverse of `unpack_members`."""
    if not len(members):
        return b""
    has_ids = members.image_ids.null_count < len(members)
    parts: list[Any] = [np.array([len(members), has_ids], np.int64), _numbers(members.sizes)]
    texts = [members.uris, members.etags]
    if has_ids:
        parts.append(np.asarray(members.image_ids.is_valid().to_pylist(), np.uint8))
        texts.append(members.image_ids.fill_null(""))
    contents = []
    for text in texts:
        lengths, content = _split_text(text)
        parts.append(lengths)
        contents.append(content)
    data = b"".join([*(part.tobytes() for part in parts), *contents])
    return _compress(data, pa.Codec("zstd", _LEVEL))


def pack_all(members: MemberColumns, offsets: np.ndarray) -> pa.Array:
    """What `pack_members` gives for each unit, at a tenth of the time where units are small.

    Returns:
        (N,) large_binary.

    Args:
        offsets: (N + 1,) int64: where the members of each unit begin, and where the last ends.
    """
    first, last = int(offsets[0]), int(offsets[-1])
    members, bounds = members.slice(first, last - first), (offsets - first).tolist()
    if not members.image_ids.null_count < len(members):  # not those of shards
        (uri_lengths, uris), (etag_lengths, etags) = map(_split_text, (members.uris, members.etags))
        small = Members(
            np.diff(offsets),
            _numbers(members.sizes),
            uri_lengths.astype(np.int64),
            etag_lengths.astype(np.int64),
            np.frombuffer(uris, np.uint8),
            np.frombuffer(etags, np.uint8),
        )
        if value_lengths(small).max(initial=0) <= 8 + _SMALL_BYTES:
            return pack_small(small)
    packed = [pack_members(members.slice(i, j - i)) for i, j in pairwise(bounds)]
    return pa.array(packed, pa.large_binary())


def _compress(data: bytes, codec: Any) -> bytes:
    """The length of `data`, and its bytes: compressed where that makes them fewer."""
    length = len(data).to_bytes(8, "little")
    if len(data) > _SMALL_BYTES:
        compressed: bytes = codec.compress(data, asbytes=True)
        if len(compressed) < len(data):
            return length + compressed
    return length + data


def unpack_members(packed: bytes) -> MemberColumns:
    """Inverse of `pack_members`, also of a reference to members that are set aside."""
    if not packed:
        return MemberColumns.concat([])
    data = pa.py_buffer(_decompress(packed, pa.Codec("zstd")))
    n, has_ids = np.frombuffer(data, np.int64, 2).tolist()
    sizes = pa.Array.from_buffers(pa.int64(), n, [None, data.slice(16, 8 * n)])
    position = 16 + 8 * n
    is_valid = None
    if has_ids:
        is_valid = np.frombuffer(data, np.uint8, n, position).astype(bool)
        position += n
    lengths = []
    for _ in range(2 + has_ids):
        lengths.append(np.frombuffer(data, np.int32, n, position))
        position += 4 * n
    texts = []
    for text_lengths in lengths:
        offsets = np.zeros(n + 1, np.int64)
        np.cumsum(text_lengths, out=offsets[1:])
        n_chars = int(offsets[-1])
        content = data.slice(position, n_chars)
        texts.append(pa.LargeStringArray.from_buffers(n, pa.py_buffer(offsets), content))
        position += n_chars
    image_ids = pa.nulls(n, pa.large_string())
    if is_valid is not None:
        image_ids = pa.array(texts[2].to_pylist(), pa.large_string(), mask=~is_valid)
    return MemberColumns(image_ids, texts[0], texts[1], sizes)


def unpack_all(values: pa.Array) -> tuple[MemberColumns, np.ndarray]:
    """The members of all units in one, and (N,) int64 how many each has.

    As `unpack_members` for each, at a tenth of the time where units are small.

    Args:
        values: (N,) large_binary.
    """
    if (small := unpack_small(values)) is not None:
        uris = _join_text(small.uri_lengths, small.uris)
        etags = _join_text(small.etag_lengths, small.etags)
        return MemberColumns.of_images(uris, etags, pa.array(small.sizes)), small.counts
    codec, packed_values = pa.Codec("zstd"), values.to_pylist()
    contents = [_decompress(packed, codec) if packed else _NO_MEMBERS for packed in packed_values]
    headers = np.frombuffer(b"".join([data[:16] for data in contents]), np.int64).reshape(-1, 2)
    counts = headers[:, 0].copy()
    if headers[:, 1].any():  # images with ids of their own are members of shards
        return MemberColumns.concat([unpack_members(packed) for packed in packed_values]), counts
    lengths, texts = [], []
    starts = [16 + 8 * n for n in counts.tolist()]
    sizes = b"".join([data[16:start] for data, start in zip(contents, starts, strict=True)])
    for _ in range(2):  # URIs, etags
        ends = [start + 4 * n for start, n in zip(starts, counts.tolist(), strict=True)]
        joined = b"".join([d[i:j] for d, i, j in zip(contents, starts, ends, strict=True)])
        lengths.append(np.frombuffer(joined, np.int32).astype(np.int64))
        starts = ends
    first_rows = np.concatenate(([0], np.cumsum(counts)))
    for text_lengths in lengths:
        offsets = np.concatenate(([0], np.cumsum(text_lengths)))
        n_bytes = np.diff(offsets[first_rows]).tolist()
        ends = [start + n for start, n in zip(starts, n_bytes, strict=True)]
        joined = b"".join([d[i:j] for d, i, j in zip(contents, starts, ends, strict=True)])
        starts = ends
        buffers = pa.py_buffer(offsets), pa.py_buffer(joined)
        texts.append(pa.LargeStringArray.from_buffers(len(text_lengths), *buffers))
    numbers = pa.Array.from_buffers(pa.int64(), int(first_rows[-1]), [None, pa.py_buffer(sizes)])
    uris, etags = texts
    return MemberColumns.of_images(uris, etags, numbers), counts


def _decompress(packed: bytes, codec: Any) -> bytes:
    packed = _resolve(packed)
    n_bytes = int.from_bytes(packed[:8], "little")
    if len(packed) == 8 + n_bytes:  # see `_compress`
        return packed[8:]
    data: bytes = codec.decompress(packed[8:], n_bytes, asbytes=True)
    return data


def set_aside(packed: bytes) -> bytes:
    """A reference to packed members, which go to a temporary file.

    Raises:
        StorageFull, StorageError: They cannot be written there.
    """
    place = _spill.append(packed)
    numbers = np.array([place, len(packed)], np.int64).tobytes()
    return _REFERENCE + _process_token + numbers


def _resolve(packed: bytes) -> bytes:
    """The packed members themselves."""
    if not packed.startswith(_REFERENCE):
        return packed
    if packed[8:16] != _process_token:
        raise SegcoreError("A plan was handed to another process without its images.")
    place, length = np.frombuffer(packed, np.int64, 2, 16).tolist()
    return _spill.read(place, length)


def inline_members(table: pa.Table) -> pa.Table:
    """A table of units that other processes can read: with the members in place of references."""
    place = table.schema.get_field_index("members")
    values = table["members"].to_pylist()
    if not any(packed.startswith(_REFERENCE) for packed in values):
        return table
    members = pa.array([_resolve(packed) for packed in values], pa.large_binary())
    return table.set_column(place, table.schema.field(place), members)


def _numbers(column: pa.Array) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False)


def _join_text(lengths: np.ndarray, content: np.ndarray) -> pa.Array:
    """Inverse of `_split_text`."""
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    buffers = pa.py_buffer(offsets), pa.py_buffer(content)
    return pa.LargeStringArray.from_buffers(len(lengths), *buffers)


def _split_text(column: pa.Array) -> tuple[np.ndarray, Any]:
    """((N,) int32 lengths in bytes, all bytes) of a large_string column without nulls."""
    n = len(column)
    _, offset_buffer, content = column.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64, n + 1, 8 * column.offset)
    start, end = int(offsets[0]), int(offsets[-1])
    text = memoryview(content)[start:end] if content is not None else b""
    return np.diff(offsets).astype(np.int32), text
