"""Parquet shards with a column of image bytes: plain binary, or struct{bytes, path} as on the
Hugging Face hub."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import SegcoreError, UsageError
from segcore.sources.base import Entries, Source, SourceOptions, UniqueImageIds
from segcore.sources.parquet_columns import (
    ParquetColumns,
    find_columns,
    find_image_column,
    has_image_name,
)
from segcore.sources.parquet_rows import (
    ShardReader,
    UnreadableParquet,
    may_hold_images,
    unreadable_if_failing,
)
from segcore.sources.units import Member, Unit, UnitLimits, make_unit
from segcore.storage import Storage

_FOOTER_THREADS = 8
_FOOTER_BUFFER_BYTES = 1 << 20
_MAX_GROUP_ROWS = 10_000_000  # more is damage: one failed row each would fill the memory
_SPLIT_GROUP_ROWS = 1 << 20  # a row group with more is cut: a row may take no bytes at all
_PIECE_ROWS = 1 << 17
_PROBED_SHARDS = 3


@dataclass(kw_only=True)
class ParquetSource(Source):
    """Parquet shards; `shards` has their uri, size and etag."""

    shards: pa.Table = field(repr=False)
    storage: Storage
    options: SourceOptions

    @property
    def fingerprint(self) -> str:
        """The columns that the options name."""
        return f"parquet:{self.options.image_column or ''}:{self.options.key_column or ''}"

    def entries(self) -> pa.Table:
        """The shards."""
        return self.shards

    def cut(self, entries: Entries, limits: UnitLimits) -> Iterator[Unit]:
        """Consecutive row groups, as many as the limits allow (a row group is never split).

        Raises:
            UsageError: A shard has no column with image bytes, or not the one that the options
                name.
        """

        self._check_first_values(entries)

        def units_of(shard: dict[str, Any]) -> list[Unit]:
            return _cut_shard(shard, limits, self.storage, self.options)

        with ThreadPoolExecutor(_FOOTER_THREADS, "segcore-index") as pool:
            for batch in entries.to_batches(1000):
                for units in pool.map(units_of, batch.to_pylist()):
                    yield from units

    def _check_first_values(self, entries: Entries) -> None:
        """Raise if the column that would be read clearly holds something else than images.

        Only a column that neither its name nor the options call images is looked at.
        """
        if self.options.image_column is not None:
            return
        other = ""
        for batch in entries.to_batches(_PROBED_SHARDS):
            for shard in batch.to_pylist():
                columns = probe_shard(shard["uri"], self.storage, self.options)
                if columns is None:
                    return
                other = other or f"{shard['uri']}: column {columns.image!r}"
            break
        if other:
            raise UsageError(
                f"{other} is the only one with bytes, but its first values are no images.",
                "Name the column of the images with --set source.image_column=NAME; for a list of "
                "URIs use --set source.kind=manifest.",
            )


def probe_shard(uri: str, storage: Storage, options: SourceOptions) -> ParquetColumns | None:
    """The columns of a shard if the first images in it clearly are none; None otherwise."""
    try:
        with storage.open(uri, _FOOTER_BUFFER_BYTES) as file, unreadable_if_failing():
            reader = ShardReader(file)
            name = find_image_column(reader.schema)
            if name is None or has_image_name(name):
                return None
            columns = find_columns(reader.schema, options, uri)
            return None if may_hold_images(reader, columns) else columns
    except (UnreadableParquet, SegcoreError):
        return None  # cutting or reading the shard says what is wrong


def _cut_shard(
    shard: dict[str, Any], limits: UnitLimits, storage: Storage, options: SourceOptions
) -> list[Unit]:
    uri, etag = shard["uri"], shard["etag"]
    try:
        with storage.open(uri, _FOOTER_BUFFER_BYTES) as file, unreadable_if_failing():
            reader = ShardReader(file)
            columns = find_columns(reader.schema, options, uri)
            pieces = _split_row_groups(reader.metadata, limits)
            duplicates = _find_duplicates(reader, columns, uri) if len(pieces) > 1 else []
    except UnreadableParquet:
        # One damaged shard is one failed row, not the end of the run: read_parquet reports it.
        return [make_unit("parquet", shard=uri, etag=etag, stop=0, n_images=1,
                          n_bytes=shard["size"])]  # fmt: skip
    units = []
    first_row = 0  # of the piece, in the shard
    for piece in pieces:
        end_row = first_row + piece.n_rows
        begin = bisect_left(duplicates, first_row, key=_row_of)
        end = bisect_left(duplicates, end_row, key=_row_of)
        units.append(
            make_unit("parquet", shard=uri, etag=etag, start=piece.start, stop=piece.stop,
                      n_images=None if columns.is_list else piece.n_rows, n_bytes=piece.n_bytes,
                      reader=replace(columns, rows=piece.rows).to_reader(),
                      members=duplicates[begin:end])
        )  # fmt: skip
        first_row = end_row
    return units


def _row_of(duplicate: Member) -> int:
    return duplicate.size


@dataclass(frozen=True)
class _Piece:
    """What becomes one unit: row groups [start, stop), or the `rows` of one of them."""

    start: int
    stop: int
    n_rows: int
    n_bytes: int
    rows: tuple[int, int] | None = None


def _split_row_groups(metadata: pq.FileMetaData, limits: UnitLimits) -> list[_Piece]:
    """The units of a shard.

    The bytes are those of whole row groups: asking for single columns crashes the process if a
    footer is damaged (seen with pyarrow 26).
    """
    pieces: list[_Piece] = []
    start = n_images = n_bytes = 0
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    if sum(group.num_rows for group in groups) != metadata.num_rows:
        raise UnreadableParquet("its row groups do not add up to its number of rows")
    for index, group in enumerate(groups):
        if not 0 <= group.num_rows <= _MAX_GROUP_ROWS or group.total_byte_size < 0:
            raise UnreadableParquet(f"row group {index} claims {group.num_rows:,} rows")
        is_huge = group.num_rows > _SPLIT_GROUP_ROWS
        is_full = n_images + group.num_rows > limits.images or (
            n_bytes + group.total_byte_size > limits.bytes
        )
        if n_images and (is_full or is_huge):
            pieces.append(_Piece(start, index, n_images, n_bytes))
            start, n_images, n_bytes = index, 0, 0
        if is_huge:
            pieces += _split_huge_group(index, group)
            start, n_images, n_bytes = index + 1, 0, 0
            continue
        n_images, n_bytes = n_images + group.num_rows, n_bytes + group.total_byte_size
    if n_images:
        pieces.append(_Piece(start, metadata.num_row_groups, n_images, n_bytes))
    return pieces


def _split_huge_group(index: int, group: pq.RowGroupMetaData) -> list[_Piece]:
    n_rows = group.num_rows
    return [
        _Piece(index, index + 1, end - begin, group.total_byte_size * (end - begin) // n_rows,
               (begin, end))
        for begin in range(0, n_rows, _PIECE_ROWS)
        for end in [min(begin + _PIECE_ROWS, n_rows)]
    ]  # fmt: skip


def _find_duplicates(reader: ShardReader, columns: ParquetColumns, shard: str) -> list[Member]:
    """The rows whose key occurred before in the shard, in their order."""
    if not columns.key:
        return []  # named by their row numbers
    duplicates: list[Member] = []
    image_ids = UniqueImageIds(shard)
    for group in range(reader.n_groups):
        for row, key in reader.iter_keys(columns, group):
            image_id, is_duplicate = image_ids.assign(key)
            if is_duplicate:
                duplicates.append(Member(image_id, key, "", row))
    return duplicates
