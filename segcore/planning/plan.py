"""Plans: an archive cut into units, and what remains to be done of it.

A plan is a set of Arrow columns; `Unit` objects are created on access, so plans of millions of
images stay small.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import overload

import pyarrow as pa
import pyarrow.compute as pc

from segcore.errors import UsageError
from segcore.planning.lost import NOTHING_LOST, LostEntries, find_lost_by_shard_entries
from segcore.planning.reuse import ReusedUnits, reuse_objects, reuse_returned, reuse_shards
from segcore.sources.base import Entries, Source
from segcore.sources.unit_tables import UNIT_SCHEMA, units_from_table
from segcore.sources.units import Unit, UnitLimits
from segcore.storage.listing import Listing
from segcore.text import redact

_SMALL_ARCHIVE_UNITS = 16  # into which a small archive is cut at least,
_SMALL_UNIT_IMAGES = 32  # but not into units smaller than a batch


class Units(Sequence[Unit]):
    """The rows of a table of units, as `Unit` objects that are created on access."""

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
        """The ids alone, without creating units."""
        return list(self.table["unit"].to_pylist())


@dataclass(frozen=True)
class Plan:
    """The immutable list of units of one run.

    Attributes:
        run: 16 hex digits of a sha256 over the sorted unit ids: equal plans have equal names.
        input: Canonical URI of the archive.
        units: All units, done or not.
        fingerprint: The options that decided how shards were cut (`Source.fingerprint`).
        carried: New unit -> the unit of the previous plan that has the results of all its images.
            Not stored.
        notes: Sentences for people about entries that were skipped. Not stored.
        lost: What the previous plan had and today's listing lacks. Not stored.
    """

    run: str
    input: str
    units: Units = field(repr=False)
    fingerprint: str = ""
    carried: dict[str, str] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    lost: LostEntries = NOTHING_LOST


@dataclass(frozen=True)
class PlanSummary:
    """Counts of a plan. `*_images` are None if some unit can be counted only by reading (a tar)."""

    units: int
    images: int | None
    bytes: int
    done_units: int
    done_images: int | None
    done_bytes: int
    todo_units: int
    todo_images: int | None
    todo_bytes: int


def make_plan(
    source: Source,
    limits: UnitLimits,
    previous: Plan | None = None,
    unlisted: pa.Table | None = None,
    cut_anew: AbstractSet[str] = frozenset(),
) -> Plan:
    """Cut an archive into units, keeping the units of `previous` whose content is unchanged.

    A unit of loose images is kept if each of its images is still there with the same etag and size;
    the units of a shard are kept if the shard has the same etag. If only some loose images of a
    unit are unchanged, those become a unit of their own whose results can be `carried` over. All
    other images get new units.

    Args:
        unlisted: Images that are not in `previous` and have results nevertheless, see
            `reuse_returned`.
        cut_anew: Shards whose units are not kept, because they hold more than these say.

    Raises:
        UsageError: `previous` is the plan of another input.
        SegcoreError: The archive cannot be listed or read; see `Source`.
    """
    entries = source.entries()
    if isinstance(entries, Listing):
        limits = _limits_for(entries.num_rows, limits)
    if previous is None:
        reused = ReusedUnits(UNIT_SCHEMA.empty_table(), entries)
    else:
        if redact(previous.input) != redact(source.input):
            raise UsageError(
                f"The output holds results of {redact(previous.input)}, not of "
                f"{redact(source.input)}.",
                "Use another output folder.",
            )
        reused = _reuse_units(source, previous, entries, cut_anew)
    del entries  # of an incremental plan only a small part is still needed
    if unlisted is not None:
        reused = reuse_returned(reused, unlisted)
    new_units = source.cut_table(reused.remaining_entries, limits)
    table = pa.concat_tables([reused.units, new_units])
    return Plan(
        run=run_name(table),
        input=source.input,
        units=Units(table),
        fingerprint=source.fingerprint,
        carried=reused.carried,
        notes=tuple(source.notes),
        lost=reused.lost,
    )


def _reuse_units(
    source: Source, previous: Plan, entries: Entries, cut_anew: AbstractSet[str]
) -> ReusedUnits:
    units = previous.units.table
    if isinstance(entries, Listing):
        return reuse_objects(units, entries)
    if previous.fingerprint == source.fingerprint:
        reused = reuse_shards(units, entries, source.unit_kind, cut_anew)
    else:
        reused = ReusedUnits(UNIT_SCHEMA.empty_table(), entries)
    return replace(reused, lost=find_lost_by_shard_entries(units, entries))


def _limits_for(n_images: int, limits: UnitLimits) -> UnitLimits:
    """Smaller units for a small archive of loose images, so that all workers get some.

    The number of workers does not matter: an archive is cut in the same way everywhere.
    """
    share = max(-(-n_images // _SMALL_ARCHIVE_UNITS), _SMALL_UNIT_IMAGES)
    return limits.model_copy(update={"images": min(limits.images, share)})


def without_counts(plan: Plan) -> Plan:
    """The plan where reading tells how many images a unit holds, as with pages of TIFFs."""
    table = plan.units.table
    place = table.schema.get_field_index("n_images")
    unknown = pa.nulls(table.num_rows, pa.int64())
    return replace(plan, units=Units(table.set_column(place, table.schema.field(place), unknown)))


def run_name(units: pa.Table) -> str:
    """The name of a run of these units (`Plan.run`)."""
    text = "\n".join(sorted(units["unit"].to_pylist()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def remaining_units(units: Units, committed: AbstractSet[str]) -> Units:
    """Those of `units` that are not committed, in their order."""
    table = units.table
    if not committed:
        return units
    is_committed = pc.is_in(table["unit"], pa.array(list(committed), table["unit"].type))
    return Units(table.filter(pc.invert(is_committed)))


def select_units(units: Units, ids: Iterable[str]) -> Units:
    """Those of `units` that have one of these ids, in their order."""
    sorted_ids = pa.array(sorted(ids), UNIT_SCHEMA.field("unit").type)
    return Units(units.table.filter(pc.is_in(units.table["unit"], sorted_ids)))


def summarize_plan(plan: Plan, committed: AbstractSet[str]) -> PlanSummary:
    """How much there is in total, how much is done, and how much remains."""
    n_units, n_images, n_bytes = _count(plan.units)
    todo_units, todo_images, todo_bytes = _count(remaining_units(plan.units, committed))
    is_counted = n_images is not None and todo_images is not None
    done_images = n_images - todo_images if is_counted else None  # type: ignore[operator]
    return PlanSummary(
        units=n_units,
        images=n_images,
        bytes=n_bytes,
        done_units=n_units - todo_units,
        done_images=done_images,
        done_bytes=n_bytes - todo_bytes,
        todo_units=todo_units,
        todo_images=todo_images,
        todo_bytes=todo_bytes,
    )


def _count(units: Units) -> tuple[int, int | None, int]:
    """(units, images or None if unknown, bytes)."""
    images, sizes = units.table["n_images"], units.table["n_bytes"]
    n_images = int(pc.sum(images).as_py() or 0) if images.null_count == 0 else None
    return len(units), n_images, int(pc.sum(sizes).as_py() or 0)
