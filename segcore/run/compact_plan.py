"""What there is to compact: the units that readers take, and where their rows lie now."""

from __future__ import annotations

from dataclasses import dataclass

from segcore.errors import ObjectNotFound, SegcoreError, UsageError
from segcore.exit_codes import ExitCode
from segcore.output.compacted_rows import CompactedParts
from segcore.output.compaction import (
    CompactedPointer,
    CompactedUnits,
    CoveredUnit,
    SortOrder,
    covered_units,
    read_pointer,
)
from segcore.output.layout import EditionLayout, PartName, Table, part_of_file
from segcore.output.part_counts import PartCounts
from segcore.output.parts import merge_generations, newest_generations
from segcore.output.run_records import read_plan
from segcore.output.unlisted import read_unlisted
from segcore.output.visible import find_visible_units
from segcore.sources.packed_members import unpack_members
from segcore.storage import ObjectInfo, Storage
from segcore.text import plural

_TABLES: tuple[Table, Table] = ("images", "instances")


class NotSettled(SegcoreError):
    """It is not known yet which results of earlier plans stay."""

    exit_code = ExitCode.INCOMPLETE


@dataclass(frozen=True)
class CompactOptions:
    """How to compact.

    Attributes:
        file_bytes: Files end once they are as large as this.
        sort: Order of the rows of ``instances`` in each file.
        grace_s: Seconds for which files that are not needed any more are kept.
        min_pending: Do nothing while fewer units than this have changed.
        lease_ttl_s: Seconds without a heartbeat after which others may take over.
    """

    file_bytes: int = 256 << 20
    sort: SortOrder = "image"
    grace_s: float = 86_400.0
    min_pending: int = 1
    lease_ttl_s: float = 60.0


@dataclass(frozen=True)
class FoundEdition:
    """An edition as it is found: what compacted files cover, and what lies beside them.

    Attributes:
        files: All parts of both tables, by table and name.
        target: The units to cover: those that readers take.
        run: The run whose units they are.
    """

    storage: Storage
    layout: EditionLayout
    pointer: CompactedPointer | None
    compacted: CompactedParts
    units: CompactedUnits
    files: dict[str, dict[PartName, ObjectInfo]]
    target: dict[str, int]
    run: str

    @property
    def added(self) -> set[str]:
        """Units to cover that are not covered, or in an older generation."""
        return {name for name, number in self.target.items() if not self.units.covers(name, number)}

    @property
    def hidden(self) -> set[str]:
        """Units whose rows in compacted files are not read any more."""
        in_files = set(self.units.table["unit"].to_pylist())
        return in_files - {
            name for name in in_files & self.target.keys()
            if self.units.covers(name, self.target[name])
        }  # fmt: skip

    def needs_compaction(self, options: CompactOptions) -> bool:
        """Whether there is enough to do."""
        if not self.target and self.pointer is None:
            return False
        if self.pointer is not None and self.pointer.sort != options.sort:
            return True
        return len(self.added) + len(self.hidden) >= options.min_pending


def look_up(storage: Storage, layout: EditionLayout) -> FoundEdition:
    """Parts first, then what is compacted; the lease must be held to build on it."""
    files: dict[str, dict[PartName, ObjectInfo]] = {"images": {}, "instances": {}}
    for table in _TABLES:
        for info in storage.list(layout.parts_folder(table)):
            if (name := part_of_file(info.uri)) is not None:
                files[table][name] = info
    compacted = CompactedParts(storage, layout)
    units = compacted.units()
    generations = merge_generations(newest_generations(files["images"]), units)
    run, visible = _find_target(storage, layout, generations, units)
    return FoundEdition(
        storage=storage,
        layout=layout,
        pointer=read_pointer(storage, layout),
        compacted=compacted,
        units=units,
        files=files,
        target={unit: generations[unit] for unit in visible},
        run=run,
    )


def _find_target(
    storage: Storage, layout: EditionLayout, generations: dict[str, int], units: CompactedUnits
) -> tuple[str, tuple[str, ...]]:
    """The run, and its units: those that readers take, with the unlisted ones that are kept.

    What is covered is to stay so until a run withdraws it. No image may be in two of the units.

    Raises:
        NotSettled: Units are covered of which that is not known now.
    """
    try:
        visible = find_visible_units(storage, layout, generations.keys(), include_unlisted=True)
    except UsageError:  # no run has found out yet which images are unlisted
        visible = find_visible_units(storage, layout, generations.keys())
    if undecided := units.generations.keys() - set(visible.units):
        raise NotSettled(
            f"{plural(len(undecided), 'compacted unit')} of {layout.prefix} "
            f"{'is' if len(undecided) == 1 else 'are'} not of its newest complete run, and no run "
            "has decided yet whether they stay. Nothing was changed.",
            "Wait for the run to end, or rerun the same `segcore segment` command; then compact.",
        )
    return visible.run, visible.units


def plan_work(found: FoundEdition) -> list[CoveredUnit]:
    """The units to copy in the order of their images."""
    places = _find_places(found)
    work = [
        covered
        for covered in covered_units(found.units.table)
        if covered.unit in found.target
        and found.units.covers(covered.unit, found.target[covered.unit])
    ]
    for unit in found.added:
        generation = found.target[unit]
        name = PartName(unit, generation)
        images, instances = (found.files[table].get(name) for table in ("images", "instances"))
        place, place_number = places.get(unit, (unit, 0))
        work.append(
            CoveredUnit(
                counts=PartCounts(unit, 0, 0, 0),
                generation=generation,
                size=images.size if images else -1,
                etag=images.etag if images else "",
                instances_size=instances.size if instances else -1,
                instances_etag=instances.etag if instances else "",
                run="",
                reader=1,
                file=0,
                images_row=0,
                instances_row=0,
                place=place,
                place_number=place_number,
            )
        )
    return sorted(work, key=lambda unit: (unit.place, unit.place_number, unit.unit))


def _find_places(found: FoundEdition) -> dict[str, tuple[str, int]]:
    """Unit -> (its shard or first image, where it begins in the shard), where that is known."""
    places: dict[str, tuple[str, int]] = {}
    if not found.run:
        return places
    unlisted = read_unlisted(found.storage, found.layout, found.run, ["unit", "shard", "uri"])
    if unlisted is not None:
        for row in unlisted.to_pylist():
            places.setdefault(row["unit"], (row["shard"] or row["uri"], 0))
    try:
        table = read_plan(found.storage, found.layout, found.run).units.table
    except ObjectNotFound:
        return places
    for batch in table.select(["unit", "shard", "start", "members"]).to_batches(512):
        columns = (column.to_pylist() for column in batch)
        for unit, shard, start, members in zip(*columns, strict=True):
            if unit in found.target:
                first = shard
                if not shard:
                    first = next(iter(unpack_members(members).uris.slice(0, 1).to_pylist()), "")
                places[unit] = (first, start or 0)
    return places
