"""How much of the previous listing is gone: a listing that shrank much is a sign of an outage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segcore.planning.hash_index import Digests, HashIndex, uri_digests
from segcore.storage.listing import Listing

_MAX_EXAMPLES = 3
_MAX_NAMES_KEPT = 1000


@dataclass(frozen=True)
class LostEntries:
    """Entries (loose images or shards) of the previous plan that today's listing lacks.

    Attributes:
        total: Entries of the previous plan.
        lost: How many of them are gone. One that has changed is not.
        examples: URIs of a few of them.
    """

    total: int = 0
    lost: int = 0
    examples: tuple[str, ...] = ()


NOTHING_LOST = LostEntries()


@dataclass
class UnmatchedImages:
    """Images of the previous plan that are not listed in the same version: changed, or gone."""

    total: int = 0  # images of the previous plan, matched ones included
    digests: list[Digests] = field(default_factory=list)
    first_uris: list[str] = field(default_factory=list)

    def add(self, uris: pa.Array) -> None:
        """Remember images by the hashes of their URIs, 12 bytes each."""
        if len(uris):
            self.digests.append(uri_digests(uris))
            n_missing = max(_MAX_NAMES_KEPT - len(self.first_uris), 0)
            self.first_uris += uris[:n_missing].to_pylist()

    def find_lost(self, entries: Listing) -> LostEntries:
        """Those that are not listed in any version; forgets the images."""
        n_digests = sum(len(piece.high) for piece in self.digests)
        index = HashIndex(_take_all(self.digests), n_digests)
        is_lost = np.ones(index.num_rows + 1, bool)
        if index.num_rows:
            for uris in entries.column_batches("uri"):
                is_lost[index.find(uri_digests(uris.combine_chunks()))] = False
        is_lost[-1] = False  # stands for the row -1 of other images
        known = zip(self.first_uris, is_lost[:-1].tolist(), strict=False)
        examples = [uri for uri, lost in known if lost][:_MAX_EXAMPLES]
        return LostEntries(self.total, int(np.count_nonzero(is_lost)), tuple(examples))


def find_lost_shards(previous_units: pa.Table, uris: Iterable[pa.Array]) -> LostEntries:
    """The shards of the previous plan that are not among these URIs."""
    is_shard = pc.not_equal(previous_units["kind"], "objects")
    shards = pc.unique(previous_units["shard"].filter(is_shard))
    if not len(shards):
        return NOTHING_LOST  # without reading all URIs
    is_lost = np.ones(len(shards), bool)
    for batch in uris:
        is_listed = pc.is_in(shards, batch.cast(shards.type))
        is_lost &= ~is_listed.to_numpy(zero_copy_only=False)
    lost = shards.filter(pa.array(is_lost))
    return LostEntries(len(shards), len(lost), tuple(lost.slice(0, _MAX_EXAMPLES).to_pylist()))


def find_lost_by_shard_entries(previous_units: pa.Table, entries: pa.Table) -> LostEntries:
    """What is gone where today's entries are shards: loose images are, whatever their number."""
    shards = find_lost_shards(previous_units, [entries["uri"].combine_chunks()])
    is_loose = pc.equal(previous_units["kind"], "objects")
    n_loose = pc.sum(previous_units["n_images"].filter(is_loose)).as_py() or 0
    return LostEntries(shards.total + n_loose, shards.lost + n_loose, shards.examples)


def add_lost(first: LostEntries, second: LostEntries) -> LostEntries:
    """Both together."""
    examples = (*first.examples, *second.examples)[:_MAX_EXAMPLES]
    return LostEntries(first.total + second.total, first.lost + second.lost, examples)


def _take_all(digests: list[Digests]) -> Iterator[Digests]:
    """Empties the list while it is read: both together would be large."""
    digests.reverse()
    while digests:
        yield digests.pop()
