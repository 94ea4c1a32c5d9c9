"""The objects of an archive as compact columns, sorted by URI and read in batches.

Ten million objects take about 1.2 GB as plain Arrow columns, and twice that while they are being
sorted. Here they are compressed Parquet chunks (front-coded names, about 30 bytes per object), and
beyond the first few million these lie in a temporary file. If the store lists in order, the chunks
are built as the rows arrive; otherwise sorted runs are built and merged.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segcore.storage.spill import SpillFile

SCHEMA = pa.schema([("uri", pa.large_string()), ("size", pa.int64()), ("etag", pa.large_string())])
CHUNK_ROWS = 1 << 16
_RUN_CHUNKS = 16  # chunks of unsorted rows that are sorted together
_ROW_BATCH = 10_000  # Python rows that are converted to columns together


@dataclass(frozen=True)
class _Chunk:
    """Rows sorted by URI, as a Parquet file at a place of a spill file."""

    rows: int
    spill: SpillFile
    place: int
    length: int

    @classmethod
    def from_table(cls, table: pa.Table, spill: SpillFile) -> _Chunk:
        sink = pa.BufferOutputStream()
        pq.write_table(
            table,
            sink,
            compression="zstd",
            use_dictionary=False,
            write_statistics=False,
            column_encoding={"uri": "DELTA_BYTE_ARRAY", "size": "PLAIN", "etag": "PLAIN"},
        )
        data = sink.getvalue().to_pybytes()
        return cls(table.num_rows, spill, spill.append(data), len(data))

    def to_table(self, columns: list[str] | None = None) -> pa.Table:
        data = self.spill.read(self.place, self.length)
        return pq.read_table(io.BytesIO(data), columns=columns, use_threads=False)


class Listing:
    """Immutable rows (uri, size, etag), sorted by URI (by code points).

    Rows with equal URIs keep the order in which they arrived.
    """

    schema = SCHEMA

    def __init__(self, chunks: list[_Chunk]) -> None:
        self._chunks = chunks
        self.num_rows = sum(chunk.rows for chunk in chunks)

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[str, int, str]]) -> Listing:
        """Build from (uri, size, etag) in any order; few rows are held uncompressed at a time."""
        return cls.from_tables(_rows_to_tables(rows))

    @classmethod
    def from_tables(cls, tables: Iterable[pa.Table]) -> Listing:
        """Build from tables of `SCHEMA` with rows in any order."""
        builder = _Builder()
        for table in tables:
            for batch in table.to_batches(CHUNK_ROWS):
                builder.add(pa.Table.from_batches([batch]))
        return cls(builder.finish())

    def to_batches(self, max_rows: int = CHUNK_ROWS) -> Iterator[pa.RecordBatch]:
        """All rows in order."""
        for chunk in self._chunks:
            yield from chunk.to_table().to_batches(max_rows)

    def to_table(self) -> pa.Table:
        """All rows as plain columns; only for listings that are known to be small."""
        return pa.Table.from_batches(list(self.to_batches()), SCHEMA)

    def column_batches(self, name: str) -> Iterator[pa.ChunkedArray]:
        """One column, chunk by chunk."""
        for chunk in self._chunks:
            yield chunk.to_table([name])[name]

    def filter(self, mask: Callable[[pa.Table], pa.ChunkedArray]) -> Listing:
        """The rows for which `mask`, called with each chunk, is true."""

        def select() -> Iterator[_Chunk | pa.Table]:
            for chunk in self._chunks:
                table = chunk.to_table()
                is_selected = mask(table)
                yield chunk if pc.all(is_selected).as_py() else table.filter(is_selected)

        return Listing(_repack(select()))

    def take_where(self, selected: np.ndarray) -> Listing:
        """The rows where a (num_rows,) bool array is true."""
        return Listing(_repack(self._selected(selected)))

    def unique(self) -> tuple[Listing, int]:
        """(the first row of each URI, the number of rows left out)."""
        is_first = np.ones(self.num_rows, bool)
        start, last_uri = 0, None
        for uris in self.column_batches("uri"):
            column = uris.combine_chunks()
            if len(column) > 1:
                same_as_previous = pc.equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False)
                is_first[start + 1 : start + len(column)] = ~same_as_previous
            is_first[start] = column[0].as_py() != last_uri
            start, last_uri = start + len(column), column[-1].as_py()
        repeated = int(self.num_rows - np.count_nonzero(is_first))
        return (self.take_where(is_first), repeated) if repeated else (self, 0)

    def _selected(self, selected: np.ndarray) -> Iterator[_Chunk | pa.Table]:
        start = 0
        for chunk in self._chunks:
            chunk_mask = selected[start : start + chunk.rows]
            start += chunk.rows
            if chunk_mask.all():
                yield chunk
            elif chunk_mask.any():
                yield chunk.to_table().filter(pa.array(chunk_mask))


def _rows_to_tables(rows: Iterable[tuple[str, int, str]]) -> Iterator[pa.Table]:
    rows = iter(rows)
    while batch := list(islice(rows, _ROW_BATCH)):
        columns = zip(*batch, strict=True)
        arrays = [
            pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)
        ]
        yield pa.Table.from_arrays(arrays, schema=SCHEMA)


def _repack(pieces: Iterable[_Chunk | pa.Table]) -> list[_Chunk]:
    """Rows that follow each other in order, as chunks of at most `CHUNK_ROWS`.

    A chunk between full ones stays as it is.
    """
    spill = SpillFile()
    chunks: list[_Chunk] = []
    pending: list[pa.Table] = []
    pending_rows = 0
    for piece in pieces:
        if isinstance(piece, _Chunk):
            if not pending and piece.rows > CHUNK_ROWS // 2:
                chunks.append(piece)
                continue
            piece = piece.to_table()
        while pending_rows + piece.num_rows >= CHUNK_ROWS:
            missing = CHUNK_ROWS - pending_rows
            table = pa.concat_tables([*pending, piece.slice(0, missing)])
            chunks.append(_Chunk.from_table(table, spill))
            piece, pending, pending_rows = piece.slice(missing), [], 0
        if piece.num_rows:
            pending.append(piece)
            pending_rows += piece.num_rows
    if pending_rows:
        chunks.append(_Chunk.from_table(pa.concat_tables(pending), spill))
    return chunks


def _sort(table: pa.Table) -> pa.Table:
    return table.take(pc.sort_indices(table, [("uri", "ascending")]))


def _is_sorted(table: pa.Table) -> bool:
    uris = table["uri"].combine_chunks()
    return len(uris) < 2 or bool(pc.all(pc.less_equal(uris[:-1], uris[1:])).as_py())


class _Builder:
    """Takes rows in any order and keeps them as sorted runs (one run if they arrive in order)."""

    def __init__(self) -> None:
        self._spill = SpillFile()
        self._runs: list[list[_Chunk]] = []
        self._last_uri: str | None = None  # the end of the run that is still growing
        self._pending: list[pa.Table] = []  # less than a chunk of rows, as they arrived
        self._pending_rows = 0
        self._unsorted: list[pa.Table] = []  # chunks that cannot be appended as they are

    def add(self, table: pa.Table) -> None:
        self._pending.append(table)
        self._pending_rows += table.num_rows
        if self._pending_rows >= CHUNK_ROWS:
            self._flush_pending()

    def finish(self) -> list[_Chunk]:
        self._flush_pending()
        self._sort_unsorted()
        if len(self._runs) <= 1:
            return self._runs[0] if self._runs else []
        return _repack(_merge_runs(self._runs))

    def _flush_pending(self) -> None:
        """Append the pending rows to the growing run, or queue them to be sorted."""
        if not self._pending_rows:
            return
        table = pa.concat_tables(self._pending).combine_chunks()
        self._pending, self._pending_rows = [], 0
        first_uri = table["uri"][0].as_py()
        follows_run = self._last_uri is None or first_uri >= self._last_uri
        if not self._unsorted and _is_sorted(table) and follows_run:
            self._append_to_run(table)
            return
        self._unsorted.append(table)
        if len(self._unsorted) == _RUN_CHUNKS:
            self._sort_unsorted()

    def _append_to_run(self, table: pa.Table) -> None:
        if not self._runs:
            self._runs.append([])
        self._runs[-1].append(_Chunk.from_table(table, self._spill))
        self._last_uri = table["uri"][-1].as_py()

    def _sort_unsorted(self) -> None:
        """Sort the queued rows; they continue the growing run or start a new one."""
        if not self._unsorted:
            return
        table = _sort(pa.concat_tables(self._unsorted))
        self._unsorted = []
        if self._last_uri is None or table["uri"][0].as_py() < self._last_uri:
            self._runs.append([])
        for start in range(0, table.num_rows, CHUNK_ROWS):
            self._append_to_run(table.slice(start, CHUNK_ROWS))


def _merge_runs(runs: list[list[_Chunk]]) -> Iterator[pa.Table]:
    """The rows of all runs in order, with one chunk of each run decoded at a time.

    Empties `runs`.
    """
    heads: list[pa.Table | None] = [None] * len(runs)  # the rest of the decoded chunk of each run
    while True:
        for index, run in enumerate(runs):
            if heads[index] is None and run:
                heads[index] = run.pop(0).to_table()
        tables = [(index, table) for index, table in enumerate(heads) if table is not None]
        if not tables:
            return
        bound = min(table["uri"][-1].as_py() for _, table in tables)
        mergeable = []
        is_within = pc.less_equal
        for index, table in tables:
            n_rows = int(pc.sum(is_within(table["uri"], bound)).as_py())
            mergeable.append(table.slice(0, n_rows))
            heads[index] = table.slice(n_rows) if n_rows < table.num_rows else None
            if heads[index] is None and runs[index]:
                # The next chunk of this run may start with `bound`, too. Those rows come before
                # the ones of later runs, which therefore stop short of `bound` for now.
                is_within = pc.less
        yield _sort(pa.concat_tables(mergeable))
