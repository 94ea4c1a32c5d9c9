"""Results of unchanged images move with them when their unit is cut anew.

Without this, one changed image would have all images of its unit segmented again.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from segcore.errors import StorageError
from segcore.output.part_counts import PartCounts
from segcore.output.parts import Parts
from segcore.output.schema import IMAGES_SCHEMA
from segcore.planning.plan import Plan, select_units
from segcore.sources import file_image_id
from segcore.sources.units import Unit

_THREADS = 8
_UNITS_AT_ONCE = 64


def carry_over(
    parts: Parts,
    plan: Plan,
    committed: AbstractSet[str],
    remember: Callable[[PartCounts], None] = lambda counts: None,
) -> set[str]:
    """Commit the units of `plan.carried` whose old unit is committed; returns which.

    To be called before stale units are deleted. Dying in between loses nothing: what was not
    carried over is segmented again.

    Args:
        remember: Takes the counts of each unit that it commits.

    Raises:
        StorageError: A part cannot be written.
    """
    unit_ids = [
        unit
        for unit, old_unit in plan.carried.items()
        if old_unit in committed and unit not in committed
    ]
    units = select_units(plan.units, unit_ids)
    carrier = _Carrier(parts, plan)
    carried: set[str] = set()
    with ThreadPoolExecutor(_THREADS, "segcore-carry") as pool:
        for start in range(0, len(units), _UNITS_AT_ONCE):
            outcomes = pool.map(carrier.carry, units[start : start + _UNITS_AT_ONCE])
            for counts in filter(None, outcomes):
                carried.add(counts.unit)
                remember(counts)
    return carried


@dataclass(frozen=True)
class _Carrier:
    parts: Parts
    plan: Plan

    def carry(self, unit: Unit) -> PartCounts | None:
        """Commit `unit` with the rows of the unit that it was part of.

        Returns:
            Its counts; None, and nothing is committed, when that old unit lacks some of its images.
        """
        old_unit = self.plan.carried[unit.unit]
        try:
            images, instances = self.parts.read_tables(old_unit)
        except StorageError:
            return None  # then its images are segmented again
        wanted_files = [member.image_id for member in unit.members]
        files = pa.array(
            map(file_image_id, images["image_id"].to_pylist(), images["page"].to_pylist()),
            pa.string(),
        )
        is_wanted = pc.is_in(files, pa.array(wanted_files, pa.string()))
        if list(dict.fromkeys(files.filter(is_wanted).to_pylist())) != wanted_files:
            return None
        return _commit_rows(self.parts, images.filter(is_wanted), instances, unit.unit)


def commit_rows_of(parts: Parts, old_unit: str, new_unit: str, image_ids: pa.Array) -> bool:
    """Commit some rows of a committed unit as the part of another one.

    Returns:
        Whether the old unit has all these images in this order; if not, nothing is committed.

    Raises:
        StorageError: The old part cannot be read, or the new one not be written.
    """
    images, instances = parts.read_tables(old_unit)
    images = images.filter(pc.is_in(images["image_id"], image_ids))
    if images["image_id"].to_pylist() != image_ids.to_pylist():
        return False
    _commit_rows(parts, images, instances, new_unit)
    return True


def _commit_rows(parts: Parts, images: pa.Table, instances: pa.Table, unit: str) -> PartCounts:
    """Commit rows of another unit, with those of their instances."""
    instances = instances.filter(pc.is_in(instances["image_id"], images["image_id"]))
    images = _with_unit(images, unit)
    return parts.commit_tables(images, instances, PartCounts.of_tables(unit, images, instances))


def _with_unit(images: pa.Table, unit: str) -> pa.Table:
    """The same rows as rows of another unit."""
    column = pa.array([unit] * images.num_rows, pa.string())
    position = IMAGES_SCHEMA.get_field_index("unit")
    return images.set_column(position, IMAGES_SCHEMA.field("unit"), column)
