"""Sorting the rows of a file that are not to be in memory all at once.

Rows are sorted in runs, which are set aside. Of all rows only the keys stay in memory: their order
says how many rows of each run a piece of the result takes, and these are always the next ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segcore.storage.spill import SpillFile

RUN_BYTES = 64 << 20  # of rows in memory
_PAGE_ROWS = 4096  # of a run, read at once

SortKeys = Sequence[tuple[str, str]]  # column, "ascending" or "descending"


class RowSorter:
    """Takes rows in any order, and gives them back sorted.

    Args:
        schema: Of the rows.
        keys: No two rows have all of them equal.
    """

    def __init__(self, schema: pa.Schema, keys: SortKeys) -> None:
        self._schema = schema
        self._sort_keys = list(keys)
        self._waiting: list[pa.Table] = []
        self._waiting_bytes = 0
        self._spill = SpillFile(memory_bytes=0)
        self._runs: list[_Run] = []
        self._keys: list[pa.Table] = []  # of each run

    def add(self, rows: pa.Table) -> None:
        """Take rows.

        Raises:
            StorageFull: The temporary folder has no room for them.
            StorageError: They cannot be written there.
        """
        self._waiting.append(rows)
        self._waiting_bytes += rows.nbytes
        if self._waiting_bytes >= RUN_BYTES:
            self._finish_run()

    def sorted_pieces(self, piece_rows: int) -> Iterator[pa.Table]:
        """All rows in pieces of so many; to be called once."""
        self._finish_run()
        if not self._keys:
            return
        keys = pa.concat_tables(self._keys)
        self._keys.clear()
        order = pc.sort_indices(keys, sort_keys=self._sort_keys).to_numpy()
        del keys
        starts = np.cumsum([0, *(run.rows for run in self._runs)])
        for first in range(0, len(order), piece_rows):
            places = order[first : first + piece_rows].astype(np.int64)
            yield self._take_next(places, starts)

    def _take_next(self, places: np.ndarray, starts: np.ndarray) -> pa.Table:
        """The rows at these places of all runs one after another: the next ones of each run."""
        run_of_row = np.searchsorted(starts, places, side="right") - 1
        counts = np.bincount(run_of_row, minlength=len(self._runs))
        shifts = np.cumsum([0, *counts[:-1]])
        rows_in_piece = []
        for number, (run, count) in enumerate(zip(self._runs, counts.tolist(), strict=True)):
            shifts[number] -= starts[number] + run.taken
            rows_in_piece.append(run.take(count))
        rows = pa.concat_tables(rows_in_piece).combine_chunks()
        return rows.take(pa.array(places + shifts[run_of_row]))

    def _finish_run(self) -> None:
        if not self._waiting:
            return
        rows = pa.concat_tables(self._waiting).cast(self._schema)
        self._waiting.clear()
        self._waiting_bytes = 0
        rows = rows.sort_by(self._sort_keys)
        self._keys.append(rows.select([name for name, _ in self._sort_keys]))
        self._runs.append(_Run(rows, self._spill))


class _Run:
    """Sorted rows in the temporary file, of which the next ones can be taken."""

    def __init__(self, rows: pa.Table, spill: SpillFile) -> None:
        self.rows = rows.num_rows
        self.taken = 0
        self._schema = rows.schema
        self._spill = spill
        self._next_page = 0
        self._read = rows.schema.empty_table()  # of pages, not taken yet
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        self._pages: list[tuple[int, int]] = []  # place and bytes
        for start in range(0, rows.num_rows, _PAGE_ROWS):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, rows.schema, options=options) as writer:
                writer.write_table(rows.slice(start, _PAGE_ROWS))
            data = sink.getvalue().to_pybytes()
            self._pages.append((spill.append(data), len(data)))

    def take(self, count: int) -> pa.Table:
        """The next rows."""
        pieces, n_rows = [self._read], self._read.num_rows
        while n_rows < count:
            data = self._spill.read(*self._pages[self._next_page])
            self._next_page += 1
            pieces.append(pa.ipc.open_stream(data).read_all())
            n_rows += pieces[-1].num_rows
        rows = pa.concat_tables(pieces)
        self._read = rows.slice(count)
        self.taken += count
        return rows.slice(0, count)
