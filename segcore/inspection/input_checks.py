"""Whether today's readers find more in the input than the parts of an output hold.

Only tar shards whose parts were written by an older reader are looked at, and of these the headers
of their members.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow.compute as pc

from segcore.errors import ObjectChanged, ObjectNotFound
from segcore.inspection.part_listings import PartListing
from segcore.inspection.problems import Problem
from segcore.output.layout import EditionLayout
from segcore.output.part_counts import PartCounts, reader_of_metadata
from segcore.output.parts import read_part_metadata
from segcore.output.rereads import mark_for_reread
from segcore.planning.plan import Plan, Units
from segcore.sources.tar import count_tar_images
from segcore.sources.tar_members import READER_VERSION
from segcore.sources.units import Unit
from segcore.storage import Storage
from segcore.text import plural


def find_unread_images(
    storage: Storage, layout: EditionLayout, plan: Plan, parts: PartListing, threads: int
) -> Iterator[Problem]:
    """Units whose shards hold more images than their parts; marks them for the next run.

    Raises:
        StorageError: A shard cannot be read, or a mark not be written.
    """

    def check(unit: Unit) -> Problem | None:
        uri = layout.part("images", unit.unit, parts.generations[unit.unit])
        try:
            metadata = read_part_metadata(storage, uri)
            n_rows = PartCounts.from_metadata(metadata).images
        except (KeyError, ValueError):
            return None  # unreadable: a problem of its own
        if reader_of_metadata(metadata) >= READER_VERSION:
            return None
        try:
            n_images = count_tar_images(unit, storage)
        except (ObjectNotFound, ObjectChanged):
            return None  # the next run plans it anew
        if n_images <= n_rows:
            return None
        mark_for_reread(storage, layout, unit.unit, unit.shard)
        message = (
            f"{unit.shard} holds {plural(n_images - n_rows, 'image')} more than were read from it; "
            "run the same `segcore segment` again to have this shard done again."
        )
        return Problem("unread_images", uri, message)

    table = plan.units.table
    tar_units = Units(table.filter(pc.equal(table["kind"], "tar")))
    units = (unit for unit in tar_units if unit.unit in parts.generations)
    with ThreadPoolExecutor(threads, "segcore-input") as pool:
        yield from (problem for problem in pool.map(check, units) if problem is not None)
