"""Indexes of large tar shards: where their images begin, which is what cutting them takes.

To index a shard is to read most of it. The index depends on the version of the shard and on what
counts as an image, so it is kept under a hash of these, and the next plan reads no shard.
"""

from __future__ import annotations

import hashlib
import io
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segcore.errors import ObjectNotFound, StorageError
from segcore.sources.base import SourceOptions, UniqueImageIds
from segcore.sources.tar_members import (
    READER_VERSION,
    DamagedArchive,
    InnerTar,
    iter_tar_members,
)
from segcore.storage import Storage
from segcore.text import parse_json

# A shard below this is read again sooner than its index is worth an object in the output.
MIN_KEPT_BYTES = 64 << 20
_INDEX_BUFFER_BYTES = 1 << 20  # smaller members are read through, larger ones are skipped
_VERSION = "1"  # of the file
_SCHEMA = pa.schema(
    [
        pa.field("start", pa.int64(), nullable=False),  # of the headers
        pa.field("end", pa.int64(), nullable=False),  # of the content
        pa.field("is_damage", pa.bool_(), nullable=False),
        pa.field("enclosing", pa.string(), nullable=False),  # inner archives as JSON; "" for none
        pa.field("duplicate_id", pa.string()),  # image id and name of a renamed duplicate
        pa.field("duplicate_name", pa.string()),
    ]
)
_BLOCK_BYTES = 512
_MAX_END = 1 << 62
_MAX_TEXT_BYTES = 64 << 20


@dataclass(frozen=True)
class IndexTask:
    """A shard to index, and where the index is to be kept.

    Attributes:
        uri, etag, size: Of the shard.
        reader: What counts as an image, as in `Unit.reader`.
        index_uri: "" for nowhere.
    """

    uri: str
    etag: str
    size: int
    reader: str
    storage: Storage = field(repr=False)
    options: SourceOptions = field(repr=False)
    index_uri: str = ""

    @property
    def key(self) -> str:
        """What the index depends on, hashed."""
        version = [_VERSION, READER_VERSION]
        text = json.dumps([version, self.uri, self.etag, self.size, self.reader])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


IndexShards = Callable[[list[IndexTask]], None]  # builds the indexes of shards and keeps them


@dataclass(frozen=True)
class TarIndex:
    """The images of a shard in order, and places where it is damaged inside.

    Attributes:
        entries: Columns of `_SCHEMA`.
        is_damaged: Whether the shard cannot be read up to its end.
    """

    entries: pa.Table
    is_damaged: bool

    def rows(self) -> Iterator[dict[str, Any]]:
        """The entries one by one; `enclosing` as inner archives."""
        for batch in self.entries.to_batches(10_000):
            for row in batch.to_pylist():
                yield row | {"enclosing": _parse_enclosing(row["enclosing"])}


def build_index(task: IndexTask) -> TarIndex:
    """Read the headers of a shard.

    Raises:
        StorageError: It cannot be read.
    """
    starts, ends, damage = array("q"), array("q"), bytearray()
    enclosing: list[str] = []
    duplicates: dict[int, tuple[str, str]] = {}
    image_ids = UniqueImageIds(task.uri)
    is_damaged = False
    with task.storage.open(task.uri, _INDEX_BUFFER_BYTES) as file:
        try:
            for member in iter_tar_members(file, 0, task.size, task.size, Counter()):
                if not (member.damage or task.options.is_image_name(member.name)):
                    continue
                if not member.damage:
                    image_id, is_duplicate = image_ids.assign(member.name)
                    if is_duplicate:
                        duplicates[len(starts)] = image_id, member.name
                starts.append(member.header_offset)
                ends.append(min(member.data_offset + member.size, _MAX_END))
                damage.append(bool(member.damage))
                text = _format_enclosing(member.enclosing)
                enclosing.append(enclosing[-1] if enclosing and enclosing[-1] == text else text)
        except DamagedArchive:
            is_damaged = True  # whoever reads the last piece finds the damage again and reports it
    rows = np.fromiter(duplicates, np.int64, len(duplicates))
    columns = [
        pa.array(np.array(starts, np.int64)),
        pa.array(np.array(ends, np.int64)),
        pa.array(np.frombuffer(damage, np.uint8).astype(bool)),
        pa.array(enclosing, pa.string()),
        *(_scatter(rows, values, len(starts)) for values in _transpose(duplicates)),
    ]
    return TarIndex(pa.Table.from_arrays(columns, schema=_SCHEMA), is_damaged)


