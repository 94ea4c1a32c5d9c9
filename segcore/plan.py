"""Plans: an archive cut into units, and what of it is left to do.

A plan is Arrow columns; `Unit` objects are made when asked for, so that plans of millions of
images stay small.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import overload

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segcore.errors import SegcoreError, UsageError
from segcore.sources.base import Source
from segcore.units import SCHEMA, Unit, UnitLimits, from_row, from_table, to_table
from segcore.uris import redact

PLAN_VERSION = 1


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
            rows = list(range(*index.indices(len(self))))
            return Units(self.table.take(pa.array(rows, pa.int64())))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return from_row(self.table.slice(index % len(self), 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Unit]:
        return from_table(self.table)

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
        notes: Sentences for people about what was left out. Not stored.
    """

    run: str
    input: str
    units: Units = field(repr=False)
    fingerprint: str = ""
    stale: Units = field(default_factory=lambda: Units(SCHEMA.empty_table()), repr=False)
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
    size; the units of a shard when the shard has the same etag. All other images get new units,
    and the previous units that were not kept are `stale`.

    Raises:
        UsageError: `previous` is the plan of another input.
        SegcoreError: The archive cannot be listed or read; see `Source`.
    """
    entries = source.entries()
    if previous is None:
        table = to_table(source.cut(entries, limits))
        stale = SCHEMA.empty_table()
    else:
        if redact(previous.input) != redact(source.input):
            raise UsageError(
                f"The output holds results of {redact(previous.input)}, not of "
                f"{redact(source.input)}.",
                "Use another output folder.",
            )
        keep, rest = _reusable(source, entries, previous)
        old = previous.units.table
        table = pa.concat_tables([old.filter(keep), to_table(source.cut(rest, limits))])
        stale = old.filter(pc.invert(pc.is_in(old["unit"], table["unit"])))
    return Plan(
        run=_run_name(table),
        input=source.input,
        units=Units(table),
        fingerprint=source.fingerprint,
        stale=Units(stale),
        notes=tuple(source.notes),
    )


def _run_name(table: pa.Table) -> str:
    text = "\n".join(sorted(table["unit"].to_pylist()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _reusable(source: Source, entries: pa.Table, previous: Plan) -> tuple[pa.Array, pa.Table]:
    """(mask of previous units to keep, entries that no kept unit covers)."""
    old = previous.units.table.combine_chunks()
    same_kind = pc.equal(old["kind"], source.unit_kind)
    if source.unit_kind != "objects":
        same_options = previous.fingerprint == source.fingerprint
        found = _unchanged(old["shard"], old["etag"], None, entries)
        keep = pc.and_(pc.and_(same_kind, found), pa.scalar(same_options))
        covered = old.filter(keep)["shard"]
        return keep, entries.filter(pc.invert(pc.is_in(entries["uri"], covered)))
    members = pc.list_flatten(old["members"])
    unit_of = pc.list_parent_indices(old["members"])
    uris, etags, sizes = (pc.struct_field(members, name) for name in ("uri", "etag", "size"))
    changed_members = pc.invert(_unchanged(uris, etags, sizes, entries))
    changed_units = pc.unique(unit_of.filter(changed_members))
    rows = pa.array(range(old.num_rows), unit_of.type)
    keep = pc.and_(same_kind, pc.invert(pc.is_in(rows, changed_units)))
    covered = pc.struct_field(pc.list_flatten(old.filter(keep)["members"]), "uri")
    return keep, entries.filter(pc.invert(pc.is_in(entries["uri"], covered)))


def _unchanged(
    uris: pa.ChunkedArray, etags: pa.ChunkedArray, sizes: pa.ChunkedArray | None, now: pa.Table
) -> pa.ChunkedArray:
    """Whether each of these objects is among the entries `now`, in the same version."""
    row = pc.index_in(uris, now["uri"])
    etag_now = now["etag"].take(row)
    same = pc.equal(etag_now.cast(etags.type), etags)
    if sizes is not None:
        same = pc.and_(same, pc.equal(now["size"].take(row), sizes))
    return pc.fill_null(same, False)


def remaining(plan: Plan, committed: AbstractSet[str]) -> Units:
    """The units that have no part yet."""
    table = plan.units.table
    done = pc.is_in(table["unit"], pa.array(sorted(committed), table["unit"].type))
    return Units(table.filter(pc.invert(done)))


def summary(plan: Plan, committed: AbstractSet[str]) -> PlanSummary:
    """What there is, what is done, what is to do."""
    todo = remaining(plan, committed)
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


def save(plan: Plan) -> bytes:
    """The plan as a Parquet file; equal plans give equal bytes."""
    metadata = {
        "segcore.plan": str(PLAN_VERSION),
        "segcore.run": plan.run,
        "segcore.input": redact(plan.input),
        "segcore.fingerprint": plan.fingerprint,
    }
    table = plan.units.table.replace_schema_metadata(metadata)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", compression_level=3)
    return sink.getvalue()


def load(data: bytes, name: str = "the plan") -> Plan:
    """Inverse of `save`.

    Args:
        data: The file.
        name: Where it came from, for messages.

    Raises:
        SegcoreError: Not a plan, damaged, or of another version.
    """
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        raise SegcoreError(f"{name} cannot be read: {error}") from error
    stored = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    if stored.get("segcore.plan") != str(PLAN_VERSION):
        found = stored.get("segcore.plan", "none")
        raise SegcoreError(f"{name} is no plan of version {PLAN_VERSION} (found: {found}).")
    try:
        table = table.replace_schema_metadata(None).cast(SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        raise SegcoreError(f"{name} has other columns than a plan: {error}") from error
    if _run_name(table) != stored["segcore.run"]:
        raise SegcoreError(f"{name} is damaged: its units do not match its name.")
    return Plan(stored["segcore.run"], stored["segcore.input"], Units(table),
                stored["segcore.fingerprint"])  # fmt: skip
