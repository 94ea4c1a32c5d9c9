"""Units: the bounded pieces of an archive that are read, segmented and committed together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from segcore.errors import SegcoreError

_BATCH = 512


class UnitLimits(BaseModel):
    """How large a unit may grow (configuration section `units`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int = Field(default=256, ge=1, description="Images of one unit.")
    bytes: int = Field(default=128 << 20, ge=1, description="Compressed bytes of one unit.")


@dataclass(frozen=True)
class Member:
    """One image of a unit of loose objects; in units of shards, one renamed duplicate.

    Attributes:
        image_id: Identity of the image: the object's URI, or `<shard uri>#<key>`.
        uri: Where its bytes are. For a renamed duplicate: its name inside the shard.
        etag: Version at planning; "" when not known. One that starts with "!" marks an entry
            that may not be read (`segcore.sources.base.REFUSALS`).
        size: Bytes; -1 when not known at planning. For a renamed duplicate: its position in
            the shard (tar: offset of its header; Parquet: row).
    """

    image_id: str
    uri: str
    etag: str
    size: int


@dataclass(frozen=True)
class Unit:
    """A piece of an archive with a name that depends on its content alone.

    Attributes:
        unit: 20 hex digits; a function of everything that decides which images it holds.
        kind: "objects", "tar" or "parquet".
        shard: URI of the shard; "" for loose objects.
        etag: Version of the shard; "" for loose objects.
        start, stop: objects: 0 and the number of members. tar: half-open byte range in which
            the headers of its members begin. parquet: half-open range of row groups.
        n_images: Rows it gives, failed ones included; None when only reading can tell.
        n_bytes: Compressed bytes, as far as known.
        members: objects: all images. tar, parquet: only members whose name stands more than
            once in a shard that was cut into several units.
        reader: parquet: the columns to read, as JSON; tar: the extensions of images.
    """

    unit: str
    kind: str
    shard: str
    etag: str
    start: int
    stop: int
    n_images: int | None
    n_bytes: int
    members: tuple[Member, ...] = ()
    reader: str = ""


def make_unit(
    kind: str,
    *,
    shard: str = "",
    etag: str = "",
    start: int = 0,
    stop: int,
    n_images: int | None,
    n_bytes: int,
    members: Iterable[Member] = (),
    reader: str = "",
) -> Unit:
    """A unit with its id: sha256 over kind, shard, range, reader and the members' ids and etags.

    Sizes of loose objects are left out: they follow from the etag where one is known.
    """
    members = tuple(members)
    names = [[m.image_id, m.etag] for m in members]
    text = json.dumps([kind, shard, etag, start, stop, reader, names], separators=(",", ":"))
    name = hashlib.sha256(text.encode()).hexdigest()[:20]
    return Unit(name, kind, shard, etag, start, stop, n_images, n_bytes, members, reader)


def objects_unit(members: Sequence[Member]) -> Unit:
    """The unit of these loose images."""
    n_bytes = sum(max(member.size, 0) for member in members)
    n = len(members)
    return make_unit("objects", stop=n, n_images=n, n_bytes=n_bytes, members=members)


_MEMBER = pa.struct(
    [
        pa.field("image_id", pa.large_string()),  # null: the same as uri, the usual case
        pa.field("uri", pa.large_string(), nullable=False),
        pa.field("etag", pa.large_string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
    ]
)
_PLAIN = [
    pa.field("unit", pa.string(), nullable=False),
    pa.field("kind", pa.string(), nullable=False),
    pa.field("shard", pa.large_string(), nullable=False),
    pa.field("etag", pa.string(), nullable=False),
    pa.field("start", pa.int64(), nullable=False),
    pa.field("stop", pa.int64(), nullable=False),
    pa.field("n_images", pa.int64()),
    pa.field("n_bytes", pa.int64(), nullable=False),
]
_READER = pa.field("reader", pa.string(), nullable=False)
# In memory the members of a unit are one packed value: ten million images as nested columns
# would be more than a gigabyte. Stored plans have them as columns that any reader opens.
UNIT_SCHEMA = pa.schema([*_PLAIN, pa.field("members", pa.large_binary(), nullable=False), _READER])
STORED_UNIT_SCHEMA = pa.schema(
    [*_PLAIN, pa.field("members", pa.large_list(_MEMBER), nullable=False), _READER]
)


def pack_members(members: Iterable[Member]) -> bytes:
    """Members as one compressed value; inverse of `unpack_members`."""
    rows = [(m.image_id if m.image_id != m.uri else None, m.uri, m.etag, m.size) for m in members]
    return _pack(list(zip(*rows, strict=True))) if rows else b""


def _pack(columns: Iterable[Iterable[Any]]) -> bytes:
    """Columns image_id, uri, etag, size."""
    data = json.dumps([list(column) for column in columns], separators=(",", ":")).encode()
    return len(data).to_bytes(8, "little") + pa.compress(data, codec="zstd", asbytes=True)


def unpack_member_columns(
    packed: bytes,
) -> tuple[list[str | None], list[str], list[str], list[int]]:
    """(image ids, None where the uri says it; uris; etags; sizes) of packed members."""
    if not packed:
        return [], [], [], []
    size = int.from_bytes(packed[:8], "little")
    image_ids, uris, etags, sizes = json.loads(
        pa.decompress(packed[8:], decompressed_size=size, codec="zstd", asbytes=True)
    )
    return image_ids, uris, etags, sizes


def unpack_members(packed: bytes) -> tuple[Member, ...]:
    """Inverse of `pack_members`."""
    return tuple(
        Member(uri if image_id is None else image_id, uri, etag, size)
        for image_id, uri, etag, size in zip(*unpack_member_columns(packed), strict=True)
    )


def to_row(unit: Unit) -> dict[str, Any]:
    """Plain dict with the fields of `STORED_UNIT_SCHEMA`."""
    row = {name: getattr(unit, name) for name in UNIT_SCHEMA.names}
    row["members"] = [
        {
            "image_id": None if m.image_id == m.uri else m.image_id,
            "uri": m.uri,
            "etag": m.etag,
            "size": m.size,
        }
        for m in unit.members
    ]
    return row


def from_row(row: dict[str, Any]) -> Unit:
    """Inverse of `to_row`.

    Raises:
        SegcoreError: The row has not the fields of a unit.
    """
    try:
        members = tuple(
            Member(m["uri"] if m["image_id"] is None else m["image_id"], m["uri"], m["etag"],
                   int(m["size"]))
            for m in row["members"]
        )  # fmt: skip
        n_images = None if row["n_images"] is None else int(row["n_images"])
        return Unit(
            unit=row["unit"],
            kind=row["kind"],
            shard=row["shard"],
            etag=row["etag"],
            start=int(row["start"]),
            stop=int(row["stop"]),
            n_images=n_images,
            n_bytes=int(row["n_bytes"]),
            members=members,
            reader=row["reader"],
        )
    except (KeyError, TypeError) as error:
        raise SegcoreError(f"This is not a stored unit: field {error} is missing or wrong.") from (
            error
        )


def units_to_table(units: Iterable[Unit]) -> pa.Table:
    """Units as an Arrow table with `UNIT_SCHEMA`; consumes an iterator in bounded memory."""
    batches: list[pa.RecordBatch] = []
    rows: list[dict[str, Any]] = []
    for unit in units:
        row = {name: getattr(unit, name) for name in UNIT_SCHEMA.names}
        rows.append(row | {"members": pack_members(unit.members)})
        if len(rows) == _BATCH:
            batches.append(pa.RecordBatch.from_pylist(rows, schema=UNIT_SCHEMA))
            rows = []
    if rows:
        batches.append(pa.RecordBatch.from_pylist(rows, schema=UNIT_SCHEMA))
    return pa.Table.from_batches(batches, UNIT_SCHEMA)


def units_from_table(table: pa.Table) -> Iterator[Unit]:
    """Units of a table, in its order."""
    for batch in table.to_batches(_BATCH):
        for row in batch.to_pylist():
            yield Unit(**row | {"members": unpack_members(row["members"])})


def to_stored_tables(table: pa.Table) -> Iterator[pa.Table]:
    """A table of `UNIT_SCHEMA` as tables of `STORED_UNIT_SCHEMA`, some units at a time."""
    for start in range(0, table.num_rows, _BATCH):
        part = table.slice(start, _BATCH)
        columns: tuple[list, ...] = ([], [], [], [])
        ends = [0]
        for packed in part["members"].to_pylist():
            for column, values in zip(columns, unpack_member_columns(packed), strict=True):
                column.extend(values)  # type: ignore[arg-type]
            ends.append(len(columns[1]))
        arrays = [pa.array(c, f.type) for c, f in zip(columns, _MEMBER, strict=True)]
        members = pa.StructArray.from_arrays(arrays, fields=list(_MEMBER))
        nested = pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), members)
        at = UNIT_SCHEMA.get_field_index("members")
        yield part.set_column(
            at, STORED_UNIT_SCHEMA.field("members"), nested.cast(STORED_UNIT_SCHEMA.field(at).type)
        )


def from_stored_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Inverse of `to_stored_tables` for one batch; its columns must be those of `STORED_UNIT_SCHEMA`."""
    nested = batch["members"]
    ends = nested.offsets.to_pylist()
    columns = [
        nested.values.field(name).to_pylist() for name in ("image_id", "uri", "etag", "size")
    ]
    packed = [
        _pack([column[a:b] for column in columns]) if b > a else b"" for a, b in pairwise(ends)
    ]
    arrays = [batch[name] for name in UNIT_SCHEMA.names]
    arrays[UNIT_SCHEMA.get_field_index("members")] = pa.array(packed, pa.large_binary())
    return pa.RecordBatch.from_arrays(arrays, schema=UNIT_SCHEMA)
