"""Plans: an archive cut into units, and what of it is left to do.

A plan is Arrow columns; `Unit` objects are made when asked for, so that plans of millions of
images stay small.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segcore.errors import SegcoreError, UsageError
from segcore.planning.hash_index import HashIndex, object_digests
from segcore.sources.base import Source
from segcore.sources.units import (
    STORED_UNIT_SCHEMA,
    UNIT_SCHEMA,
    Member,
    Unit,
    UnitLimits,
    from_stored_batch,
    objects_unit,
    to_stored_tables,
    units_from_table,
    units_to_table,
    unpack_member_columns,
)
from segcore.storage.listing import Listing
from segcore.storage.uris import redact

PLAN_VERSION = 1
_BATCH = 512


class Units(Sequence[Unit]):
    """The rows of a table of units, as `Unit` objects made on access."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Unit: ...

    @overload
    def __getitem__(self, index: slice) -> Units: ...

    def __getitem__(self, index: int | slice) -> Unit | Units:
        if isinstance(index, slice):
            rows = range(*index.indices(len(self)))
            if rows.step == 1:
                return Units(self.table.slice(rows.start, len(rows)))
            return Units(self.table.take(pa.array(list(rows), pa.int64())))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return next(units_from_table(self.table.slice(index % len(self), 1)))

    def __iter__(self) -> Iterator[Unit]:
        return units_from_table(self.table)

    def ids(self) -> list[str]:
        """The ids alone, without making units."""
        return list(self.table["unit"].to_pylist())


@dataclass(frozen=True)
class Plan:
    """The immutable list of units of one run.

    Attributes:
        run: 16 hex digits of a sha256 over the sorted unit ids: equal plans, equal names.
        input: Canonical URI of the archive.
        units: All units, done or not.
        fingerprint: Options that decided how shards were cut (`Source.fingerprint`).
        stale: Units of the previous plan that are no longer valid; their parts must be
            withdrawn before the run. Not stored.
        carried: Unit -> the stale unit that holds the results of all its images. Not stored.
        notes: Sentences for people about what was left out. Not stored.
    """

    run: str
    input: str
    units: Units = field(repr=False)
    fingerprint: str = ""
    stale: Units = field(default_factory=lambda: Units(UNIT_SCHEMA.empty_table()), repr=False)
    carried: dict[str, str] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlanSummary:
    """Counts of a plan. `*_images` are None where a unit tells only when read (a tar)."""

    units: int
    images: int | None
    bytes: int
    done_units: int
    done_images: int | None
    done_bytes: int
    todo_units: int
    todo_images: int | None
    todo_bytes: int


def make_plan(source: Source, limits: UnitLimits, previous: Plan | None = None) -> Plan:
    """Cut an archive into units, keeping the units of `previous` whose content is unchanged.

    A unit of loose images is kept when each of its images is still there with the same etag and
    size; the units of a shard when the shard has the same etag. Where only some loose images of a
    unit are unchanged, those become a unit of their own whose results can be `carried` over. All
    other images get new units, and the previous units that were not kept are `stale`.

    Raises:
        UsageError: `previous` is the plan of another input.
        SegcoreError: The archive cannot be listed or read; see `Source`.
    """
    entries = source.entries()
    carried: dict[str, str] = {}
    if previous is None:
        table = units_to_table(source.cut(entries, limits))
        stale = UNIT_SCHEMA.empty_table()
    else:
        if redact(previous.input) != redact(source.input):
            raise UsageError(
                f"The output holds results of {redact(previous.input)}, not of "
                f"{redact(source.input)}.",
                "Use another output folder.",
            )
        old = previous.units.table
        thinned = UNIT_SCHEMA.empty_table()
        if isinstance(entries, Listing):
            keep, thinned, rest = _reusable_objects(entries, old, carried)
        else:
            keep, rest = _reusable_shards(source, entries, previous)
        del entries
        fresh = units_to_table(source.cut(rest, limits))
        table = pa.concat_tables([old.filter(keep), thinned, fresh])
        stale = old.filter(pc.invert(pc.is_in(old["unit"], table["unit"])))
    return Plan(
        run=_run_name(table),
        input=source.input,
        units=Units(table),
        fingerprint=source.fingerprint,
        stale=Units(stale),
        carried=carried,
        notes=tuple(source.notes),
    )


