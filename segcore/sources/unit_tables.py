"""Units as Arrow tables: compact in memory, and with nested columns in stored plans."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segcore.sources.packed_members import (
    MemberColumns,
    pack_all,
    pack_members,
    set_aside,
    unpack_all,
    unpack_members,
)
from segcore.sources.units import Member, Unit
from segcore.storage.spill import MEMORY_BYTES

BATCH_UNITS = 512

_MEMBER_TYPE = pa.struct(
    [
        pa.field("image_id", pa.large_string()),  # null: equal to uri, which is the usual case
        pa.field("uri", pa.large_string(), nullable=False),
        pa.field("etag", pa.large_string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
    ]
)
_SCALAR_FIELDS = [
    pa.field("unit", pa.string(), nullable=False),
    pa.field("kind", pa.string(), nullable=False),
    pa.field("shard", pa.large_string(), nullable=False),
    pa.field("etag", pa.string(), nullable=False),
    pa.field("start", pa.int64(), nullable=False),
    pa.field("stop", pa.int64(), nullable=False),
    pa.field("n_images", pa.int64()),
    pa.field("n_bytes", pa.int64(), nullable=False),
]
_READER_FIELD = pa.field("reader", pa.string(), nullable=False)
# In memory the members of a unit are one packed value, see `segcore.sources.packed_members`. Stored
# plans have nested columns, which any Parquet reader opens.
UNIT_SCHEMA = pa.schema(
    [*_SCALAR_FIELDS, pa.field("members", pa.large_binary(), nullable=False), _READER_FIELD]
)
STORED_UNIT_SCHEMA = pa.schema(
    [
        *_SCALAR_FIELDS,
        pa.field("members", pa.large_list(_MEMBER_TYPE), nullable=False),
        _READER_FIELD,
    ]
)
_MEMBERS = UNIT_SCHEMA.get_field_index("members")


class UnitTableBuilder:
    """Collects units row by row; of a large plan, the members go to a temporary file.

    Args:
        memory_bytes: How much of packed members is kept in memory.
    """

    def __init__(self, memory_bytes: int | None = None) -> None:
        self._memory_bytes = MEMORY_BYTES if memory_bytes is None else memory_bytes
        self._n_bytes = 0
        self._batches: list[pa.RecordBatch] = []
        self._rows: list[dict[str, Any]] = []

    def add(self, unit: Unit) -> None:
        """Add a unit with its members."""
        self.add_packed(unit, pack_members(_to_columns(unit.members)))

    def add_packed(self, unit: Unit, packed: bytes) -> None:
        """Add a unit whose members are packed already; those that it has itself are ignored."""
        row = {name: getattr(unit, name) for name in UNIT_SCHEMA.names}
        self._rows.append(row | {"members": self.keep(packed)})
        if len(self._rows) == BATCH_UNITS:
            self._flush()

    def add_batch(self, batch: pa.RecordBatch) -> None:
        """Add rows of `UNIT_SCHEMA`."""
        self._flush()
        n_bytes = int(pc.sum(pc.binary_length(batch["members"])).as_py() or 0)
        if self._n_bytes + n_bytes <= self._memory_bytes:
            self._n_bytes += n_bytes
        else:
            members = [self.keep(packed) for packed in batch["members"].to_pylist()]
            columns = [*batch.columns]
            columns[_MEMBERS] = pa.array(members, pa.large_binary())
            batch = pa.RecordBatch.from_arrays(columns, schema=UNIT_SCHEMA)
        self._batches.append(batch)

    def keep(self, packed: bytes) -> bytes:
        """The packed members, or a reference to them once there are many."""
        self._n_bytes += len(packed)
        return packed if self._n_bytes <= self._memory_bytes else set_aside(packed)

    def finish(self) -> pa.Table:
        """All units in the order in which they came."""
        self._flush()
        return pa.Table.from_batches(self._batches, UNIT_SCHEMA)

    def _flush(self) -> None:
        if self._rows:
            self._batches.append(pa.RecordBatch.from_pylist(self._rows, schema=UNIT_SCHEMA))
            self._rows = []


def units_to_table(units: Iterable[Unit]) -> pa.Table:
    """Units as an Arrow table with `UNIT_SCHEMA`; consumes an iterator in bounded memory."""
    builder = UnitTableBuilder()
    for unit in units:
        builder.add(unit)
    return builder.finish()


def units_from_table(table: pa.Table) -> Iterator[Unit]:
    """The units of a table, in its order."""
    for batch in table.to_batches(BATCH_UNITS):
        for row in batch.to_pylist():
            yield Unit(**row | {"members": _to_members(unpack_members(row["members"]))})


def _to_columns(members: Iterable[Member]) -> MemberColumns:
    rows = [
        (
            member.image_id if member.image_id != member.uri else None,
            member.uri,
            member.etag,
            member.size,
        )
        for member in members
    ]
    columns = zip(*rows, strict=True) if rows else [()] * 4
    arrays = [
        pa.array(column, field.type) for column, field in zip(columns, _MEMBER_TYPE, strict=True)
    ]
    return MemberColumns(*arrays)


def _to_members(columns: MemberColumns) -> tuple[Member, ...]:
    values = (column.to_pylist() for column in columns.columns())
    return tuple(
        Member(uri if image_id is None else image_id, uri, etag, size)
        for image_id, uri, etag, size in zip(*values, strict=True)
    )


def unit_batches(table: pa.Table) -> Iterator[pa.Table]:
    """The rows of a table of `UNIT_SCHEMA`, some units at a time."""
    for start in range(0, table.num_rows, BATCH_UNITS):
        yield table.slice(start, BATCH_UNITS)


def to_stored_table(batch: pa.Table) -> pa.Table:
    """One of `unit_batches` as a table of `STORED_UNIT_SCHEMA`."""
    stored_field = STORED_UNIT_SCHEMA.field("members")
    columns, counts = unpack_all(batch["members"].combine_chunks())
    members = pa.StructArray.from_arrays(list(columns.columns()), fields=list(_MEMBER_TYPE))
    offsets = np.concatenate(([0], np.cumsum(counts)))
    nested = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), members)
    return batch.set_column(_MEMBERS, stored_field, nested.cast(stored_field.type))


def from_stored_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Inverse of `to_stored_table` for one batch, which must have `STORED_UNIT_SCHEMA`."""
    nested = batch["members"]
    columns = MemberColumns(
        *(nested.values.field(name) for name in ("image_id", "uri", "etag", "size"))
    )
    arrays = [batch[name] for name in UNIT_SCHEMA.names]
    arrays[_MEMBERS] = pack_all(columns, nested.offsets.to_numpy())
    return pa.RecordBatch.from_arrays(arrays, schema=UNIT_SCHEMA)
