"""Which units of the previous plan a new plan keeps, and which entries need new units."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segcore.planning.hash_index import Digests, HashIndex, object_digests
from segcore.planning.lost import (
    NOTHING_LOST,
    LostEntries,
    UnmatchedImages,
    add_lost,
    find_lost_shards,
)
from segcore.sources.base import Entries
from segcore.sources.objects import pack_objects_unit
from segcore.sources.packed_members import MemberColumns, unpack_all
from segcore.sources.parallel import map_in_order
from segcore.sources.unit_tables import UnitTableBuilder, units_to_table
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

    Looks images up by hashes, 16 bytes per image, instead of holding both lists of names.
    """
    reduction = _Reduction(HashIndex(_entry_digests(entries), entries.num_rows), entries.num_rows)
    is_kept = reduction.reduce(previous_units)
    remaining = entries.take_where(~reduction.is_covered[:-1])
    units = pa.concat_tables([previous_units.filter(pa.array(is_kept)), reduction.builder.finish()])
    carried, unmatched = reduction.carried, reduction.unmatched
    del reduction  # the index; to find what is lost, there may be another one
    lost = add_lost(
        unmatched.find_lost(entries),
        find_lost_shards(previous_units, entries.column_batches("uri")),
    )
    return ReusedUnits(units, remaining, carried, lost)


class _Reduction:
    """Compares the units of the previous plan with the entries of today, batch by batch.

    Attributes:
        is_covered: For each entry, whether a unit holds it. The last element stands for the row -1
            of images that no longer exist.
        builder: Units of what is unchanged in units that are not kept.
        carried: These units -> the previous unit.
    """

    def __init__(self, index: HashIndex, n_entries: int) -> None:
        self._index = index
        self.is_covered = np.zeros(n_entries + 1, bool)
        self.builder = UnitTableBuilder()
        self.carried: dict[str, str] = {}
        self.unmatched = UnmatchedImages()

    def reduce(self, previous_units: pa.Table) -> np.ndarray:
        """(number of units,) bool: the units that are kept as they are."""
        is_kept = np.zeros(previous_units.num_rows, bool)
        batches = previous_units.select(["unit", "kind", "members"]).to_batches(_BATCH_UNITS)
        remainders = self._compare(map_in_order(self._look_up, batches), is_kept)
        for previous_id, (unit, packed) in map_in_order(_pack_remainder, remainders):
            self.builder.add_packed(unit, packed)
            self.carried[unit.unit] = previous_id
        return is_kept

    def _look_up(self, batch: pa.RecordBatch) -> _LookedUp:
        """The units of loose images in a batch of the previous plan, and where their images are."""
        numbers = np.flatnonzero(pc.equal(batch["kind"], "objects").to_numpy(False))
        loose = batch.take(pa.array(numbers))
        images, counts = unpack_all(loose["members"])
        digests = object_digests(images.uris, images.sizes.to_numpy(), images.etags)
        rows = self._index.find(digests)
        uris = images.uris.filter(pa.array(rows < 0))
        units = loose["unit"].to_pylist()
        return _LookedUp(batch.num_rows, numbers, units, images, counts, rows, uris)

    def _compare(
        self, batches: Iterable[_LookedUp], is_kept: np.ndarray
    ) -> Iterator[tuple[str, MemberColumns]]:
        """Mark in `is_kept` what is unchanged; of other units, yield the unchanged images."""
        first_unit = 0
        for batch in batches:
            self.unmatched.total += len(batch.rows)
            self.unmatched.add(batch.unmatched_uris)
            if self._keep_all(batch):
                is_kept[first_unit + batch.numbers] = True
                first_unit += batch.n_units
                continue
            stop = 0
            for number, unit, n in zip(
                batch.numbers, batch.units, batch.counts.tolist(), strict=True
            ):
                start, stop = stop, stop + n
                unit_rows = batch.rows[start:stop]
                is_unchanged = (unit_rows >= 0) & ~self.is_covered[unit_rows]
                self.is_covered[unit_rows[is_unchanged]] = True
                if is_unchanged.all():
                    is_kept[first_unit + number] = True
                elif is_unchanged.any():
                    yield unit, batch.images.take(start + np.flatnonzero(is_unchanged))
            first_unit += batch.n_units

    def _keep_all(self, batch: _LookedUp) -> bool:
        """Mark the images of a batch in which nothing has changed: the usual case, seen at once."""
        rows = batch.rows
        if (rows < 0).any() or self.is_covered[rows].any() or not batch.counts.all():
            return False
        if len(np.unique(rows)) < len(rows):
            return False
        self.is_covered[rows] = True
        return True


@dataclass(frozen=True)
class _LookedUp:
    """A batch of the previous plan.

    Attributes:
        n_units: All of its units.
        numbers: Which of them are of loose images.
        units: These units.
        images: Of all of them, in order.
        counts: How many images each has.
        rows: The rows of all these images in the index; -1 where they are not.
        unmatched_uris: Of the latter.
    """

    n_units: int
    numbers: np.ndarray
    units: list[str]
    images: MemberColumns
    counts: np.ndarray
    rows: np.ndarray
    unmatched_uris: pa.Array


def _pack_remainder(remainder: tuple[str, MemberColumns]) -> tuple[str, tuple[Unit, bytes]]:
    previous_id, part = remainder
    images = MemberColumns.of_images(part.uris, part.etags, part.sizes)
    return previous_id, pack_objects_unit(images)


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
    index = HashIndex([_version_digests(pa.array(ids), pa.array(etags))], len(ids))
    is_covered = np.zeros(entries.num_rows, bool)
    members: dict[str, list[tuple[int, Member]]] = {}  # old unit -> (row of `loose`, image)
    start = 0
    for batch in entries.to_batches():
        uris, sizes, etags = (batch[name].to_pylist() for name in ("uri", "size", "etag"))
        rows = index.find(_version_digests(batch["uri"], batch["etag"]))
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


def _version_digests(uris: pa.Array, etags: pa.Array) -> Digests:
    """Without the sizes, which parts do not have."""
    text = pa.large_string()
    return object_digests(uris.cast(text), np.zeros(len(uris), np.int64), etags.cast(text))


def _entry_digests(entries: Listing) -> Iterator[Digests]:
    return map_in_order(_batch_digests, entries.to_batches())


def _batch_digests(batch: pa.RecordBatch) -> Digests:
    return object_digests(batch["uri"], batch["size"].to_numpy(), batch["etag"])
