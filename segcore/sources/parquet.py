"""Parquet shards with a column of image bytes: plain binary, or struct{bytes, path} as on the
Hugging Face hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import ErrorCode, ImageError
from segcore.sources.base import (
    Entries,
    Sample,
    Source,
    SourceOptions,
    UniqueImageIds,
    stat_unchanged_shard,
)
from segcore.sources.parquet_columns import ParquetColumns, find_columns
from segcore.sources.units import Member, Unit, UnitLimits, make_unit
from segcore.storage import Storage

_FOOTER_THREADS = 8
_FOOTER_BUFFER_BYTES = 1 << 20
_MAX_GROUP_ROWS = 10_000_000  # more is damage: one failed row each would fill the memory
_MAX_KEY_CHARS = 1024
_BATCH_ROWS = 32  # bounds the memory of the images that are read together


class _UnreadableParquet(Exception):
    """The file is not Parquet, or is damaged."""


@contextmanager
def _unreadable_if_failing() -> Iterator[None]:
    """Turn the errors that pyarrow raises for damaged files into `_UnreadableParquet`."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, IndexError) as error:
        raise _UnreadableParquet(str(error).partition("\n")[0][:200]) from error


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

        def units_of(shard: dict[str, Any]) -> list[Unit]:
            return _cut_shard(shard, limits, self.storage, self.options)

        with ThreadPoolExecutor(_FOOTER_THREADS, "segcore-index") as pool:
            for batch in entries.to_batches(1000):
                for units in pool.map(units_of, batch.to_pylist()):
                    yield from units


def _cut_shard(
    shard: dict[str, Any], limits: UnitLimits, storage: Storage, options: SourceOptions
) -> list[Unit]:
    uri, etag = shard["uri"], shard["etag"]
    try:
        with storage.open(uri, _FOOTER_BUFFER_BYTES) as file, _unreadable_if_failing():
            parquet = pq.ParquetFile(file)
            columns = find_columns(parquet.schema_arrow, options, uri)
            pieces = _split_row_groups(parquet.metadata, limits)
            duplicates = _find_duplicates(parquet, columns, uri) if len(pieces) > 1 else {}
    except _UnreadableParquet:
        # One damaged shard is one failed row, not the end of the run: read_parquet reports it.
        return [make_unit("parquet", shard=uri, etag=etag, stop=0, n_images=1,
                          n_bytes=shard["size"])]  # fmt: skip
    return [
        make_unit("parquet", shard=uri, etag=etag, start=start, stop=stop, n_images=n_images,
                  n_bytes=n_bytes, reader=columns.to_reader(),
                  members=[member for group in range(start, stop)
                           for member in duplicates.get(group, ())])
        for start, stop, n_images, n_bytes in pieces
    ]  # fmt: skip


def _split_row_groups(
    metadata: pq.FileMetaData, limits: UnitLimits
) -> list[tuple[int, int, int, int]]:
    """(first row group, end, rows, bytes) of each unit of a shard.

    The bytes are those of whole row groups: asking for single columns crashes the process if a
    footer is damaged (seen with pyarrow 26).
    """
    pieces: list[tuple[int, int, int, int]] = []
    start = n_images = n_bytes = 0
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    if sum(group.num_rows for group in groups) != metadata.num_rows:
        raise _UnreadableParquet("its row groups do not add up to its number of rows")
    for index, group in enumerate(groups):
        if not 0 <= group.num_rows <= _MAX_GROUP_ROWS or group.total_byte_size < 0:
            raise _UnreadableParquet(f"row group {index} claims {group.num_rows:,} rows")
        is_full = n_images + group.num_rows > limits.images or (
            n_bytes + group.total_byte_size > limits.bytes
        )
        if n_images and is_full:
            pieces.append((start, index, n_images, n_bytes))
            start, n_images, n_bytes = index, 0, 0
        n_images, n_bytes = n_images + group.num_rows, n_bytes + group.total_byte_size
    if n_images:
        pieces.append((start, metadata.num_row_groups, n_images, n_bytes))
    return pieces


def _find_duplicates(
    parquet: pq.ParquetFile, columns: ParquetColumns, shard: str
) -> dict[int, list[Member]]:
    """The rows whose key occurred before in the shard, by row group."""
    duplicates: dict[int, list[Member]] = {}
    image_ids = UniqueImageIds(shard)
    for group, row, key in _iter_keys(parquet, columns, 0, parquet.num_row_groups):
        image_id, is_duplicate = image_ids.assign(key)
        if is_duplicate:
            duplicates.setdefault(group, []).append(Member(image_id, key, "", row))
    return duplicates


def _iter_keys(
    parquet: pq.ParquetFile, columns: ParquetColumns, start: int, stop: int
) -> Iterator[tuple[int, int, str]]:
    """(row group, row in the shard, key) of row groups `start` to `stop`; reads no images.

    A row without a key, or whose key cannot be read, is named by its row number: a position, but a
    stable one within one version (etag) of the shard.
    """
    row = sum(parquet.metadata.row_group(group).num_rows for group in range(start))
    for group in range(start, stop):
        for key in _read_keys(parquet, columns, group):
            yield group, row, f"row{row}" if key is None else str(key)[:_MAX_KEY_CHARS]
            row += 1


