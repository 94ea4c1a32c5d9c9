"""Objects of an archive as columns that stay small: sorted by uri, compressed, read in batches.

Ten million objects are some 1.2 GB as plain Arrow columns, and twice that while they are sorted.
Here they are Parquet chunks in memory (front-coded names, about 30 bytes an object), sorted as
they come when the store lists in order, and by merging sorted runs when not.
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

SCHEMA = pa.schema([("uri", pa.large_string()), ("size", pa.int64()), ("etag", pa.large_string())])
CHUNK_ROWS = 1 << 16
_RUN_CHUNKS = 16  # rows out of order that are sorted at once
_ROW_BATCH = 10_000


@dataclass(frozen=True)
class _Chunk:
    """Rows sorted by uri."""

    rows: int
    data: bytes

    @classmethod
    def of(cls, table: pa.Table) -> _Chunk:
        sink = pa.BufferOutputStream()
        pq.write_table(
            table,
            sink,
            compression="zstd",
            use_dictionary=False,
            write_statistics=False,
            column_encoding={"uri": "DELTA_BYTE_ARRAY", "size": "PLAIN", "etag": "PLAIN"},
        )
        return cls(table.num_rows, sink.getvalue().to_pybytes())

    def table(self, columns: list[str] | None = None) -> pa.Table:
        return pq.read_table(io.BytesIO(self.data), columns=columns, use_threads=False)


class Listing:
    """Immutable rows (uri, size, etag), sorted by uri (code points); equal uris as they came."""

    schema = SCHEMA

    def __init__(self, chunks: list[_Chunk]) -> None:
        self._chunks = chunks
        self.num_rows = sum(chunk.rows for chunk in chunks)

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[str, int, str]]) -> Listing:
        """From (uri, size, etag) in any order; holds few of them at a time."""
        return cls.from_tables(_tables(rows))

    @classmethod
    def from_tables(cls, tables: Iterable[pa.Table]) -> Listing:
        """From tables of `SCHEMA` with rows in any order."""
        builder = _Builder()
        for table in tables:
            for batch in table.to_batches(CHUNK_ROWS):
                builder.add(pa.Table.from_batches([batch]))
        return cls(builder.finish())

    def to_batches(self, max_rows: int = CHUNK_ROWS) -> Iterator[pa.RecordBatch]:
        """All rows in order."""
        for chunk in self._chunks:
            yield from chunk.table().to_batches(max_rows)

    def to_table(self) -> pa.Table:
        """All rows as plain columns; only for what is known to be small."""
        return pa.Table.from_batches(list(self.to_batches()), SCHEMA)

    def column_batches(self, name: str) -> Iterator[pa.ChunkedArray]:
        """One column, chunk by chunk."""
        for chunk in self._chunks:
            yield chunk.table([name])[name]

    def filter(self, mask: Callable[[pa.Table], pa.ChunkedArray]) -> Listing:
        """The rows for which `mask`, asked for each chunk, is true."""
        return Listing(_pack(chunk.table().filter(mask(chunk.table())) for chunk in self._chunks))

    def take_where(self, rows: np.ndarray) -> Listing:
        """The rows where a (num_rows,) bool array is true."""
        return Listing(_pack(self._where(rows)))

    def unique(self) -> tuple[Listing, int]:
        """(each uri once, the first of equal ones; how many rows were left out)."""
        first = np.ones(self.num_rows, bool)
        at, last = 0, None
        for uris in self.column_batches("uri"):
            column = uris.combine_chunks()
            if len(column) > 1:
                same = pc.equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False)
                first[at + 1 : at + len(column)] = ~same
            first[at] = column[0].as_py() != last
            at, last = at + len(column), column[-1].as_py()
        repeated = int(self.num_rows - np.count_nonzero(first))
        return (self.take_where(first), repeated) if repeated else (self, 0)

    def _where(self, rows: np.ndarray) -> Iterator[pa.Table]:
        at = 0
        for chunk in self._chunks:
            mine = rows[at : at + chunk.rows]
            at += chunk.rows
            if mine.any():
                yield chunk.table().filter(pa.array(mine))


def _tables(rows: Iterable[tuple[str, int, str]]) -> Iterator[pa.Table]:
    rows = iter(rows)
    while part := list(islice(rows, _ROW_BATCH)):
        columns = zip(*part, strict=True)
        arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
        yield pa.Table.from_arrays(arrays, schema=SCHEMA)


def _pack(tables: Iterable[pa.Table]) -> list[_Chunk]:
    """Tables whose rows follow each other in order, as chunks of about `CHUNK_ROWS`."""
    chunks: list[_Chunk] = []
    held: list[pa.Table] = []
    rows = 0
    for table in tables:
        while rows + table.num_rows >= CHUNK_ROWS:
            cut = CHUNK_ROWS - rows
            chunks.append(_Chunk.of(pa.concat_tables([*held, table.slice(0, cut)])))
            table, held, rows = table.slice(cut), [], 0
        if table.num_rows:
            held.append(table)
            rows += table.num_rows
    if rows:
        chunks.append(_Chunk.of(pa.concat_tables(held)))
    return chunks


def _sorted(table: pa.Table) -> pa.Table:
    return table.take(pc.sort_indices(table, [("uri", "ascending")]))


def _in_order(table: pa.Table) -> bool:
    uris = table["uri"].combine_chunks()
    return len(uris) < 2 or bool(pc.all(pc.less_equal(uris[:-1], uris[1:])).as_py())


class _Builder:
    """Takes rows in any order; keeps sorted runs, one when they come in order."""

    def __init__(self) -> None:
        self._runs: list[list[_Chunk]] = []
        self._last: str | None = None  # uri that ends the run that still grows
        self._held: list[pa.Table] = []
        self._rows = 0
        self._loose: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        self._held.append(table)
        self._rows += table.num_rows
        if self._rows >= CHUNK_ROWS:
            self._flush()

    def finish(self) -> list[_Chunk]:
        self._flush()
        self._settle()
        if len(self._runs) <= 1:
            return self._runs[0] if self._runs else []
        return _pack(_merged(self._runs))

    def _flush(self) -> None:
        """Rows held so far become a chunk of the growing run, or wait to be sorted."""
        if not self._rows:
            return
        table = pa.concat_tables(self._held).combine_chunks()
        self._held, self._rows = [], 0
        first = table["uri"][0].as_py()
        if not self._loose and _in_order(table) and (self._last is None or first >= self._last):
            self._append(table)
            return
        self._loose.append(table)
        if len(self._loose) == _RUN_CHUNKS:
            self._settle()

    def _append(self, table: pa.Table) -> None:
        if not self._runs:
            self._runs.append([])
        self._runs[-1].append(_Chunk.of(table))
        self._last = table["uri"][-1].as_py()

    def _settle(self) -> None:
        """Sort what waits; it follows the growing run or begins another."""
        if not self._loose:
            return
        table = _sorted(pa.concat_tables(self._loose))
        self._loose = []
        if self._last is None or table["uri"][0].as_py() < self._last:
            self._runs.append([])
        for start in range(0, table.num_rows, CHUNK_ROWS):
            self._append(table.slice(start, CHUNK_ROWS))


def _merged(runs: list[list[_Chunk]]) -> Iterator[pa.Table]:
    """Rows of all runs in order; a chunk of each run is open at a time. Empties `runs`."""
    open_: list[pa.Table | None] = [None] * len(runs)
    while True:
        for index, run in enumerate(runs):
            if open_[index] is None and run:
                open_[index] = run.pop(0).table()
        tables = [(index, table) for index, table in enumerate(open_) if table is not None]
        if not tables:
            return
        bound = min(table["uri"][-1].as_py() for index, table in tables)
        due = []
        upto = pc.less_equal
        for index, table in tables:
            n = int(pc.sum(upto(table["uri"], bound)).as_py())
            due.append(table.slice(0, n))
            open_[index] = table.slice(n) if n < table.num_rows else None
            if open_[index] is None and runs[index]:
                upto = pc.less  # its next chunk may go on with `bound`, before that of later runs
        yield _sorted(pa.concat_tables(due))
