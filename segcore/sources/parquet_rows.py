"""Reading the rows of Parquet shards: keys and images, in bounded pieces."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import ErrorCode, ImageError
from segcore.images import probe
from segcore.sources.arrow_types import is_bytes_type
from segcore.sources.base import Sample, SourceOptions, UniqueImageIds, stat_unchanged_shard
from segcore.sources.parquet_columns import ParquetColumns
from segcore.sources.parquet_pages import LargeDictionary, PagesTooLarge, ParquetGuard
from segcore.sources.units import Unit
from segcore.storage import Storage

_MAX_KEY_CHARS = 1024
_BATCH_ROWS = 32  # bounds the memory of the images that are read together
_KEY_BATCH_ROWS = 4096
_SMALL_CHUNK_BYTES, _SMALL_CHUNK_ROWS = 1 << 20, 1 << 16
_PROBED_ROWS = 8
_FREE_ROWS = 1 << 20  # a shard may claim so many rows, whatever its size: some seconds of work


class UnreadableParquet(Exception):
    """The file is not Parquet, or is damaged; `code` is that of the failed rows."""

    def __init__(self, reason: str, code: ErrorCode = ErrorCode.SHARD_CORRUPT) -> None:
        super().__init__(reason)
        self.code = code


@contextmanager
def unreadable_if_failing() -> Iterator[None]:
    """Turn the errors that pyarrow raises for damaged files into `UnreadableParquet`."""
    try:
        yield
    except PagesTooLarge as error:
        raise UnreadableParquet(str(error), ErrorCode.TOO_MANY_BYTES) from error
    except (pa.ArrowException, OSError, ValueError, KeyError, IndexError) as error:
        raise UnreadableParquet(str(error).partition("\n")[0][:200]) from error


class ShardReader:
    """The keys and images of one open shard.

    Args:
        file: The shard.

    Raises:
        UnreadableParquet: It is not a Parquet file, or claims more rows than its bytes back.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._guard = ParquetGuard(file)
        self._is_watched = False
        with unreadable_if_failing():
            self._parquet = pq.ParquetFile(self._guard)
            self.schema: pa.Schema = self._parquet.schema_arrow
            self.metadata: pq.FileMetaData = self._parquet.metadata
        self.n_groups: int = self.metadata.num_row_groups
        n_rows, n_bytes = self.metadata.num_rows, self._guard.seek(0, os.SEEK_END)
        if n_rows > max(_FREE_ROWS, n_bytes):
            raise UnreadableParquet(
                f"it claims {n_rows:,} rows in {n_bytes:,} bytes; more than {_FREE_ROWS:,} rows "
                "need a byte each"
            )

    def _iter_column(self, path: str, group: int, batch_rows: int) -> Iterator[Any]:
        """The values of a column of one row group, as arrays of some rows each.

        Raises:
            UnreadableParquet: It cannot be read any further.
        """
        name, field_name = self._split_path(path)
        data_type = self.schema.field(name).type
        if isinstance(data_type, pa.BaseExtensionType):
            path = name  # pyarrow reads a struct with a type of its own only as a whole
        self._guard.repeats_values = not pa.types.is_dictionary(data_type)
        if not self._is_watched:
            self._guard.watch_columns()
            self._is_watched = True
        try:
            batch, batches = self._start(path, group, batch_rows)
        except LargeDictionary as error:
            batch_rows = error.max_rows
            batch, batches = self._start(path, group, batch_rows)
        is_small = 0 < self._guard.chunk_bytes < _SMALL_CHUNK_BYTES
        if is_small and self.metadata.row_group(group).num_rows > batch_rows:
            # millions of rows may take no bytes at all; that many at once are no danger
            with suppress(LargeDictionary):
                batch, batches = self._start(path, group, _SMALL_CHUNK_ROWS)
        while batch is not None:
            yield _resolve_field(batch.column(0), field_name)
            with unreadable_if_failing():
                batch = next(batches, None)

    def _split_path(self, path: str) -> tuple[str, str]:
        """(name of the column, name of the field in it or "")."""
        if path in self.schema.names:
            return path, ""
        name, _, field_name = path.rpartition(".")
        return name, field_name

    def _start(self, path: str, group: int, batch_rows: int) -> tuple[Any, Iterator[Any]]:
        """(first batch or None, the others) of a column."""
        self._guard.batch_rows, self._guard.chunk_bytes = batch_rows, 0
        with unreadable_if_failing():
            batches = self._parquet.iter_batches(
                batch_rows, row_groups=[group], columns=[path], use_threads=False
            )
            return next(batches, None), batches

    def iter_keys(
        self, columns: ParquetColumns, group: int, rows: tuple[int, int] | None = None
    ) -> Iterator[tuple[int, str]]:
        """(row in the shard, key) of the rows of a row group, or of some of them; no images.

        A row without a key, or whose key cannot be read, is named by its row number: a position,
        but a stable one within one version (etag) of the shard.
        """
        first = sum(self.metadata.row_group(index).num_rows for index in range(group))
        begin, end = rows or (0, self.metadata.row_group(group).num_rows)
        keys = self._iter_plain_keys(columns.key, group, begin) if columns.key else iter(())
        for row in range(first + begin, first + end):
            key = next(keys, None)
            yield row, f"row{row}" if key is None else key

    def _iter_plain_keys(self, path: str, group: int, begin: int) -> Iterator[str | None]:
        """The keys as text, from row `begin` of the row group, as far as they can be read."""
        row = 0
        with suppress(UnreadableParquet):
            for values in self._iter_column(path, group, _KEY_BATCH_ROWS):
                first, row = row, row + len(values)
                for scalar in values[max(begin - first, 0) :]:  # each unit of a group skips some
                    value = _to_python(_plain(scalar))
                    if isinstance(value, bytes):
                        value = value.decode("utf-8", "backslashreplace")
                    yield None if value is None else str(value)[:_MAX_KEY_CHARS]

    def iter_images(
        self, columns: ParquetColumns, group: int, rows: tuple[int, int] | None = None
    ) -> Iterator[Any]:
        """The image of each row as a scalar of bytes, or of a list of them.

        Raises:
            UnreadableParquet: The row group cannot be read any further, or has other rows than the
                footer says.
        """
        n_rows = self.metadata.row_group(group).num_rows
        begin, end = rows or (0, n_rows)
        # lists are read whole: the paths inside them differ from writer to writer
        is_inside = columns.is_list and columns.image not in self.schema.names
        path = columns.list_column if is_inside else columns.image
        row = 0
        for values in self._iter_column(path, group, _BATCH_ROWS):
            if row + len(values) > n_rows:
                raise UnreadableParquet(f"row group {group} holds more rows than its footer says")
            yield from values[max(begin - row, 0) : max(end - row, 0)]
            row += len(values)
            if row >= end and end < n_rows:
                return
        if row < n_rows:
            raise UnreadableParquet(f"row group {group} ends early")