def _read_keys(parquet: pq.ParquetFile, columns: ParquetColumns, group: int) -> list[Any]:
    """The keys of a row group; None for each row if they cannot be read."""
    n_rows = parquet.metadata.row_group(group).num_rows
    if columns.key:
        with suppress(_UnreadableParquet), _unreadable_if_failing():
            table = parquet.read_row_group(group, columns=[columns.key], use_threads=False)
            if table.num_rows == n_rows:
                return list(_resolve_path(table.column(0), columns.key).to_pylist())
    return [None] * n_rows


def _resolve_path(column: Any, path: str) -> Any:
    """The column, or the field of a struct column that `path` names; dictionaries are decoded."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    field_name = path.partition(".")[2]
    if field_name and pa.types.is_struct(column.type):
        index = column.type.get_field_index(field_name)
        column = column.flatten()[index]  # flatten keeps the nulls of the parent
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def read_parquet(
    unit: Unit, storage: Storage, options: SourceOptions, notes: Counter[str]
) -> Iterator[Sample]:
    """The rows of a unit in the order of the shard; counts "duplicate_names" in `notes`.

    The rows of a damaged row group become failed rows `shard_corrupt`, each under its own key.

    Raises:
        StorageError: The shard is gone, must not be read, or has changed since planning.
    """
    info = stat_unchanged_shard(unit, storage)
    with storage.stream(info) as file:
        try:
            with _unreadable_if_failing():
                parquet = pq.ParquetFile(file)
            if not unit.reader:
                raise _UnreadableParquet("it could not be read while planning")
        except _UnreadableParquet as error:
            yield _failed_sample(unit, f"{unit.shard}#file", ErrorCode.SHARD_CORRUPT, str(error))
            return
        columns = ParquetColumns.from_reader(unit.reader)
        is_whole_shard = (unit.start, unit.stop) == (0, parquet.num_row_groups)
        image_ids = UniqueImageIds(unit.shard) if is_whole_shard else None
        duplicate_ids = {member.size: member.image_id for member in unit.members}  # by row
        for group in range(unit.start, unit.stop):
            rows = _name_rows(unit, parquet, columns, group, image_ids, duplicate_ids)
            notes["duplicate_names"] += sum(is_duplicate for _, is_duplicate in rows)
            yield from _read_group(unit, parquet, columns, group, rows, options)


def _name_rows(
    unit: Unit,
    parquet: pq.ParquetFile,
    columns: ParquetColumns,
    group: int,
    image_ids: UniqueImageIds | None,
    duplicate_ids: dict[int, str],
) -> list[tuple[str, bool]]:
    """(image id, whether it is a renamed duplicate) of each row of a row group.

    Args:
        image_ids: Assigns the ids if the unit is a whole shard. Otherwise `duplicate_ids` (row in
            the shard -> image id) has those of the renamed duplicates, found while planning.
    """
    keys = _iter_keys(parquet, columns, group, group + 1)
    if image_ids is not None:
        return [image_ids.assign(key) for _, _, key in keys]
    return [
        (duplicate_ids.get(row, f"{unit.shard}#{key}"), row in duplicate_ids)
        for _, row, key in keys
    ]


def _read_group(
    unit: Unit,
    parquet: pq.ParquetFile,
    columns: ParquetColumns,
    group: int,
    rows: list[tuple[str, bool]],
    options: SourceOptions,
) -> Iterator[Sample]:
    n_read = 0
    try:
        batches = parquet.iter_batches(
            _BATCH_ROWS, row_groups=[group], columns=[columns.image], use_threads=False
        )
        while True:
            with _unreadable_if_failing():
                batch = next(batches, None)
            if batch is None:
                break
            if n_read + batch.num_rows > len(rows):
                raise _UnreadableParquet(f"row group {group} holds more rows than its footer says")
            for value in _resolve_path(batch.column(0), columns.image):
                image_id, is_duplicate = rows[n_read]
                yield _to_sample(unit, image_id, is_duplicate, value, options)
                n_read += 1
        reason = f"row group {group} ends early"
    except _UnreadableParquet as error:
        reason = str(error)
    for image_id, _ in rows[n_read:]:
        yield _failed_sample(unit, image_id, ErrorCode.SHARD_CORRUPT, reason)


def _to_sample(
    unit: Unit, image_id: str, is_duplicate: bool, value: pa.Scalar, options: SourceOptions
) -> Sample:
    warning = "duplicate_name" if is_duplicate else ""
    if not value.is_valid:
        return _failed_sample(unit, image_id, ErrorCode.EMPTY, "the row holds no bytes", warning)
    n_bytes = value.as_buffer().size
    if n_bytes > options.max_image_bytes:
        reason = f"{n_bytes:,} bytes; the limit is {options.max_image_bytes:,}"
        return _failed_sample(unit, image_id, ErrorCode.TOO_MANY_BYTES, reason, warning)
    return Sample(image_id, unit.shard, unit.etag, value.as_py(), None, warning)


def _failed_sample(
    unit: Unit, image_id: str, code: ErrorCode, reason: str, warning: str = ""
) -> Sample:
    error = ImageError(code, f"{image_id}: {reason}.")
    return Sample(image_id, unit.shard, unit.etag, None, error, warning)