def _transpose(duplicates: dict[int, tuple[str, str]]) -> list[list[str]]:
    return [[pair[i] for pair in duplicates.values()] for i in range(2)]


def _scatter(rows: np.ndarray, values: list[str], n: int) -> pa.Array:
    """(n,) texts: these values in these rows, null elsewhere."""
    places = np.full(n, -1, np.int64)
    places[rows] = np.arange(len(rows))
    return pa.array(values, pa.string()).take(pa.array(places, mask=places < 0))


def keep_index(task: IndexTask) -> TarIndex:
    """Build the index, and keep it unless the shard has changed since it was listed.

    Raises:
        StorageError: The shard cannot be read, or the index not be written.
    """
    index = build_index(task)
    storage = task.storage
    is_planned = task.etag in (storage.stat(task.uri).etag, storage.listed_etag(task.uri))
    if task.index_uri and task.etag and is_planned:
        storage.write(task.index_uri, encode_index(index, task))
    return index


def has_index(task: IndexTask) -> bool:
    """Whether an index is kept that can be read."""
    return read_index(task) is not None


def read_index(task: IndexTask) -> TarIndex | None:
    """The index that is kept; None if there is none, or none that can be true."""
    if not task.index_uri:
        return None
    try:
        data = task.storage.read(task.index_uri, _MAX_TEXT_BYTES + task.size // 8)
    except ObjectNotFound:
        return None
    except StorageError:
        return None  # one that is too large, too: building it says what is wrong with the storage
    return decode_index(data, task)


def encode_index(index: TarIndex, task: IndexTask) -> bytes:
    """The index as a Parquet file."""
    metadata = {"segcore.tar_index": task.key, "segcore.is_damaged": str(int(index.is_damaged))}
    sink = io.BytesIO()
    pq.write_table(index.entries.replace_schema_metadata(metadata), sink, compression="zstd")
    return sink.getvalue()


def decode_index(data: bytes, task: IndexTask) -> TarIndex | None:
    """Inverse of `encode_index`; None if it is damaged, of another shard, or cannot be true."""
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        metadata = file.schema_arrow.metadata or {}
        if metadata.get(b"segcore.tar_index") != task.key.encode():
            return None
        is_small = file.metadata.num_rows <= task.size // _BLOCK_BYTES + 1
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        n_bytes = sum(group.total_byte_size for group in groups)
        if not is_small or n_bytes > _MAX_TEXT_BYTES + 64 * file.metadata.num_rows:
            return None
        entries = file.read(use_threads=False)
        if entries.schema.remove_metadata() != _SCHEMA or not _is_possible(entries, task.size):
            return None
        return TarIndex(entries, metadata.get(b"segcore.is_damaged") == b"1")
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None


def _is_possible(entries: pa.Table, size: int) -> bool:
    """Whether a shard of this size may have such entries.

    Raises:
        ValueError, KeyError, TypeError: They are not even that.
    """
    starts, ends = entries["start"].to_numpy(), entries["end"].to_numpy()
    for text in pc.unique(entries["enclosing"]).to_pylist():
        if any(not 0 < inner.end <= size for inner in _parse_enclosing(text)):
            return False
    has_id = entries["duplicate_id"].is_valid()
    return bool(
        np.all(np.diff(starts) >= 0)
        and np.all((starts >= 0) & (starts < max(size, 1)) & (ends >= starts) & (ends <= _MAX_END))
        and has_id.equals(entries["duplicate_name"].is_valid())
    )


def _format_enclosing(enclosing: tuple[InnerTar, ...]) -> str:
    return json.dumps([[inner.name, inner.end] for inner in enclosing]) if enclosing else ""


def _parse_enclosing(text: str) -> tuple[InnerTar, ...]:
    if not text:
        return ()
    return tuple(InnerTar(str(name), int(end)) for name, end in parse_json(text))
