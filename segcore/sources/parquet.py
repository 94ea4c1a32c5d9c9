"""Parquet shards with a column of image bytes (plain binary, or struct{bytes, path} as on the
Hugging Face hub)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import ErrorCode, ImageError, StorageError, UsageError
from segcore.sources.base import Entries, KeyNames, Sample, Source, SourceOptions
from segcore.sources.units import Member, Unit, UnitLimits, make_unit
from segcore.storage import Storage

_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "content")
_KEY_NAMES = ("__key__", "key", "image_id", "id", "file_name", "filename", "path", "uri", "url")
_FOOTER_THREADS = 8
_MAX_GROUP_ROWS = 10_000_000  # more is damage: a failed row each would fill the memory
_MAX_KEY = 1024  # characters of a key
_ROWS = 32  # of one batch: bounds the memory of images in flight


@dataclass(frozen=True)
class Columns:
    """Where the images and their names are.

    Attributes:
        image: Column with the bytes; "name" or, inside a struct, "name.bytes".
        key: Column with the name of each image, "name" or "name.path"; "" for none, when
            images are named by their row.
    """

    image: str
    key: str

    def to_reader(self) -> str:
        """As stored in `Unit.reader`."""
        return json.dumps({"image": self.image, "key": self.key})

    @classmethod
    def from_reader(cls, reader: str) -> Columns:
        """Inverse of `to_reader`."""
        return cls(**json.loads(reader))


@dataclass(kw_only=True)
class ParquetSource(Source):
    """Parquet shards; `listing` has their uri, size and etag."""

    listing: pa.Table = field(repr=False)
    storage: Storage
    options: SourceOptions

    @property
    def fingerprint(self) -> str:
        """The columns that were asked for."""
        return f"parquet:{self.options.image_column or ''}:{self.options.key_column or ''}"

    def entries(self) -> pa.Table:
        """The shards."""
        return self.listing

    def cut(self, entries: Entries, limits: UnitLimits) -> Iterator[Unit]:
        """Consecutive row groups, as many as the limits allow (a row group is never split).

        Raises:
            UsageError: A shard has no column with image bytes, or not the one asked for.
        """

        def units_of(row: dict[str, Any]) -> list[Unit]:
            return _cut_shard(row, limits, self.storage, self.options)

        with ThreadPoolExecutor(_FOOTER_THREADS, "segcore-index") as pool:
            for batch in entries.to_batches(1000):
                for units in pool.map(units_of, batch.to_pylist()):
                    yield from units


def image_column(schema: pa.Schema) -> str | None:
    """The column that holds image bytes; None when there is none or the choice is not clear."""
    found = [f.name for f in schema if _bytes_path(f) is not None]
    preferred = [name for name in _IMAGE_NAMES if name in found]
    if preferred:
        return preferred[0]
    return found[0] if len(found) == 1 else None


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_bytes(kind: pa.DataType) -> bool:
    kind = _plain(kind)
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _is_name(kind: pa.DataType) -> bool:
    kind = _plain(kind)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)
    )


def _bytes_path(column: pa.Field) -> str | None:
    if _is_bytes(column.type):
        return str(column.name)
    if pa.types.is_struct(column.type):
        index = column.type.get_field_index("bytes")
        if index >= 0 and _is_bytes(column.type.field(index).type):
            return f"{column.name}.bytes"
    return None


def resolve_columns(schema: pa.Schema, options: SourceOptions, shard: str) -> Columns:
    """The columns to read.

    Raises:
        UsageError: As in `ParquetSource.cut`.
    """
    shown = ", ".join(f"{f.name} ({f.type})" for f in schema)[:500]
    name = options.image_column or image_column(schema)
    if name is None:
        raise UsageError(
            f"{shard}: no column is clearly the one with image bytes; columns are {shown}.",
            "Name it with --set source.image_column=NAME; for a list of URIs use "
            "--set source.kind=manifest.",
        )
    if name not in schema.names:
        raise UsageError(f"{shard} has no column {name!r}; columns are {shown}.")
    image = _bytes_path(schema.field(name))
    if image is None:
        raise UsageError(f"{shard}: column {name!r} holds no image bytes; columns are {shown}.")
    if options.key_column is not None:
        if options.key_column not in schema.names:
            raise UsageError(f"{shard} has no column {options.key_column!r}; columns are {shown}.")
        if not _is_name(schema.field(options.key_column).type):
            raise UsageError(f"{shard}: key column {options.key_column!r} is no text or integer.")
        return Columns(image, options.key_column)
    for candidate in _KEY_NAMES:
        if candidate in schema.names and _is_name(schema.field(candidate).type):
            return Columns(image, candidate)
    if image != name:
        struct = schema.field(name).type
        index = struct.get_field_index("path")
        if index >= 0 and _is_name(struct.field(index).type):
            return Columns(image, f"{name}.path")
    return Columns(image, "")


def _cut_shard(
    row: dict[str, Any], limits: UnitLimits, storage: Storage, options: SourceOptions
) -> list[Unit]:
    shard, etag = row["uri"], row["etag"]
    try:
        with storage.open(shard, 1 << 20) as file, _readable():
            parquet = pq.ParquetFile(file)
            columns = resolve_columns(parquet.schema_arrow, options, shard)
            pieces = _pieces(parquet.metadata, limits)
            renamed = _renamed(parquet, columns, shard) if len(pieces) > 1 else {}
    except _Unreadable:
        # one damaged shard is one failed row, not the end of the run: read_parquet reports it
        return [make_unit("parquet", shard=shard, etag=etag, stop=0, n_images=1,
                          n_bytes=row["size"])]  # fmt: skip
    return [
        make_unit("parquet", shard=shard, etag=etag, start=start, stop=stop, n_images=images,
                  n_bytes=size, reader=columns.to_reader(),
                  members=[m for group in range(start, stop) for m in renamed.get(group, ())])
        for start, stop, images, size in pieces
    ]  # fmt: skip


def _pieces(metadata: pq.FileMetaData, limits: UnitLimits) -> list[tuple[int, int, int, int]]:
    """(first row group, end, rows, bytes) of each unit of a shard.

    The bytes are those of whole row groups: asking for single columns ends the process where a
    footer is damaged (seen with pyarrow 26).
    """
    pieces: list[tuple[int, int, int, int]] = []
    start = images = size = 0
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    if sum(group.num_rows for group in groups) != metadata.num_rows:
        raise _Unreadable("its row groups do not add up to its number of rows")
    for index, group in enumerate(groups):
        if not 0 <= group.num_rows <= _MAX_GROUP_ROWS or group.total_byte_size < 0:
            raise _Unreadable(f"row group {index} claims {group.num_rows:,} rows")
        full = images + group.num_rows > limits.images or (
            size + group.total_byte_size > limits.bytes
        )
        if images and full:
            pieces.append((start, index, images, size))
            start, images, size = index, 0, 0
        images, size = images + group.num_rows, size + group.total_byte_size
    if images:
        pieces.append((start, metadata.num_row_groups, images, size))
    return pieces


def _renamed(parquet: pq.ParquetFile, columns: Columns, shard: str) -> dict[int, list[Member]]:
    """Rows whose key stood before in the shard, by row group."""
    found: dict[int, list[Member]] = {}
    names = KeyNames(shard)
    for group, row, key in _keys(parquet, columns, 0, parquet.num_row_groups):
        image_id, again = names.name(key)
        if again:
            found.setdefault(group, []).append(Member(image_id, key, "", row))
    return found


def _keys(
    parquet: pq.ParquetFile, columns: Columns, start: int, stop: int
) -> Iterator[tuple[int, int, str]]:
    """(row group, row in the shard, key) without reading an image.

    Where there is no key, or it cannot be read, the row is its name: a position, but a safe one
    within one version (etag) of the shard.
    """
    row = sum(parquet.metadata.row_group(i).num_rows for i in range(start))
    for group in range(start, stop):
        for value in _key_values(parquet, columns, group):
            yield group, row, f"row{row}" if value is None else str(value)[:_MAX_KEY]
            row += 1


def _key_values(parquet: pq.ParquetFile, columns: Columns, group: int) -> list[Any]:
    count = parquet.metadata.row_group(group).num_rows
    if columns.key:
        with suppress(_Unreadable), _readable():
            table = parquet.read_row_group(group, columns=[columns.key], use_threads=False)
            if table.num_rows == count:
                return list(_leaf(table.column(0), columns.key).to_pylist())
    return [None] * count


def _leaf(column: Any, path: str) -> Any:
    """The column, or the field of a struct column that `path` names; dictionaries resolved."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    name = path.partition(".")[2]
    if name and pa.types.is_struct(column.type):
        index = column.type.get_field_index(name)
        column = column.flatten()[index]  # flatten keeps the nulls of the parent
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


