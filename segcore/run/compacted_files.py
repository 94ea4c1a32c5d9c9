"""Writing compacted files: units one after another into files of a bounded size.

Files of a number are written as wholes, ``instances``, then ``images``, then the list of the units
that they hold; what has that list is not written again. Memory holds one file, and the parts that
are read ahead.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import ObjectNotFound, StorageError
from segcore.output.compacted_rows import CompactedParts
from segcore.output.compaction import (
    CoveredUnit,
    SortOrder,
    covered_units,
    encode_covered,
    read_covered,
)
from segcore.output.layout import CompactedLayout, EditionLayout, PartName, Table
from segcore.output.part_counts import PartCounts, reader_of_metadata
from segcore.output.parts import decode_part
from segcore.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
from segcore.output.tables import parquet_options
from segcore.run.sorted_rows import RowSorter
from segcore.storage import Storage

_ROW_GROUP_ROWS = 65_536
_SORT_KEYS = [("category", "ascending"), ("score", "descending"), ("image_id", "ascending"),
              ("instance_index", "ascending")]  # fmt: skip
_READ_THREADS = 16
_BYTES_READ_AHEAD = 64 << 20  # of parts as they are stored
_FIRST_COMPRESSION = 0.6  # bytes in a file for each byte in memory, until a file tells


@dataclass(frozen=True)
class _UnitRows:
    unit: CoveredUnit
    images: pa.Table
    instances: pa.Table


@dataclass(frozen=True)
class UnitReader:
    """Reads the rows of units, from their parts or from the compacted files that are current."""

    storage: Storage
    layout: EditionLayout
    compacted: CompactedParts

    def read(self, planned: CoveredUnit) -> _UnitRows | None:
        """The rows of a unit; None if its part is gone: replaced, or withdrawn.

        Args:
            planned: What is known of the unit before: of one with parts of its own neither its
                counts nor its run.

        Raises:
            StorageError: The part is damaged; names it.
        """
        name = PartName(planned.unit, planned.generation)
        is_known = bool(planned.run or planned.counts.images)
        covered = planned if is_known else self.compacted.find(*name)
        try:
            if covered is not None:
                unit = replace(covered, place=planned.place, place_number=planned.place_number)
                images = self.compacted.read_found("images", covered)
                instances = self.compacted.read_found("instances", covered)
            else:
                images, etag = self._read_part("images", name)
                instances, instances_etag = self._read_part("instances", name)
                unit = self._describe(planned, images, etag, instances_etag)
        except ObjectNotFound:
            return None
        n_masks = sum(images["n_instances"].to_pylist())
        if (images.num_rows, instances.num_rows, n_masks) != (
            unit.counts.images,
            unit.counts.instances,
            unit.counts.instances,
        ):
            raise StorageError(
                f"{self.layout.part('images', *name)} has other counts than rows.",
                "Nothing was changed. `segcore verify` says more.",
            )
        return _UnitRows(
            unit, images.replace_schema_metadata(None), instances.replace_schema_metadata(None)
        )

    def _read_part(self, table: Table, name: PartName) -> tuple[pa.Table, str]:
        uri = self.layout.part(table, *name)
        data, etag = self.storage.read_version(uri)
        return decode_part(io.BytesIO(data), table, uri), etag

    def _describe(
        self, planned: CoveredUnit, images: pa.Table, etag: str, instances_etag: str
    ) -> CoveredUnit:
        metadata: Mapping[bytes, bytes] = images.schema.metadata or {}
        uri = self.layout.part("images", planned.unit, planned.generation)
        try:
            counts = PartCounts.from_metadata(metadata)
            if counts.unit != planned.unit:
                raise ValueError(f"it is the part of {counts.unit}")
        except (KeyError, ValueError) as error:
            raise StorageError(
                f"{uri} is not a readable part of this edition: {error}.",
                "Nothing was changed. `segcore verify` says more.",
            ) from None
        return replace(
            planned,
            counts=counts,
            etag=etag,
            instances_etag=instances_etag,
            run=metadata.get(b"segcore.run", b"").decode("utf-8", "replace"),
            reader=reader_of_metadata(metadata),
        )


class _TableSink:
    """One file that grows, in memory; rows that are to be sorted are set aside until it ends."""

    def __init__(self, schema: pa.Schema, sort: SortOrder = "image") -> None:
        self.rows = 0
        self.bytes_waiting = 0  # of rows that are not in the file yet
        self._schema = schema
        self._waiting: list[pa.Table] = []
        self._rows_waiting = 0
        self._sorter = RowSorter(schema, _SORT_KEYS) if sort != "image" else None
        self._sink = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(self._sink, schema, **parquet_options(schema))

    def add(self, rows: pa.Table) -> None:
        """Append rows; whole row groups are encoded, unless all are to be sorted first."""
        self.rows += rows.num_rows
        self.bytes_waiting += rows.nbytes
        if self._sorter is not None:
            self._sorter.add(rows)
            return
        self._waiting.append(rows)
        self._rows_waiting += rows.num_rows
        if self._rows_waiting >= _ROW_GROUP_ROWS:
            self._flush(2 * _ROW_GROUP_ROWS)  # a group is of whole units, unless they are huge

    def size(self, compression: float) -> int:
        """About the bytes of the file if it ended here."""
        return int(self._sink.tell() + self.bytes_waiting * compression)

    def finish(self) -> memoryview:
        """The bytes of the file."""
        if self._sorter is not None:
            for rows in self._sorter.sorted_pieces(_ROW_GROUP_ROWS):
                self._writer.write_table(rows)
        self._flush(_ROW_GROUP_ROWS)
        self._writer.close()
        return memoryview(self._sink.getvalue()).cast("B")  # of bytes, as stores want it

    def _flush(self, row_group_rows: int) -> None:
        if self._waiting:
            rows = pa.concat_tables(self._waiting)
            self._waiting.clear()
            if rows.num_rows:
                self._writer.write_table(rows.cast(self._schema), row_group_size=row_group_rows)
        self._rows_waiting = self.bytes_waiting = 0


@dataclass
class FilesWriter:
    """Writes the files of one generation.

    Attributes:
        metadata: Of each file.
        file_bytes: A file ends once it is as large as this.
        check_lease: Raises once nothing more may be written.
    """

    storage: Storage
    files: CompactedLayout
    metadata: Mapping[str, str]
    sort: SortOrder
    file_bytes: int
    check_lease: Callable[[], None] = lambda: None

    def write(
        self, sources: Sequence[CoveredUnit], reader: UnitReader, progress: Callable[[int], None]
    ) -> list[CoveredUnit]:
        """Copy units, in this order, and go on where an earlier process stopped.

        Args:
            progress: Called with the number of units that are copied.

        Returns:
            The units that are in the files now; those whose parts are gone by now are not.
        """
        covered, number = self._finished_pieces()
        start = _position_after(sources, covered)
        compression = _FIRST_COMPRESSION
        rows_of_units = _read_ahead(sources[start:], reader)
        images, instances = self._new_sinks()
        pending: list[CoveredUnit] = []
        for position, rows in enumerate(rows_of_units, start=start + 1):
            if rows is None:
                continue
            pending.append(
                replace(
                    rows.unit, file=number, images_row=images.rows, instances_row=instances.rows
                )
            )
            images.add(rows.images)
            instances.add(rows.instances)
            size = max(images.size(compression), instances.size(compression))
            if size >= self.file_bytes:
                in_memory = max(instances.bytes_waiting, 1)
                n_bytes = self._write_files(number, images, instances, pending)
                if self.sort != "image":
                    compression = n_bytes / in_memory
                covered += pending
                number, pending = number + 1, []
                images, instances = self._new_sinks()
            progress(position)
        if pending or not number:  # a pattern that finds no file at all is an error to most tools
            self._write_files(number, images, instances, pending)
            covered += pending
        return covered

    def _new_sinks(self) -> tuple[_TableSink, _TableSink]:
        images, instances = (
            schema.with_metadata(dict(self.metadata))
            for schema in (IMAGES_SCHEMA, INSTANCES_SCHEMA)
        )
        return _TableSink(images), _TableSink(instances, self.sort)

    def _write_files(
        self, number: int, images: _TableSink, instances: _TableSink, units: list[CoveredUnit]
    ) -> int:
        """Write both files and the list of their units; returns the bytes of the instances."""
        self.check_lease()
        data = instances.finish()
        self.storage.write(self.files.file("instances", number), data)
        n_bytes = len(data)
        del data
        self.storage.write(self.files.file("images", number), images.finish())
        self.storage.write(self.files.piece(number), encode_covered(units))
        return n_bytes

    def _finished_pieces(self) -> tuple[list[CoveredUnit], int]:
        """The units in the files that are written already, and the number of the next file."""
        covered: list[CoveredUnit] = []
        number = 0
        while True:
            try:
                table = read_covered(self.storage, self.files.piece(number))
            except ObjectNotFound:
                return covered, number
            covered += covered_units(table)
            number += 1


def _position_after(sources: Sequence[CoveredUnit], covered: list[CoveredUnit]) -> int:
    """Where to go on: behind the last unit that is written."""
    if not covered:
        return 0
    last = covered[-1].unit
    return next(i for i, source in enumerate(sources) if source.unit == last) + 1


def _read_ahead(sources: Sequence[CoveredUnit], reader: UnitReader) -> Iterator[_UnitRows | None]:
    """Rows of units in order, read by threads; a bounded number of bytes at once."""
    waiting: deque[tuple[int, Future[_UnitRows | None]]] = deque()
    n_bytes = 0
    with ThreadPoolExecutor(_READ_THREADS, "segcore-compact") as pool:
        try:
            for source in sources:
                size = max(source.size, 0) + max(source.instances_size, 0)
                while waiting and (
                    n_bytes + size > _BYTES_READ_AHEAD or len(waiting) >= 4 * _READ_THREADS
                ):
                    size_read, future = waiting.popleft()
                    n_bytes -= size_read
                    yield future.result()
                waiting.append((size, pool.submit(reader.read, source)))
                n_bytes += size
            while waiting:
                yield waiting.popleft()[1].result()
        finally:
            for _, future in waiting:
                future.cancel()