def _run_name(table: pa.Table) -> str:
    text = "\n".join(sorted(table["unit"].to_pylist()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _reusable_shards(
    source: Source, entries: pa.Table, previous: Plan
) -> tuple[pa.Array, pa.Table]:
    """(mask of previous units to keep, shards that no kept unit covers)."""
    old = previous.units.table.combine_chunks()
    if previous.fingerprint != source.fingerprint:
        return pa.array(np.zeros(old.num_rows, bool)), entries
    row = pc.index_in(old["shard"], entries["uri"])
    same = pc.equal(entries["etag"].take(row).cast(old["etag"].type), old["etag"])
    keep = pc.and_(pc.equal(old["kind"], source.unit_kind), pc.fill_null(same, False))
    covered = old.filter(keep)["shard"]
    return keep, entries.filter(pc.invert(pc.is_in(entries["uri"], covered)))


def _reusable_objects(
    entries: Listing, old: pa.Table, carried: dict[str, str]
) -> tuple[pa.Array, pa.Table, Listing]:
    """(mask of previous units to keep, units of what is left of others, images in neither).

    Looks names up by 128-bit hashes, 20 bytes an image, instead of holding both lists of names.
    Notes in `carried` which previous unit each thinned one comes from.
    """
    now = HashIndex(_hashes_of_entries(entries), entries.num_rows)
    covered = np.zeros(entries.num_rows + 1, bool)  # the last is the place of what is not there
    keep = np.zeros(old.num_rows, bool)

    def thin() -> Iterator[Unit]:
        rows = enumerate(_packed_objects(old))
        for at, (name, packed) in ((at, row) for at, row in rows if row is not None):
            _, uris, etags, sizes = unpack_member_columns(packed)
            places = now.find(object_digests(uris, sizes, etags))
            same = (places >= 0) & ~covered[places]
            covered[places[same]] = True
            if same.all():
                keep[at] = True
            elif same.any():
                members = [
                    Member(uris[i], uris[i], etags[i], sizes[i]) for i in np.flatnonzero(same)
                ]
                unit = objects_unit(members)
                carried[unit.unit] = name
                yield unit

    thinned = units_to_table(thin())
    return pa.array(keep), thinned, entries.take_where(~covered[:-1])


def _packed_objects(table: pa.Table) -> Iterator[tuple[str, bytes] | None]:
    """(id, packed members) of each unit; None for a unit of a shard."""
    for batch in table.select(["unit", "kind", "members"]).to_batches(_BATCH):
        for unit, kind, packed in zip(*(column.to_pylist() for column in batch), strict=True):
            yield (unit, packed) if kind == "objects" else None


def _hashes_of_entries(entries: Listing) -> Iterator[bytes]:
    for batch in entries.to_batches():
        uris, sizes, etags = (batch[name].to_pylist() for name in ("uri", "size", "etag"))
        yield object_digests(uris, sizes, etags)


def remaining_units(plan: Plan, committed: AbstractSet[str]) -> Units:
    """The units that have no part yet."""
    table = plan.units.table
    if not committed:
        return plan.units
    done = pc.is_in(table["unit"], pa.array(sorted(committed), table["unit"].type))
    return Units(table.filter(pc.invert(done)))


def select_units(units: Units, ids: Iterable[str]) -> Units:
    """Those of `units` with one of these ids, in their order."""
    names = pa.array(sorted(ids), UNIT_SCHEMA.field("unit").type)
    return Units(units.table.filter(pc.is_in(units.table["unit"], names)))


def summarize_plan(plan: Plan, committed: AbstractSet[str]) -> PlanSummary:
    """What there is, what is done, what is to do."""
    todo = remaining_units(plan, committed)
    units, images, size = _count(plan.units)
    todo_units, todo_images, todo_size = _count(todo)
    both = images is not None and todo_images is not None
    done_images = images - todo_images if both else None  # type: ignore[operator]
    return PlanSummary(
        units=units,
        images=images,
        bytes=size,
        done_units=units - todo_units,
        done_images=done_images,
        done_bytes=size - todo_size,
        todo_units=todo_units,
        todo_images=todo_images,
        todo_bytes=todo_size,
    )


def _count(units: Units) -> tuple[int, int | None, int]:
    images, size = units.table["n_images"], units.table["n_bytes"]
    known = int(pc.sum(images).as_py() or 0) if images.null_count == 0 else None
    return len(units), known, int(pc.sum(size).as_py() or 0)


def encode_plan(plan: Plan) -> bytes:
    """The plan as a Parquet file; equal plans give equal bytes."""
    metadata = {
        "segcore.plan": str(PLAN_VERSION),
        "segcore.run": plan.run,
        "segcore.input": redact(plan.input),
        "segcore.fingerprint": plan.fingerprint,
    }
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink,
        STORED_UNIT_SCHEMA.with_metadata(metadata),
        compression="zstd",
        compression_level=3,
        use_dictionary=["kind", "shard", "etag", "reader"],
        column_encoding={"members.list.element.uri": "DELTA_BYTE_ARRAY"},
    ) as writer:
        for part in to_stored_tables(plan.units.table):
            writer.write_table(part.replace_schema_metadata(metadata))
    return sink.getvalue()


def decode_plan(data: bytes, name: str = "the plan") -> Plan:
    """Inverse of `encode_plan`.

    Args:
        data: The file.
        name: Where it came from, for messages.

    Raises:
        SegcoreError: Not a plan, damaged, or of another version.
    """
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        stored = {k.decode(): v.decode() for k, v in (file.schema_arrow.metadata or {}).items()}
        if stored.get("segcore.plan") != str(PLAN_VERSION):
            found = stored.get("segcore.plan", "none")
            raise SegcoreError(f"{name} is no plan of version {PLAN_VERSION} (found: {found}).")
        if not file.schema_arrow.equals(STORED_UNIT_SCHEMA):
            raise SegcoreError(f"{name} has other columns than a plan.")
        batches = [
            from_stored_batch(batch) for batch in file.iter_batches(_BATCH, use_threads=False)
        ]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SegcoreError(f"{name} cannot be read: {error}") from error
    table = pa.Table.from_batches(batches, UNIT_SCHEMA)
    if _run_name(table) != stored["segcore.run"]:
        raise SegcoreError(f"{name} is damaged: its units do not match its name.")
    return Plan(stored["segcore.run"], stored["segcore.input"], Units(table),
                stored["segcore.fingerprint"])  # fmt: skip