class _Unreadable(Exception):
    """The file is not Parquet, or damaged."""


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, IndexError) as error:
        raise _Unreadable(str(error).partition("\n")[0][:200]) from error


def read_parquet(
    unit: Unit, storage: Storage, options: SourceOptions, notes: Counter[str]
) -> Iterator[Sample]:
    """The rows of a unit in the order of the shard; counts "duplicate_names" in `notes`.

    Rows of a damaged row group are failed rows `shard_corrupt`, each under its own key.

    Raises:
        StorageError: The shard is gone, may not be read, or changed since planning.
    """
    info = storage.stat(unit.shard)
    if info.etag != unit.etag:
        raise StorageError(
            f"{unit.shard} changed while the run was going on.", "Run again to plan it anew."
        )
    with storage.stream(info) as file:
        try:
            with _readable():
                parquet = pq.ParquetFile(file)
            if not unit.reader:
                raise _Unreadable("it could not be read while planning")
        except _Unreadable as error:
            yield _failed(unit, f"{unit.shard}#file", ErrorCode.SHARD_CORRUPT, str(error))
            return
        columns = Columns.from_reader(unit.reader)
        whole = (unit.start, unit.stop) == (0, parquet.num_row_groups)
        names = KeyNames(unit.shard) if whole else None
        renamed = {member.size: member.image_id for member in unit.members}
        for group in range(unit.start, unit.stop):
            rows = _named(unit, parquet, columns, group, names, renamed)
            notes["duplicate_names"] += sum(again for _, again in rows)
            yield from _read_group(unit, parquet, columns, group, rows, options)


