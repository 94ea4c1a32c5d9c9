"""Which units of the previous plan a new plan keeps, and which entries need new units."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segcore.planning.hash_index import HashIndex, object_digests
from segcore.planning.lost import (
    NOTHING_LOST,
    LostEntries,
    UnmatchedImages,
    add_lost,
    find_lost_shards,
)
from segcore.sources.base import Entries
from segcore.sources.unit_tables import units_to_table, unpack_member_columns
from segcore.sources.units import Member, Unit, make_objects_unit
from segcore.storage.listing import Listing

_BATCH_UNITS = 512


@dataclass(frozen=True)
class ReusedUnits:
    """What a new plan takes from the previous one.

    Attributes:
        units: Table of the units that are kept as they are, and of units of the unchanged images of
            others.
        remaining_entries: The entries in none of these units.
        carried: Unit of unchanged images -> the previous unit that it was part of.
        lost: What the previous plan had and is gone.
    """

    units: pa.Table
    remaining_entries: Entries
    carried: dict[str, str] = field(default_factory=dict)
    lost: LostEntries = NOTHING_LOST


def reuse_shards(
    previous_units: pa.Table,
    entries: pa.Table,
    unit_kind: str,
    cut_anew: AbstractSet[str] = frozenset(),
) -> ReusedUnits:
    """Keep the units of the shards whose etag is unchanged.

    Args:
        previous_units: Units of the previous plan, cut with the same `Source.fingerprint`.
        entries: The shards of today: columns uri, etag.
        unit_kind: Kind of the units that the source makes.
        cut_anew: Shards whose units are not kept.
    """
    units = previous_units.combine_chunks()
    row = pc.index_in(units["shard"], entries["uri"])
    same_etag = pc.equal(entries["etag"].take(row).cast(units["etag"].type), units["etag"])
    is_kept = pc.and_(pc.equal(units["kind"], unit_kind), pc.fill_null(same_etag, False))
    if cut_anew:
        shards = pa.array(sorted(cut_anew), units["shard"].type)
        is_kept = pc.and_not(is_kept, pc.is_in(units["shard"], shards))
    kept = units.filter(is_kept)
    is_covered = pc.is_in(entries["uri"], kept["shard"])
    return ReusedUnits(kept, entries.filter(pc.invert(is_covered)))


def reuse_objects(previous_units: pa.Table, entries: Listing) -> ReusedUnits:
    """Keep the units whose images are all unchanged, and make units of what is unchanged in others.

    Looks images up by 128-bit hashes, 20 bytes per image, instead of holding both lists of names.
    """
    entry_index = HashIndex(_entry_digests(entries), entries.num_rows)
    # The last element stands for the row -1 of images that no longer exist.
    is_covered = np.zeros(entries.num_rows + 1, bool)
    is_kept = np.zeros(previous_units.num_rows, bool)
    unmatched = UnmatchedImages()
    carried: dict[str, str] = {}

    def reduced_units() -> Iterator[Unit]:
        for position, packed_unit in enumerate(_packed_objects_units(previous_units)):
            if packed_unit is None:
                continue
            previous_id, packed_members = packed_unit
            _, uris, etags, sizes = unpack_member_columns(packed_members)
            rows = entry_index.find(object_digests(uris, sizes, etags))
            is_unchanged = (rows >= 0) & ~is_covered[rows]
            is_covered[rows[is_unchanged]] = True
            unmatched.total += len(uris)
            unmatched.add([uris[i] for i in np.flatnonzero(rows < 0)])
            if is_unchanged.all():
                is_kept[position] = True
            elif is_unchanged.any():
                unit = make_objects_unit(
                    [
                        Member(uris[i], uris[i], etags[i], sizes[i])
                        for i in np.flatnonzero(is_unchanged)
                    ]
                )
                carried[unit.unit] = previous_id
                yield unit

    reduced = units_to_table(reduced_units())  # fills is_kept and carried, too
    return ReusedUnits(
        pa.concat_tables([previous_units.filter(pa.array(is_kept)), reduced]),
        entries.take_where(~is_covered[:-1]),
        carried,
        add_lost(
            unmatched.find_lost(entries),
            find_lost_shards(previous_units, entries.column_batches("uri")),
        ),
    )


def reuse_returned(reused: ReusedUnits, unlisted: pa.Table) -> ReusedUnits:
    """Reuse the results of loose images, too, that were not listed for a while and are again.

    Args:
        reused: What the previous plan gives.
        unlisted: The images that the previous listing lacked: columns uri, etag, shard, unit.
    """
    entries = reused.remaining_entries
    loose = unlisted.filter(pc.equal(unlisted["shard"], ""))
    if not loose.num_rows or not entries.num_rows or not isinstance(entries, Listing):
        return reused
    columns = (loose[name].to_pylist() for name in ("uri", "etag", "unit"))
    images = list(dict.fromkeys(zip(*columns, strict=True)))  # each page of a file is a row
    ids, etags, old_units = ([image[i] for image in images] for i in range(3))
    index = HashIndex([object_digests(ids, [0] * len(ids), etags)], len(ids))
    is_covered = np.zeros(entries.num_rows, bool)
    members: dict[str, list[tuple[int, Member]]] = {}  # old unit -> (row of `loose`, image)
    start = 0
    for batch in entries.to_batches():
        uris, sizes, etags = (batch[name].to_pylist() for name in ("uri", "size", "etag"))
        rows = index.find(object_digests(uris, [0] * len(uris), etags))
        for i in np.flatnonzero(rows >= 0).tolist():
            if etags[i] and not etags[i].startswith("!"):  # else the version is not known
                is_covered[start + i] = True
                member = Member(uris[i], uris[i], etags[i], sizes[i])
                members.setdefault(old_units[rows[i]], []).append((int(rows[i]), member))
        start += len(uris)
    units = []
    carried = dict(reused.carried)
    for old_unit, numbered_members in members.items():
        unit = make_objects_unit([member for _, member in sorted(numbered_members, key=_row_of)])
        if unit.unit != old_unit:
            carried[unit.unit] = old_unit
        units.append(unit)
    table = pa.concat_tables([reused.units, units_to_table(units)])
    return ReusedUnits(table, entries.take_where(~is_covered), carried, reused.lost)


def _row_of(numbered_member: tuple[int, Member]) -> int:
    return numbered_member[0]


def _packed_objects_units(table: pa.Table) -> Iterator[tuple[str, bytes] | None]:
    """(id, packed members) of each unit; None for a unit of a shard."""
    for batch in table.select(["unit", "kind", "members"]).to_batches(_BATCH_UNITS):
        for unit, kind, packed in zip(*(column.to_pylist() for column in batch), strict=True):
            yield (unit, packed) if kind == "objects" else None


def _entry_digests(entries: Listing) -> Iterator[bytes]:
    for batch in entries.to_batches():
        uris, sizes, etags = (batch[name].to_pylist() for name in ("uri", "size", "etag"))
        yield object_digests(uris, sizes, etags)
