"""Whether today's readers find more in the input than the parts of an output hold.

Only tar shards whose parts were written by an older reader are looked at, and of these the headers
of their members.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from segcore.errors import ObjectChanged, ObjectNotFound
from segcore.inspection.part_listings import PartListing
from segcore.inspection.problems import Problem
from segcore.inspection.stored_plan import StoredPlan
from segcore.output.layout import EditionLayout
from segcore.output.part_counts import PartCounts, reader_of_metadata
from segcore.output.parts import read_part_metadata
from segcore.output.rereads import mark_for_reread
from segcore.sources.tar import count_tar_images
from segcore.sources.tar_members import READER_VERSION
from segcore.sources.units import Unit
from segcore.storage import Storage
from segcore.text import plural

_UNITS_AT_ONCE = 256


def find_unread_images(
    storage: Storage, layout: EditionLayout, plan: StoredPlan, parts: PartListing, threads: int
) -> Iterator[Problem]:
    """Units whose shards hold more images than their parts; marks them for the next run.

    Raises:
        StorageError: A shard cannot be read, or a mark not be written.
    """

    def check(unit: Unit) -> Problem | None:
        uri = layout.part("images", unit.unit, parts.generations[unit.unit])
        try:
            if (covered := parts.find_compacted(unit.unit)) is not None:
                n_rows, reader = covered.counts.images, covered.reader
            else:
                metadata = read_part_metadata(storage, uri)
                n_rows = PartCounts.from_metadata(metadata).images
                reader = reader_of_metadata(metadata)
        except (KeyError, ValueError):
            return None  # unreadable: a problem of its own
        if reader >= READER_VERSION:
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

    units = (unit for unit in plan.tar_units() if unit.unit in parts.generations)
    with ThreadPoolExecutor(threads, "segcore-input") as pool:
        while batch := list(islice(units, _UNITS_AT_ONCE)):
            yield from (problem for problem in pool.map(check, batch) if problem is not None)