def _named(
    unit: Unit,
    parquet: pq.ParquetFile,
    columns: Columns,
    group: int,
    names: KeyNames | None,
    renamed: dict[int, str],
) -> list[tuple[str, bool]]:
    """(image id, whether renamed) of each row of a row group."""
    keys = _keys(parquet, columns, group, group + 1)
    if names is not None:
        return [names.name(key) for _, _, key in keys]
    return [(renamed.get(row, f"{unit.shard}#{key}"), row in renamed) for _, row, key in keys]


def _read_group(
    unit: Unit,
    parquet: pq.ParquetFile,
    columns: Columns,
    group: int,
    rows: list[tuple[str, bool]],
    options: SourceOptions,
) -> Iterator[Sample]:
    at = 0
    try:
        batches = parquet.iter_batches(
            _ROWS, row_groups=[group], columns=[columns.image], use_threads=False
        )
        while True:
            with _readable():
                batch = next(batches, None)
            if batch is None:
                break
            if at + batch.num_rows > len(rows):
                raise _Unreadable(f"row group {group} holds more rows than its footer says")
            for value in _leaf(batch.column(0), columns.image):
                image_id, again = rows[at]
                yield _sample(unit, image_id, again, value, options)
                at += 1
        reason = f"row group {group} ends early"
    except _Unreadable as error:
        reason = str(error)
    for image_id, _ in rows[at:]:
        yield _failed(unit, image_id, ErrorCode.SHARD_CORRUPT, reason)


def _sample(unit: Unit, image_id: str, again: bool, value: Any, options: SourceOptions) -> Sample:
    warning = "duplicate_name" if again else ""
    if not value.is_valid:
        return _failed(unit, image_id, ErrorCode.EMPTY, "the row holds no bytes", warning)
    size = value.as_buffer().size
    if size > options.max_image_bytes:
        reason = f"{size:,} bytes; the limit is {options.max_image_bytes:,}"
        return _failed(unit, image_id, ErrorCode.TOO_MANY_BYTES, reason, warning)
    return Sample(image_id, unit.shard, unit.etag, value.as_py(), None, warning)


def _failed(unit: Unit, image_id: str, code: ErrorCode, reason: str, warning: str = "") -> Sample:
    error = ImageError(code, f"{image_id}: {reason}.")
    return Sample(image_id, unit.shard, unit.etag, None, error, warning)