def _resolve_field(column: Any, field_name: str) -> Any:
    """The column, or a field of a struct column."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    while isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    if field_name:
        index = column.type.get_field_index(field_name)
        column = column.flatten()[index]  # flatten keeps the nulls of the parent
    return column


def _plain(scalar: Any) -> Any:
    """The value behind dictionaries and extension types; large ones are not copied."""
    while scalar.is_valid and isinstance(scalar, pa.DictionaryScalar | pa.ExtensionScalar):
        scalar = scalar.value
    return scalar


def _elements(scalar: Any) -> Iterator[Any]:
    """The images of a row that holds a list of them."""
    scalar = _plain(scalar)
    if scalar.is_valid:
        for element in scalar.values:
            element = _plain(element)
            if element.is_valid and isinstance(element, pa.StructScalar):
                element = _plain(element["bytes"])
            yield element


def may_hold_images(reader: ShardReader, columns: ParquetColumns) -> bool:
    """Whether one of the first values looks like an image, or none can be looked at."""
    n_others = 0
    with suppress(UnreadableParquet):
        for group in range(min(reader.n_groups, 1)):
            for scalar in islice(reader.iter_images(columns, group), _PROBED_ROWS):
                values = _elements(scalar) if columns.is_list else [_plain(scalar)]
                for value in islice(values, _PROBED_ROWS):
                    if value.is_valid and (data := value.as_buffer()).size:
                        if _is_image(data.slice(0, min(data.size, 4096)).to_pybytes()):
                            return True
                        n_others += 1
    return n_others == 0


def _is_image(data: bytes) -> bool:
    try:
        probe(data)
    except ImageError as error:
        return error.code != ErrorCode.NOT_AN_IMAGE
    return True


def read_parquet(
    unit: Unit, storage: Storage, options: SourceOptions, notes: Counter[str]
) -> Iterator[Sample]:
    """The rows of a unit in the order of the shard.

    The rows of a damaged row group become failed rows `shard_corrupt`, each under its own key.
    Counts in `notes`: "duplicate_names", and "rows_without_images" (empty lists).

    Raises:
        StorageError: The shard is gone, must not be read, or has changed since planning.
    """
    info = stat_unchanged_shard(unit, storage)
    with storage.stream(info) as file:
        try:
            reader = ShardReader(file)
            if not unit.reader:
                raise UnreadableParquet("it could not be read while planning")
        except UnreadableParquet as error:
            yield _failed_sample(unit, f"{unit.shard}#file", ErrorCode.SHARD_CORRUPT, str(error))
            return
        columns = ParquetColumns.from_reader(unit.reader)
        is_whole_shard = (unit.start, unit.stop) == (0, reader.n_groups) and columns.rows is None
        image_ids = UniqueImageIds(unit.shard) if is_whole_shard else None
        duplicate_ids = {member.size: member.image_id for member in unit.members}  # by row
        for group in range(unit.start, unit.stop):
            ids = _name_rows(unit, reader, columns, group, image_ids, duplicate_ids)
            yield from _read_group(unit, reader, columns, group, ids, options, notes)


def _name_rows(
    unit: Unit,
    reader: ShardReader,
    columns: ParquetColumns,
    group: int,
    image_ids: UniqueImageIds | None,
    duplicate_ids: dict[int, str],
) -> Iterator[tuple[str, bool]]:
    """(image id, whether it is a renamed duplicate) of each row of a row group.

    Args:
        image_ids: Assigns the ids if the unit is a whole shard. Otherwise `duplicate_ids` (row in
            the shard -> image id) has those of the renamed duplicates, found while planning.
    """
    for row, key in reader.iter_keys(columns, group, columns.rows):
        if image_ids is None:
            yield duplicate_ids.get(row, f"{unit.shard}#{key}"), row in duplicate_ids
        elif columns.key:
            yield image_ids.assign(key)
        else:
            yield f"{unit.shard}#{key}", False  # row numbers do not repeat


def _read_group(
    unit: Unit,
    reader: ShardReader,
    columns: ParquetColumns,
    group: int,
    ids: Iterator[tuple[str, bool]],
    options: SourceOptions,
    notes: Counter[str],
) -> Iterator[Sample]:
    try:
        for scalar in reader.iter_images(columns, group, columns.rows):
            image_id, is_duplicate = next(ids)
            notes["duplicate_names"] += is_duplicate
            if not columns.is_list:
                yield _to_sample(unit, image_id, is_duplicate, _plain(scalar), options)
                continue
            n_images = 0
            for n_images, element in enumerate(_elements(scalar), 1):
                element_id = f"{image_id}[{n_images - 1}]"
                yield _to_sample(unit, element_id, is_duplicate, element, options)
            notes["rows_without_images"] += n_images == 0
    except UnreadableParquet as error:
        for image_id, is_duplicate in ids:
            notes["duplicate_names"] += is_duplicate
            yield _failed_sample(unit, image_id, error.code, str(error))


def _to_python(scalar: Any) -> Any:
    """The value of a scalar; the bytes of a damaged text that is not UTF-8."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return scalar.as_buffer().to_pybytes()


def _to_sample(
    unit: Unit, image_id: str, is_duplicate: bool, value: Any, options: SourceOptions
) -> Sample:
    warning = "duplicate_name" if is_duplicate else ""
    if not value.is_valid or not is_bytes_type(value.type):
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
