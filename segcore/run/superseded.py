"""Files that compaction has made superfluous, and how long ago.

All ages are differences of two times by the clock of the storage. A file goes once readers could
have taken the compacted rows for a grace period, and once it is that old itself; a reader that
opened it before had that long to finish. A file that a table has registered stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from segcore.errors import ObjectNotFound
from segcore.output.compaction import (
    CompactedPointer,
    CompactedUnits,
    is_generation,
    read_covered,
)
from segcore.output.layout import EditionLayout, Table, part_of_file
from segcore.output.registered import pinned_files
from segcore.storage import ObjectInfo, Storage

_TABLES: tuple[Table, Table] = ("images", "instances")  # so that no unit is without its instances


@dataclass(frozen=True)
class Superseded:
    """Files that no reader needs that begins now.

    Attributes:
        old: Those that may be deleted, in this order.
        young: Those whose grace period is not over.
        pinned: How many a table has registered.
    """

    old: tuple[ObjectInfo, ...] = ()
    young: tuple[ObjectInfo, ...] = ()
    pinned: int = 0


def find_superseded(
    storage: Storage,
    layout: EditionLayout,
    pointer: CompactedPointer | None,
    units: CompactedUnits,
    deadline: float,
) -> Superseded:
    """What to delete, now or later.

    Args:
        units: What the current generation covers.
        deadline: The grace period before now, by the clock of the storage.
    """
    if pointer is None:
        return Superseded()
    compacted = list(storage.list_with_times(layout.compacted_folder))
    finished = {info.uri: changed for info, changed in compacted}
    # When each generation became current: its list of units is the last that is written before.
    began = {
        name: finished.get(layout.compacted(name).units, math.inf)
        for name in (pointer.generation, *pointer.previous)
    }
    pinned = pinned_files(storage, layout)
    was_covered = _covered_at(storage, layout, began, deadline)

    def superfluous_parts() -> Iterator[tuple[ObjectInfo, bool]]:
        for table in _TABLES:
            for info, changed in storage.list_with_times(layout.parts_folder(table)):
                name = part_of_file(info.uri)
                if name is not None and units.covers(*name):
                    is_old = was_covered(*name) and changed <= deadline
                    yield info, is_old

    def superfluous_generations() -> Iterator[tuple[ObjectInfo, bool]]:
        successors = dict(zip(pointer.previous, began, strict=False))  # `began` is newest first
        for info, changed in compacted:
            name = info.uri.removeprefix(f"{layout.compacted_folder}/").partition("/")[0]
            if not is_generation(name) or name >= pointer.generation:
                continue  # current; or begun and not finished: the next compaction goes on there
            replaced = began[successors[name]] if name in successors else changed
            yield info, replaced <= deadline

    files = [*superfluous_parts(), *superfluous_generations()]
    kept = [info for info, _ in files if info.uri in pinned]
    old = [info for info, is_old in files if is_old and info.uri not in pinned]
    young = [info for info, is_old in files if not is_old and info.uri not in pinned]
    return Superseded(tuple(old), tuple(young), len(kept))


def _covered_at(
    storage: Storage, layout: EditionLayout, began: dict[str, float], time: float
) -> Callable[[str, int], bool]:
    """Whether a part was covered at this time already, by any generation that still exists."""
    for name, since in began.items():  # newest first
        if since <= time:
            try:
                files = layout.compacted(name)
                return CompactedUnits(files, table=read_covered(storage, files.units)).covers
            except ObjectNotFound:
                continue
    return lambda unit, generation: False
