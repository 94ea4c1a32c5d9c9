"""Which parts there are, compared with the plan, the list of unlisted images, and each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa

from segcore.errors import SegcoreError, StorageError
from segcore.inspection.problems import Problem, Verification
from segcore.output.compacted_rows import CompactedParts
from segcore.output.compaction import NOTHING_COMPACTED, CompactedUnits, CoveredUnit
from segcore.output.layout import EditionLayout, PartName, Table, part_of_file
from segcore.output.parts import merge_generations, newest_generations
from segcore.output.run_records import RunRecord
from segcore.output.unlisted import read_unlisted
from segcore.planning.plan import Plan
from segcore.storage import Storage
from segcore.storage.uris import parent


@dataclass(frozen=True)
class PartListing:
    """The parts of an edition.

    Attributes:
        images, instances: All files of both tables that are parts.
        generations: Each committed unit -> the newest generation of its part.
        compacted: What compacted files hold; of equal generations, they are read.
        reader: Reads these.
        unlisted: Unit -> its images that the listing of the newest run lacked.
    """

    images: frozenset[PartName]
    instances: frozenset[PartName]
    generations: dict[str, int]
    unlisted: dict[str, list[str]] = field(default_factory=dict)
    compacted: CompactedUnits = NOTHING_COMPACTED
    reader: CompactedParts | None = None

    def find_compacted(self, unit: str) -> CoveredUnit | None:
        """A committed unit, if it is read from compacted files."""
        return self.compacted.find(unit, self.generations[unit])

    def has_instances(self, unit: str) -> bool:
        """Whether a committed unit has both files."""
        return PartName(unit, self.generations[unit]) in self.instances


def list_parts(
    storage: Storage, layout: EditionLayout, record: RunRecord | None, result: Verification
) -> PartListing:
    """List all parts; other files beside them are problems."""
    images = _list_table(storage, layout, "images", result)
    instances = _list_table(storage, layout, "instances", result)
    rows = _read_unlisted(storage, layout, record, result)
    unlisted: dict[str, list[str]] = {}
    if rows is not None:
        ids, units = rows["image_id"].to_pylist(), rows["unit"].to_pylist()
        for image_id, unit in zip(ids, units, strict=True):
            unlisted.setdefault(unit, []).append(image_id)
        result.images_unlisted = rows.num_rows
    reader = CompactedParts(storage, layout)
    try:
        compacted = reader.units()
    except StorageError as error:
        result.add([Problem("bad_compaction", layout.compacted_pointer, error.message)])
        compacted = NOTHING_COMPACTED
    generations = merge_generations(newest_generations(images), compacted)
    return PartListing(images, instances, generations, unlisted, compacted, reader)


def _list_table(
    storage: Storage, layout: EditionLayout, table: Table, result: Verification
) -> frozenset[PartName]:
    names: set[PartName] = set()
    folder = layout.parts_folder(table)
    for info in storage.list(folder):
        name = part_of_file(info.uri)
        if name is not None and parent(info.uri) == folder:
            names.add(name)
        else:
            message = f"it is not a part, but lies in {table}/."
            result.add([Problem("alien_file", info.uri, message)])
    return frozenset(names)


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
    layout: EditionLayout, plan: Plan | None, parts: PartListing, result: Verification
) -> None:
    """The plan against the parts that exist, and these against each other."""

    def add(kind: str, table: Table, names: Iterable[PartName], message: str) -> None:
        uris = (layout.part(table, *name) for name in sorted(names))
        result.add(Problem(kind, uri, message) for uri in uris)

    committed = parts.generations.keys()
    covers = parts.compacted.covers
    newest = {PartName(unit, generation) for unit, generation in parts.generations.items()}
    own_files = {name for name in newest if not covers(*name)}
    if plan is not None:
        planned = set(plan.units.ids())
        message = "its unit is in the plan; run the same `segcore segment` again to make it."
        add("missing_part", "images", map(PartName, planned - committed), message)
        message = "its unit is neither in the plan nor are its images listed as unlisted."
        known = planned | parts.unlisted.keys()
        foreign = (name for name in newest if name.unit not in known)
        add("unplanned_part", "images", foreign, message)
    message = "it is to hold unlisted images, but does not exist."
    add("wrong_unlisted", "images", map(PartName, parts.unlisted.keys() - committed), message)
    message = "its unit is committed without it."
    add("missing_instances", "instances", own_files - parts.instances, message)
    message = "a newer generation exists: left by a job that died, or by one in progress."
    # Those that compacted files hold as well are deleted after a while: see `segcore compact`.
    older = {name for name in parts.images - newest if not covers(*name)}
    add("older_part", "images", older, message)
    message = "its unit is not committed: left by a job that died, or by one in progress."
    orphans = {name for name in parts.instances - parts.images if not covers(*name)}
    add("orphan_part", "instances", orphans, message)
