"""Which parts there are, compared with the plan, the list of unlisted images, and each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import pyarrow as pa

from segcore.errors import SegcoreError, StorageError
from segcore.inspection.problems import Problem, Verification
from segcore.inspection.stored_plan import StoredPlan
from segcore.output.compacted_rows import CompactedParts
from segcore.output.compaction import NOTHING_COMPACTED, CompactedUnits, CoveredUnit
from segcore.output.layout import EditionLayout, PartName, Table, part_of_file
from segcore.output.parts import merge_generations
from segcore.output.registered import pinned_files
from segcore.output.run_records import RunRecord
from segcore.output.unlisted import read_unlisted
from segcore.storage import Storage
from segcore.storage.uris import parent


@dataclass(frozen=True)
class PartListing:
    """The parts of an edition; of each file that is as it should be, nothing but its unit is kept.

    Attributes:
        generations: Each committed unit -> the newest generation of its part.
        older: Files of `images` of which there is a newer generation.
        without_instances: Committed units whose newest generation lacks its second file.
        orphans: Files of `instances` that none of `images` belongs to.
        compacted: What compacted files hold; of equal generations, they are read. Parts that they
            cover are deleted after a while and are in none of the sets above.
        reader: Reads these.
        unlisted: Unit -> its images that the listing of the newest run lacked.
    """

    generations: dict[str, int]
    older: frozenset[PartName] = frozenset()
    without_instances: frozenset[str] = frozenset()
    orphans: frozenset[PartName] = frozenset()
    unlisted: dict[str, list[str]] = field(default_factory=dict)
    compacted: CompactedUnits = NOTHING_COMPACTED
    reader: CompactedParts | None = None

    def find_compacted(self, unit: str) -> CoveredUnit | None:
        """A committed unit, if it is read from compacted files."""
        return self.compacted.find(unit, self.generations[unit])

    def uri(self, layout: EditionLayout, table: Table, unit: str) -> str:
        """The newest part of a committed unit, or the file it was compacted into."""
        covered = self.find_compacted(unit)
        if covered is not None and self.reader is not None:
            return self.reader.uri(table, covered)
        return layout.part(table, unit, self.generations[unit])


def list_parts(
    storage: Storage, layout: EditionLayout, record: RunRecord | None, result: Verification
) -> PartListing:
    """List all parts; other files beside them are problems."""
    generations: dict[str, int] = {}
    older: set[PartName] = set()
    for name in _list_table(storage, layout, "images", result):
        known = generations.get(name.unit)
        if known is None or known < name.generation:
            generations[name.unit] = name.generation
        if known is not None:
            older.add(PartName(name.unit, min(known, name.generation)))
    without_instances = set(generations)
    orphans: set[PartName] = set()
    for name in _list_table(storage, layout, "instances", result):
        if generations.get(name.unit) == name.generation:
            without_instances.discard(name.unit)
        elif name not in older:
            orphans.add(name)
    rows = _read_unlisted(storage, layout, record, result)
    unlisted: dict[str, list[str]] = {}
    if rows is not None:
        ids, units = rows["image_id"].to_pylist(), rows["unit"].to_pylist()
        for image_id, unit in zip(ids, units, strict=True):
            unlisted.setdefault(unit, []).append(image_id)
        result.images_unlisted = rows.num_rows
    reader = CompactedParts(storage, layout)
    compacted = _read_compacted(reader, result)
    generations = merge_generations(generations, compacted)
    covers = compacted.covers
    return PartListing(
        generations=generations,
        older=frozenset(name for name in older if not covers(*name)),
        without_instances=frozenset(
            unit for unit in without_instances if not covers(unit, generations[unit])
        ),
        orphans=frozenset(name for name in orphans if not covers(*name)),
        unlisted=unlisted,
        compacted=compacted,
        reader=reader,
    )


def without_kept_for_tables(
    storage: Storage,
    layout: EditionLayout,
    plan: StoredPlan | None,
    parts: PartListing,
    result: Verification,
) -> PartListing:
    """The listing without parts that exist only because a table refers to them."""
    try:
        pinned = pinned_files(storage, layout)
    except SegcoreError as error:
        result.add([Problem("bad_registered", layout.registered_folder, error.message)])
        return parts
    if not pinned:
        return parts

    def unpinned(table: Table, names: Iterable[PartName]) -> frozenset[PartName]:
        return frozenset(name for name in names if layout.part(table, *name) not in pinned)

    planned = parts.generations.keys() if plan is None else plan.ids
    generations = {
        unit: number
        for unit, number in parts.generations.items()
        if unit in planned
        or unit in parts.unlisted
        or layout.part("images", unit, number) not in pinned
    }
    return replace(
        parts,
        generations=generations,
        older=unpinned("images", parts.older),
        orphans=unpinned("instances", parts.orphans),
        without_instances=parts.without_instances & generations.keys(),
    )


def _read_compacted(reader: CompactedParts, result: Verification) -> CompactedUnits:
    try:
        return reader.units()
    except StorageError as error:
        uri = reader.layout.compacted_pointer
        result.add([Problem("bad_compaction", uri, error.message)])
        return NOTHING_COMPACTED


def _list_table(
    storage: Storage, layout: EditionLayout, table: Table, result: Verification
) -> Iterator[PartName]:
    folder = layout.parts_folder(table)
    for info in storage.list(folder):
        name = part_of_file(info.uri)
        if name is not None and parent(info.uri) == folder:
            yield name
        else:
            message = f"it is not a part, but lies in {table}/."
            result.add([Problem("alien_file", info.uri, message)])


def _read_unlisted(
    storage: Storage, layout: EditionLayout, record: RunRecord | None, result: Verification
) -> pa.Table | None:
    if record is None:
        return None
    try:
        return read_unlisted(storage, layout, record.run)
    except SegcoreError as error:
        result.add([Problem("wrong_unlisted", layout.unlisted(record.run), error.message)])
        return None


def compare_listings(
    layout: EditionLayout, plan: StoredPlan | None, parts: PartListing, result: Verification
) -> None:
    """The plan against the parts that exist, and these against each other."""

    def add(kind: str, table: Table, names: Iterable[PartName], message: str) -> None:
        uris = (layout.part(table, *name) for name in sorted(names))
        result.add(Problem(kind, uri, message) for uri in uris)

    generations = parts.generations
    if plan is not None:
        message = "its unit is in the plan; run the same `segcore segment` again to make it."
        missing = (unit for unit in plan.ids if unit not in generations)
        add("missing_part", "images", map(PartName, missing), message)
        message = "its unit is neither in the plan nor are its images listed as unlisted."
        foreign = (
            PartName(unit, generation)
            for unit, generation in generations.items()
            if unit not in plan.ids and unit not in parts.unlisted
        )
        add("unplanned_part", "images", foreign, message)
    message = "it is to hold unlisted images, but does not exist."
    gone = parts.unlisted.keys() - generations.keys()
    add("wrong_unlisted", "images", map(PartName, gone), message)
    message = "its unit is committed without it."
    lacking = (PartName(unit, generations[unit]) for unit in parts.without_instances)
    add("missing_instances", "instances", lacking, message)
    message = "a newer generation exists: left by a job that died, or by one in progress."
    add("older_part", "images", parts.older, message)
    message = "its unit is not committed: left by a job that died, or by one in progress."
    add("orphan_part", "instances", parts.orphans, message)
