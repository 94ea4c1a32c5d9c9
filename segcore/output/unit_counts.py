"""What the parts of an edition say about themselves, as a table with one row for each unit.

A row names the file of the ``images`` part that it was taken from by generation, size and etag, so
that it can be told from a listing whether it still holds. Sums over the table make no Python
object for a unit, unless images of it failed, were noticed or have warnings; of these one for each
distinct text.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segcore.output.part_counts import PartCounts
from segcore.text import parse_json

# Counts by name, as JSON with sorted keys; null where there is nothing to count.
_COUNTERS = ("failures", "notes", "warnings")
_NUMBERS = ("generation", "size", "ok", "failed", "instances")

UNIT_COUNTS_SCHEMA = pa.schema(
    [
        pa.field("unit", pa.string(), nullable=False),
        pa.field("generation", pa.int32(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),  # bytes of the ``images`` part
        pa.field("etag", pa.string(), nullable=False),  # of the ``images`` part, as it is listed
        pa.field("ok", pa.int64(), nullable=False),
        pa.field("failed", pa.int64(), nullable=False),
        pa.field("instances", pa.int64(), nullable=False),
        *(pa.field(name, pa.string()) for name in _COUNTERS),
    ]
)

_MIN_ROW_BYTES = 4  # a unit id is a hash, which no file holds in less
_MAX_TEXT_BYTES = 512  # of a text, on average
_SPARE_BYTES = 1 << 20
_MAX_NUMBER = 1 << 40  # in any row; so no sum overflows


@dataclass(frozen=True)
class UnitCounts:
    """One row: the counts of a unit, and the ``images`` part that says so.

    Attributes:
        size: Bytes of the part; -1 where it is not known.
        etag: Of the part, as a listing shows it; "" where it is not known.
    """

    counts: PartCounts
    generation: int
    size: int
    etag: str

    @property
    def unit(self) -> str:
        """The id of the unit."""
        return self.counts.unit

    @classmethod
    def of_written(cls, counts: PartCounts) -> UnitCounts | None:
        """The row of a part that was just written; None where nothing was, or it has no etag."""
        if counts.written is None or not counts.written.etag:
            return None
        return cls(counts, *counts.written)

    def to_text(self) -> str:
        """The row as JSON."""
        return json.dumps(_row_values(self), separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> UnitCounts:
        """Inverse of `to_text`."""
        return _row_from_values(*parse_json(text))


@dataclass(frozen=True)
class CountTotals:
    """Sums over units; see `PartCounts` for the fields."""

    units: int
    ok: int
    failed: int
    instances: int
    failures: dict[str, int]
    notes: dict[str, int]
    warnings: dict[str, int]

    @property
    def images(self) -> int:
        """Rows of the ``images`` table."""
        return self.ok + self.failed


def _row_values(row: UnitCounts) -> tuple:
    """The values of a row, in the order of the columns."""
    counts = row.counts
    counters = (counts.failures, counts.notes, counts.warnings)
    return (
        counts.unit,
        row.generation,
        row.size,
        row.etag,
        counts.ok,
        counts.failed,
        counts.instances,
        *(json.dumps(counter, sort_keys=True) if counter else None for counter in counters),
    )


def _row_from_values(
    unit: str,
    generation: int,
    size: int,
    etag: str,
    ok: int,
    failed: int,
    instances: int,
    *counters: str | None,
) -> UnitCounts:
    failures, notes, warnings = (parse_json(text) if text else {} for text in counters)
    counts = PartCounts(unit, ok, failed, instances, failures, notes, warnings)
    return UnitCounts(counts, generation, size, etag)


def unit_counts_table(rows: Iterable[UnitCounts]) -> pa.Table:
    """The rows as a table of `UNIT_COUNTS_SCHEMA`."""
    values = [_row_values(row) for row in rows]
    if not values:
        return UNIT_COUNTS_SCHEMA.empty_table()
    columns = zip(*values, strict=True)
    arrays = [
        pa.array(column, field.type)
        for column, field in zip(columns, UNIT_COUNTS_SCHEMA, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=UNIT_COUNTS_SCHEMA)


def rows_of_table(table: pa.Table) -> Iterator[UnitCounts]:
    """Inverse of `unit_counts_table`; one Python object for each row."""
    columns = (table[name].to_pylist() for name in UNIT_COUNTS_SCHEMA.names)
    for values in zip(*columns, strict=True):
        yield _row_from_values(*values)


def sum_counts(table: pa.Table) -> CountTotals:
    """The sums over all rows of a table of `UNIT_COUNTS_SCHEMA`."""
    ok, failed, instances = (int(pc.sum(table[n]).as_py() or 0) for n in _NUMBERS[2:])
    failures, notes, warnings = (_sum_counters(table[name]) for name in _COUNTERS)
    return CountTotals(table.num_rows, ok, failed, instances, failures, notes, warnings)


def _sum_counters(column: pa.ChunkedArray) -> dict[str, int]:
    """The sum of all counters of a column, sorted by name."""
    totals: Counter[str] = Counter()
    for counter, n_rows in _distinct_counters(column):
        for name, number in counter.items():
            totals[name] += number * n_rows
    return dict(sorted(totals.items()))


def _distinct_counters(column: pa.ChunkedArray) -> Iterator[tuple[dict[str, int], int]]:
    """Each distinct counter of a column, and in how many rows it is."""
    texts = column.drop_null()
    if not len(texts):
        return
    for entry in pc.value_counts(texts).to_pylist():
        yield parse_json(entry["values"]), entry["counts"]


def encode_unit_counts(table: pa.Table, metadata: Mapping[str, str] | None = None) -> bytes:
    """The table as a Parquet file; the same bytes for the same rows."""
    sink = io.BytesIO()
    pq.write_table(
        table.select(UNIT_COUNTS_SCHEMA.names)
        .cast(UNIT_COUNTS_SCHEMA)
        .replace_schema_metadata(dict(metadata or {})),
        sink,
        compression="zstd",
        use_dictionary=list(_COUNTERS),
        write_page_checksum=True,
    )
    return sink.getvalue()


def decode_unit_counts(data: bytes) -> pa.Table:
    """Inverse of `encode_unit_counts`; further columns of the file are left out.

    Memory stays in proportion to `data`, whatever it holds.

    Raises:
        ValueError: It is damaged, is no such table, or holds what no part says.
    """
    texts = [field.name for field in UNIT_COUNTS_SCHEMA if pa.types.is_string(field.type)]
    try:
        # A text that a file holds once and repeats stays so here until its size is checked.
        file = pq.ParquetFile(
            io.BytesIO(data), read_dictionary=texts, page_checksum_verification=True
        )
        if file.metadata.num_rows * _MIN_ROW_BYTES > len(data) + _SPARE_BYTES:
            raise ValueError(f"it has {file.metadata.num_rows:,} rows")
        _check_types(file.schema_arrow)
        table = file.read(UNIT_COUNTS_SCHEMA.names, use_threads=False)
        for name in texts:
            _check_expanded_size(table[name])
        table = table.select(UNIT_COUNTS_SCHEMA.names).cast(UNIT_COUNTS_SCHEMA)
        table.validate(full=True)  # texts are UTF-8
    except (pa.ArrowException, OSError, KeyError, OverflowError) as error:
        raise ValueError(str(error).partition("\n")[0][:200]) from None
    _check_numbers(table)
    for name in _COUNTERS:
        _check_counters(table[name])
    if not _failures_are_complete(table):
        raise ValueError("failures do not add up")
    return table.replace_schema_metadata(None)


def _check_types(schema: pa.Schema) -> None:
    for field in UNIT_COUNTS_SCHEMA:
        stored = schema.field(field.name).type
        if pa.types.is_dictionary(stored):
            stored = stored.value_type
        if stored != field.type:
            raise ValueError(f"{field.name} is of the type {stored}")


def _check_expanded_size(column: pa.ChunkedArray) -> None:
    """Refuse texts that would take more memory than those of any edition."""
    n_bytes = 0
    for chunk in column.chunks:
        lengths = pc.binary_length(chunk.dictionary.cast(pa.binary()))
        n_bytes += int(pc.sum(lengths.cast(pa.int64()).take(chunk.indices)).as_py() or 0)
    if n_bytes > len(column) * _MAX_TEXT_BYTES + _SPARE_BYTES:
        raise ValueError(f"texts of {n_bytes:,} bytes")


def _check_numbers(table: pa.Table) -> None:
    for field in UNIT_COUNTS_SCHEMA:
        if not field.nullable and table[field.name].null_count:
            raise ValueError(f"{field.name} is null")
    for name in _NUMBERS:
        bounds = pc.min_max(table[name]).as_py()
        lowest = -1 if name == "size" else 0
        if table.num_rows and not (lowest <= bounds["min"] <= bounds["max"] <= _MAX_NUMBER):
            raise ValueError(f"{name} is out of range")


def _check_counters(column: pa.ChunkedArray) -> None:
    for counter, _ in _distinct_counters(column):
        if not isinstance(counter, dict) or not all(
            type(number) is int and 0 < number <= _MAX_NUMBER for number in counter.values()
        ):
            raise ValueError("a text is not counts by name")


def _failures_are_complete(table: pa.Table) -> bool:
    """Whether the failures of each row sum up to its failed images."""
    texts = pc.unique(table["failures"].drop_null())
    sums = pa.array([sum(parse_json(text).values()) for text in texts.to_pylist()], pa.int64())
    sums_of_rows = sums.take(pc.index_in(table["failures"], texts))
    return bool(
        pc.all(pc.equal(pc.fill_null(sums_of_rows, 0), table["failed"])).as_py() is not False
    )
