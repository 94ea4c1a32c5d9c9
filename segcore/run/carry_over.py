"""Results of unchanged images move with them when their unit is cut anew.

Without this, one changed image would have all images of its unit segmented again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from segcore.errors import StorageError
from segcore.output.parts import IMAGES_SCHEMA, PartCounts, Parts
from segcore.planning.plan import Plan, select_units
from segcore.sources.units import Unit

_THREADS = 8


@dataclass(frozen=True)
class _Carrier:
    parts: Parts
    plan: Plan

    def carry(self, unit: Unit) -> str | None:
        """Commit `unit` with the rows of the unit that it was part of; None if that has not all."""
        before = self.plan.carried[unit.unit]
        try:
            images, instances = self.parts.read(before)
        except StorageError:
            return None  # then its images are segmented again
        ids = pa.array([member.image_id for member in unit.members], pa.string())
        images = images.filter(pc.is_in(images["image_id"], ids))
        if images["image_id"].to_pylist() != ids.to_pylist():
            return None
        names = pa.array([unit.unit] * images.num_rows, pa.string())
        at = IMAGES_SCHEMA.get_field_index("unit")
        images = images.set_column(at, IMAGES_SCHEMA.field("unit"), names)
        failed = images.filter(pc.equal(images["status"], "failed"))
        instances = instances.filter(pc.is_in(instances["image_id"], ids))
        counts = PartCounts(
            unit=unit.unit,
            ok=images.num_rows - failed.num_rows,
            failed=failed.num_rows,
            instances=instances.num_rows,
            failures=dict(sorted(Counter(failed["error_code"].to_pylist()).items())),
        )
        self.parts.commit_tables(images, instances, counts)
        return unit.unit


def carry_over(parts: Parts, plan: Plan, committed: AbstractSet[str]) -> set[str]:
    """Commit the units of `plan.carried` whose old unit is committed; returns which.

    To be called before stale units are withdrawn. Dying in between loses nothing: what was not
    carried is segmented again.

    Raises:
        StorageError: A part cannot be written.
    """
    wanted = [
        unit
        for unit, before in plan.carried.items()
        if before in committed and unit not in committed
    ]
    chosen = select_units(plan.units, wanted)
    carrier = _Carrier(parts, plan)
    with ThreadPoolExecutor(_THREADS, "segcore-carry") as pool:
        done: set[str] = set()
        for start in range(0, len(chosen), 64):
            found = pool.map(carrier.carry, chosen[start : start + 64])
            done.update(unit for unit in found if unit is not None)
    return done
