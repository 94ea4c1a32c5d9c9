"""What becomes of the parts of earlier plans once all units of the new plan are committed.

Their images are in new parts, or today's listing lacks them. The former's rows go; the latter's
stay, and ``unlisted/<run>.parquet`` lists them. An old part that holds both is cut: the rows that
stay become a part of their own before it is deleted. So no image that had a result loses it, and
none is in two parts. Dying at any point loses nothing: the next run finds what is left, and does
the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from segcore.errors import ObjectNotFound, StorageError
from segcore.output.committed import CommittedParts
from segcore.output.parts import Parts
from segcore.output.run_records import RunRecord, read_planned_ids
from segcore.output.unlisted import (
    UNLISTED_SCHEMA,
    read_unlisted,
    runs_with_unlisted,
    write_unlisted,
)
from segcore.planning.plan import Plan
from segcore.run.carry_over import commit_rows_of
from segcore.sources import file_image_id
from segcore.sources.packed_members import unpack_members
from segcore.sources.units import Member, Unit, make_objects_unit, make_unit

_THREADS = 16
_BATCH_UNITS = 512
_NO_ROWS = UNLISTED_SCHEMA.empty_table()


@dataclass(frozen=True)
class Settlement:
    """What was done with the parts of earlier plans.

    Attributes:
        images_unlisted: Images whose results are kept though the listing lacks them.
        units_unlisted: The units that hold these.
        units_deleted: Units that are gone: their images are in new parts, or were to be removed.
        images_removed: Unlisted images whose results were removed, on request.
    """

    images_unlisted: int = 0
    units_unlisted: int = 0
    units_deleted: int = 0
    images_removed: int = 0


@dataclass(frozen=True)
class LastUnlisted:
    """The unlisted images of the last run that came so far as to list them.

    Attributes:
        rows: See `segcore.output.unlisted.UNLISTED_SCHEMA`.
        planned: The units of that run, which hold none of these images.
    """

    rows: pa.Table
    planned: frozenset[str]


def read_last_unlisted(parts: Parts, records: Iterable[RunRecord]) -> LastUnlisted | None:
    """What earlier runs left unlisted; None when there is no such list.

    Args:
        records: Of all runs, oldest first.

    Raises:
        StorageError: The list or its plan is damaged.
    """
    storage, layout = parts.storage, parts.layout
    runs = runs_with_unlisted(storage, layout)
    for run in [record.run for record in records if record.run in runs][-1:]:
        rows = read_unlisted(storage, layout, run)
        if rows is None:
            break
        try:
            planned = frozenset(read_planned_ids(storage, layout, run))
        except ObjectNotFound:
            planned = frozenset()  # then these images are looked for in all units
        return LastUnlisted(rows, planned)
    return None


def settle(
    parts: Parts,
    plan: Plan,
    last: LastUnlisted | None,
    sequences: Mapping[str, int],
    committed: CommittedParts,
    *,
    remove_unlisted: bool = False,
    check_lease: Callable[[], None] = lambda: None,
) -> Settlement:
    """Keep what the listing lacks and delete what is in new parts.

    Args:
        parts: Of the run; every unit of `plan` must be committed.
        last: See `read_last_unlisted`.
        sequences: Run -> its place in the order of the runs of the edition.
        committed: All parts that exist now.
        remove_unlisted: Delete the results of images that the listing lacks, too.
        check_lease: Raises once this run may delete nothing more.

    Raises:
        StorageError: A part of an earlier plan cannot be read, or a part not be written.
    """
    generations = committed.generations()
    parts = parts.as_listed(generations)
    planned = set(plan.units.ids())
    known, other = _read_old_rows(parts, generations.keys() - planned, last, sequences)
    listed = _find_listed(parts, plan.units.table, other)
    if last is not None and known.num_rows:
        new_units = _without(plan.units.table, last.planned)
        listed |= _find_listed(parts, new_units, known)
    kept = _select_kept(pa.concat_tables([other, known]), listed)
    n_unlisted = kept.num_rows
    if remove_unlisted:
        kept = _NO_ROWS
    check_lease()
    kept = _cut_parts(parts, kept, pa.concat_tables([other, known]), generations)
    write_unlisted(parts.storage, parts.layout, plan.run, kept)
    kept_units = planned | set(kept["unit"].to_pylist())
    check_lease()
    return Settlement(
        images_unlisted=kept.num_rows,
        units_unlisted=len(kept_units - planned),
        units_deleted=parts.delete_all_but(
            {unit: generations.get(unit, 0) for unit in kept_units}, committed
        ),
        images_removed=n_unlisted if remove_unlisted else 0,
    )


def _read_old_rows(
    parts: Parts, units: set[str], last: LastUnlisted | None, sequences: Mapping[str, int]
) -> tuple[pa.Table, pa.Table]:
    """The rows of units that are not in the plan: those that `last` lists, and all others.

    The others are read from their parts, and are in the order of the runs that wrote them, newest
    first: an image may be in several if runs broke off.
    """
    known = _NO_ROWS
    if last is not None:
        known = last.rows.filter(pc.is_in(last.rows["unit"], pa.array(sorted(units), pa.string())))
    unread = sorted(units - set(known["unit"].to_pylist()))

    def read(unit: str) -> tuple[int, pa.Table]:
        rows, run = parts.read_image_columns(unit, UNLISTED_SCHEMA.names)
        return sequences.get(run, 0), rows.cast(UNLISTED_SCHEMA)

    with ThreadPoolExecutor(_THREADS, "segcore-settle") as pool:
        dated_rows = sorted(pool.map(read, unread), key=lambda dated: -dated[0])
    return known, pa.concat_tables([_NO_ROWS, *(rows for _, rows in dated_rows)])


def _find_listed(parts: Parts, units: pa.Table, rows: pa.Table) -> set[str]:
    """The ids of those images in `rows` that are in one of these committed units.

    An image of a shard is looked for only in units of the same shard.
    """
    ids = set(_keys(rows))
    found: set[str] = set()
    if not ids:
        return found
    is_loose = pc.equal(units["kind"], "objects")
    for batch in units.filter(is_loose).select(["members"]).to_batches(_BATCH_UNITS):
        for packed in batch["members"].to_pylist():
            found |= ids.intersection(unpack_members(packed).uris.to_pylist())
    shards = pc.unique(rows["shard"]).cast(units["shard"].type)
    is_candidate = pc.and_not(pc.is_in(units["shard"], shards), is_loose)

    def read(unit: str) -> set[str]:
        table, _ = parts.read_image_columns(unit, ["image_id", "page"])
        return ids.intersection(_file_ids(table))

    with ThreadPoolExecutor(_THREADS, "segcore-settle") as pool:
        found.update(*pool.map(read, units.filter(is_candidate)["unit"].to_pylist()))
    return found


def _keys(rows: pa.Table) -> list[str]:
    """What says whether an image is listed: of a page, its file.

    A file that has fewer pages than before has lost them, not left them behind.
    """
    is_loose = pc.equal(rows["shard"], "").to_pylist()
    uris = rows["uri"].to_pylist()
    file_ids = _file_ids(rows)
    return [
        uri if loose else file_id
        for loose, uri, file_id in zip(is_loose, uris, file_ids, strict=True)
    ]


def _file_ids(rows: pa.Table) -> list[str]:
    """The image ids of the files of rows with the columns image_id and page."""
    return list(map(file_image_id, rows["image_id"].to_pylist(), rows["page"].to_pylist()))


def _without(units: pa.Table, ids: frozenset[str]) -> pa.Table:
    return units.filter(pc.invert(pc.is_in(units["unit"], pa.array(sorted(ids), pa.string()))))


def _select_kept(rows: pa.Table, listed: set[str]) -> pa.Table:
    """The rows of each image that is not listed, from the first unit that has it."""
    units: dict[str, str] = {}  # the unit that has an image first has all its pages
    is_kept = [
        key not in listed and units.setdefault(key, unit) == unit
        for key, unit in zip(_keys(rows), rows["unit"].to_pylist(), strict=True)
    ]
    return rows.filter(pa.array(is_kept, pa.bool_()))


def _cut_parts(
    parts: Parts, kept: pa.Table, rows: pa.Table, generations: dict[str, int]
) -> pa.Table:
    """Give kept rows parts of their own where their parts hold other rows, too.

    Returns:
        `kept` with the units in which its images are now.
    """
    n_rows = _count_by_unit(rows)
    partial = [unit for unit, number in _count_by_unit(kept).items() if number < n_rows[unit]]
    is_partial = pc.is_in(kept["unit"], pa.array(partial, pa.string()))

    def cut(unit: str) -> pa.Table:
        unit_rows = kept.filter(pc.equal(kept["unit"], unit))
        new_unit = _unit_of_rows(unit_rows)
        if new_unit.unit not in generations:  # else a run that died has cut it before
            image_ids = unit_rows["image_id"].combine_chunks()
            if not commit_rows_of(parts, unit, new_unit.unit, image_ids):
                raise StorageError(
                    f"{parts.layout.part('images', unit)} changed while its rows were moved, or "
                    "holds an image twice; nothing of it was deleted.",
                    "Rerun the same command; if that does not help, see `segcore verify`.",
                )
        position = UNLISTED_SCHEMA.get_field_index("unit")
        names = pa.array([new_unit.unit] * unit_rows.num_rows, pa.string())
        return unit_rows.set_column(position, UNLISTED_SCHEMA.field("unit"), names)

    with ThreadPoolExecutor(_THREADS, "segcore-settle") as pool:
        cut_tables = list(pool.map(cut, partial))
    return pa.concat_tables([kept.filter(pc.invert(is_partial)), *cut_tables])


def _count_by_unit(rows: pa.Table) -> dict[str, int]:
    counts = pc.value_counts(rows["unit"].combine_chunks())
    return {row["values"]: row["counts"] for row in counts.to_pylist()}


def _unit_of_rows(rows: pa.Table) -> Unit:
    """A unit for images of one earlier unit; of loose images the one that they would be today.

    So they are found again when they are listed again, see `reuse_returned`.
    """
    shard = rows["shard"][0].as_py()
    etags = rows["etag"].to_pylist()
    if not shard:
        versions = dict(zip(rows["uri"].to_pylist(), etags, strict=True))
        return make_objects_unit([Member(uri, uri, etag, -1) for uri, etag in versions.items()])
    names = rows["image_id"].to_pylist()
    members = [Member(name, shard, etag, -1) for name, etag in zip(names, etags, strict=True)]
    return make_unit("unlisted", shard=shard, stop=len(names), n_images=len(names), n_bytes=0,
                     members=members)  # fmt: skip
