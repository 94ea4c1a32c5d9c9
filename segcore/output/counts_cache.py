"""What parts say about themselves, kept so that not each of them is opened at the end of every run.

The files of ``counts/`` are a cache: a row of them counts only where a listing shows a part of the
same name, size and etag, and what they lack is read from the footers of the parts. A file that is
damaged is passed over; deleting the folder loses nothing but time.

Each file holds the rows that came since the one before. A new file takes in those that are not much
larger, so that there are few, and each row is written few times.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segcore.errors import SegcoreError, StorageError, describe_error
from segcore.output.compaction import NOTHING_COMPACTED, CompactedUnits
from segcore.output.layout import EditionLayout
from segcore.output.part_counts import PartCounts
from segcore.output.unit_counts import (
    UNIT_COUNTS_SCHEMA,
    UnitCounts,
    decode_unit_counts,
    encode_unit_counts,
    unit_counts_table,
)
from segcore.storage import Storage
from segcore.storage.uris import basename

_FILE_NAME = re.compile(r"[0-9a-f]{16}\.parquet")
_MAX_BYTES = 1 << 30  # of all files; some 30 million units
_MAX_FILES = 64  # with so many, each twice as large as the next, no number of units is too large
_ROWS_PER_SAVE = 5000  # while a run is in progress
_MERGED_IF_TIMES_LARGER = 2
_WORTHWHILE_ROWS = 1000  # for a run that has nothing to do, and would write nothing otherwise
_SPARE_ROWS = 1000  # of parts that are gone, before the cache is written anew
_FOOTER_BYTES = 16 << 10  # enough for the footer of most `images` parts; others are read whole
_REQUEST_THREADS = 32
_READS_AT_ONCE = 4096
_KEY_COLUMNS = ("unit", "generation", "size", "etag")


@dataclass(frozen=True)
class _CacheFile:
    uri: str
    rows: pa.Table


class CountsCache:
    """The counts of the parts of an edition, as far as they are known without opening parts.

    For one thread. Storage that refuses the cache is no error.
    """

    def __init__(
        self,
        storage: Storage,
        layout: EditionLayout,
        compacted: CompactedUnits = NOTHING_COMPACTED,
    ) -> None:
        self.compacted = compacted  # knows the counts of its units itself
        self._storage = storage
        self._layout = layout
        self._files: list[_CacheFile] | None = None  # None until they are needed
        self._damaged: list[str] = []
        self._new_rows: list[UnitCounts] = []
        self._new_tables: list[pa.Table] = []

    def add_written(self, counts: PartCounts) -> None:
        """Remember what a part says that was just written."""
        if (row := UnitCounts.of_written(counts)) is not None:
            self.add(row)

    def add(self, row: UnitCounts) -> None:
        """Remember what a part says; saves it now and then."""
        self._new_rows.append(row)
        if len(self._new_rows) >= _ROWS_PER_SAVE:
            self.save()

    def find(self, listed: pa.Table) -> tuple[pa.Table, pa.Table]:
        """(counts of the listed parts that are known; the rows of `listed` that are not).

        Args:
            listed: Rows of `CommittedParts.newest`.
        """
        compacted = self.compacted.table.select(UNIT_COUNTS_SCHEMA.names)
        tables = [compacted, *(file.rows for file in self._read_files()), *self._unsaved()]
        known = pa.concat_tables([UNIT_COUNTS_SCHEMA.empty_table(), *tables]).combine_chunks()
        rows = pc.index_in(_keys(listed), _keys(known))
        is_known = pc.and_(rows.is_valid(), pc.not_equal(listed["etag"], ""))
        return known.take(rows.filter(is_known)), listed.filter(pc.invert(is_known))

    def counts_of(self, listed: pa.Table) -> pa.Table:
        """The counts of all listed parts, as a table of `UNIT_COUNTS_SCHEMA`; opens the unknown.

        Raises:
            StorageError: A part cannot be read, or is not one of segcore's; names it.
        """
        known, unknown = self.find(listed)
        opened = list(self._open(unknown))
        self._new_tables += opened
        return pa.concat_tables([known, *opened])

    def _open(self, listed: pa.Table) -> Iterator[pa.Table]:
        rows = read_listed_counts(self._storage, self._layout, listed)
        while batch := list(islice(rows, _READS_AT_ONCE)):
            for row in batch:
                if isinstance(row, StorageError):
                    raise row
            yield unit_counts_table(row for row in batch if isinstance(row, UnitCounts))

    def save_if_worthwhile(self) -> None:
        """Write the rows that came since the last time if it took long to find them."""
        if sum(table.num_rows for table in self._unsaved()) >= _WORTHWHILE_ROWS:
            self.save()

    def save(self, listed: pa.Table | None = None) -> None:
        """Write the rows that came since the last time.

        Args:
            listed: All parts that exist, if the caller knows; rows of others are forgotten.
        """
        with suppress(SegcoreError):  # the next run reads footers instead
            files = self._read_files()
            new = pa.concat_tables([UNIT_COUNTS_SCHEMA.empty_table(), *self._unsaved()])
            n_rows = new.num_rows + sum(file.rows.num_rows for file in files)
            is_bloated = (
                listed is not None
                and n_rows > _MERGED_IF_TIMES_LARGER * listed.num_rows + _SPARE_ROWS
            )
            merged, kept = [], []
            for file in sorted(files, key=lambda file: file.rows.num_rows):
                if is_bloated or file.rows.num_rows <= _MERGED_IF_TIMES_LARGER * new.num_rows:
                    merged.append(file)
                    new = pa.concat_tables([file.rows, new])
                else:
                    kept.append(file)
            if not new.num_rows and not self._damaged:
                return
            if listed is not None:
                new = new.filter(pc.is_in(_keys(new), _keys(listed)))
            self._write(new, kept, [*(file.uri for file in merged), *self._damaged])

    def _write(self, rows: pa.Table, kept: list[_CacheFile], obsolete: list[str]) -> None:
        if rows.num_rows:
            data = encode_unit_counts(rows, {"segcore.edition": self._layout.name})
            uri = self._layout.counts_file(hashlib.sha256(data).hexdigest()[:16])
            self._storage.write(uri, data)
            kept = [*kept, _CacheFile(uri, rows)]
        self._files = kept
        self._new_tables, self._damaged = [], []
        self._storage.delete_all(set(obsolete) - {file.uri for file in kept})

    def _unsaved(self) -> list[pa.Table]:
        """The tables of rows that are in no file."""
        if self._new_rows:
            self._new_tables.append(unit_counts_table(self._new_rows))
            self._new_rows = []
        return self._new_tables

    def _read_files(self) -> list[_CacheFile]:
        """The files that exist and can be read; at first they are read from storage."""
        if self._files is None:
            self._files = []
            with suppress(SegcoreError):
                self._load()
        return self._files

    def _load(self) -> None:
        n_bytes = 0
        infos = [info for info, _ in self._storage.list_folder(self._layout.counts_folder)]
        infos = [info for info in infos if _FILE_NAME.fullmatch(basename(info.uri))]
        for number, info in enumerate(infos):
            n_bytes += info.size
            try:
                if n_bytes > _MAX_BYTES or number >= _MAX_FILES:
                    raise ValueError("the cache is too large")
                rows = decode_unit_counts(self._storage.read(info.uri, _MAX_BYTES))
            except (ValueError, SegcoreError):
                self._damaged.append(info.uri)
            else:
                self._files.append(_CacheFile(info.uri, rows))  # type: ignore[union-attr]


def _keys(table: pa.Table) -> pa.ChunkedArray:
    """What must agree between a part and a row about it, as one text."""
    columns = (table[name].cast(pa.string()) for name in _KEY_COLUMNS)
    return pc.binary_join_element_wise(*columns, "/")


def read_listed_counts(
    storage: Storage, layout: EditionLayout, listed: pa.Table
) -> Iterator[UnitCounts | StorageError]:
    """What parts say about themselves, in the order of `listed`: one request each, many at a time.

    Args:
        listed: Rows of `CommittedParts.files`.

    Yields:
        The row of a part; or why it cannot be read, with its name.
    """

    def read(unit: str, generation: int, size: int, etag: str) -> UnitCounts | StorageError:
        uri = layout.part("images", unit, generation)
        try:
            counts = _read_footer(storage, uri, size)
            if counts.unit != unit:
                raise ValueError(f"it says that it is of the unit {counts.unit[:64]!r}")
        except StorageError as error:
            return error
        except (KeyError, ValueError, OSError, pa.ArrowException) as error:
            return StorageError(
                f"{uri} is not a readable part of this edition: {describe_error(error, 200)}",
                "Delete this object and run the same command again to redo its unit.",
            )
        return UnitCounts(counts, generation, size, etag)

    with ThreadPoolExecutor(_REQUEST_THREADS, "segcore-counts") as pool:
        for start in range(0, listed.num_rows, _READS_AT_ONCE):  # a few requests wait in memory
            some = listed.slice(start, _READS_AT_ONCE)
            yield from pool.map(read, *(some[name].to_pylist() for name in _KEY_COLUMNS))


def _read_footer(storage: Storage, uri: str, size: int) -> PartCounts:
    if size < 0:  # a link
        size = storage.stat(uri).size
    tail = storage.read_range(uri, max(0, size - _FOOTER_BYTES), _FOOTER_BYTES)
    # a Parquet file ends with the footer, 4 bytes of its length, and 4 bytes of magic
    if len(tail) >= 8 and int.from_bytes(tail[-8:-4], "little") + 8 > len(tail):
        tail = storage.read(uri)
    return PartCounts.from_metadata(pq.read_metadata(io.BytesIO(tail)).metadata)
