"""Units as Arrow tables: compact in memory, and with nested columns in stored plans."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import pyarrow as pa

from segcore.sources.units import Member, Unit

_BATCH_UNITS = 512

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
# In memory the members of a unit are one packed value: ten million images as nested columns would
# take more than a gigabyte. Stored plans have nested columns, which any Parquet reader opens.
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


def pack_members(members: Iterable[Member]) -> bytes:
    """Members as one compressed value; inverse of `unpack_members`."""
    rows = [
        (
            member.image_id if member.image_id != member.uri else None,
            member.uri,
            member.etag,
            member.size,
        )
        for member in members
    ]
    return _pack_columns(list(zip(*rows, strict=True))) if rows else b""


def _pack_columns(columns: Iterable[Iterable[Any]]) -> bytes:
    """Pack the columns image_id, uri, etag and size."""
    data = json.dumps([list(column) for column in columns], separators=(",", ":")).encode()
    return len(data).to_bytes(8, "little") + pa.compress(data, codec="zstd", asbytes=True)


def unpack_member_columns(
    packed: bytes,
) -> tuple[list[str | None], list[str], list[str], list[int]]:
    """(image ids, None where equal to the uri; uris; etags; sizes) of packed members."""
    if not packed:
        return [], [], [], []
    n_bytes = int.from_bytes(packed[:8], "little")
    image_ids, uris, etags, sizes = json.loads(
        pa.decompress(packed[8:], decompressed_size=n_bytes, codec="zstd", asbytes=True)
    )
    return image_ids, uris, etags, sizes


def unpack_members(packed: bytes) -> tuple[Member, ...]:
    """Inverse of `pack_members`."""
    return tuple(
        Member(uri if image_id is None else image_id, uri, etag, size)
        for image_id, uri, etag, size in zip(*unpack_member_columns(packed), strict=True)
    )


def units_to_table(units: Iterable[Unit]) -> pa.Table:
    """Units as an Arrow table with `UNIT_SCHEMA`; consumes an iterator in bounded memory."""
    batches: list[pa.RecordBatch] = []
    rows: list[dict[str, Any]] = []
    for unit in units:
        row = {name: getattr(unit, name) for name in UNIT_SCHEMA.names}
        rows.append(row | {"members": pack_members(unit.members)})
        if len(rows) == _BATCH_UNITS:
            batches.append(pa.RecordBatch.from_pylist(rows, schema=UNIT_SCHEMA))
            rows = []
    if rows:
        batches.append(pa.RecordBatch.from_pylist(rows, schema=UNIT_SCHEMA))
    return pa.Table.from_batches(batches, UNIT_SCHEMA)


def units_from_table(table: pa.Table) -> Iterator[Unit]:
    """The units of a table, in its order."""
    for batch in table.to_batches(_BATCH_UNITS):
        for row in batch.to_pylist():
            yield Unit(**row | {"members": unpack_members(row["members"])})


def to_stored_tables(table: pa.Table) -> Iterator[pa.Table]:
    """A table of `UNIT_SCHEMA` as tables of `STORED_UNIT_SCHEMA`, some units at a time."""
    for start in range(0, table.num_rows, _BATCH_UNITS):
        batch = table.slice(start, _BATCH_UNITS)
        columns: tuple[list, ...] = ([], [], [], [])
        offsets = [0]
        for packed in batch["members"].to_pylist():
            for column, values in zip(columns, unpack_member_columns(packed), strict=True):
                column.extend(values)  # type: ignore[arg-type]
            offsets.append(len(columns[1]))
        arrays = [
            pa.array(column, field.type)
            for column, field in zip(columns, _MEMBER_TYPE, strict=True)
        ]
        members = pa.StructArray.from_arrays(arrays, fields=list(_MEMBER_TYPE))
        nested = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), members)
        stored_field = STORED_UNIT_SCHEMA.field("members")
        index = UNIT_SCHEMA.get_field_index("members")
        yield batch.set_column(index, stored_field, nested.cast(stored_field.type))


def from_stored_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Inverse of `to_stored_tables` for one batch, which must have `STORED_UNIT_SCHEMA`."""
    nested = batch["members"]
    offsets = nested.offsets.to_pylist()
    columns = [
        nested.values.field(name).to_pylist() for name in ("image_id", "uri", "etag", "size")
    ]
    packed = [
        _pack_columns([column[start:stop] for column in columns]) if stop > start else b""
        for start, stop in pairwise(offsets)
    ]
    arrays = [batch[name] for name in UNIT_SCHEMA.names]
    arrays[UNIT_SCHEMA.get_field_index("members")] = pa.array(packed, pa.large_binary())
    return pa.RecordBatch.from_arrays(arrays, schema=UNIT_SCHEMA)
