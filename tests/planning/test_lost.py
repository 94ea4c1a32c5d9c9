"""What the previous listing had and today's lacks, and what comes back, against plain sets."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.output.unlisted import UNLISTED_SCHEMA
from segcore.planning.plan import Plan, make_plan
from segcore.sources import SourceOptions
from segcore.sources.objects import ObjectsSource
from segcore.sources.tar import TarSource
from segcore.sources.units import Member, UnitLimits, make_objects_unit
from segcore.storage import Storage
from segcore.storage.listing import Listing

LIMITS = UnitLimits(images=3)
# uri -> etag
listings = st.dictionaries(
    st.sampled_from([f"/in/{i:02}" for i in range(15)]), st.sampled_from(["", "1", "2"])
)
shard_listings = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("12"))


def _objects(listing: dict[str, str], previous: Plan | None = None, **options: object) -> Plan:
    rows = Listing.from_rows((uri, 10, etag) for uri, etag in listing.items())
    source = ObjectsSource(input="/in", kind="images", listing=rows)
    return make_plan(source, LIMITS, previous, **options)  # type: ignore[arg-type]


def _tars(listing: dict[str, str], previous: Plan | None = None, extension: str = "png") -> Plan:
    shards = Listing.from_rows((uri, 10, etag) for uri, etag in listing.items()).to_table()
    options = SourceOptions(extensions=(extension,))
    source = TarSource(input="/in", kind="tar", shards=shards, storage=Storage(), options=options)
    return make_plan(source, LIMITS, previous)


@settings(max_examples=15)
@given(listings, listings)
def test_images_that_are_gone_are_counted_and_changed_ones_are_not(
    before: dict[str, str], after: dict[str, str]
) -> None:
    lost = _objects(after, _objects(before)).lost
    gone = before.keys() - after.keys()
    assert (lost.total, lost.lost) == (len(before), len(gone))
    assert set(lost.examples) <= gone
    assert bool(lost.examples) == bool(gone)


@settings(max_examples=15)
@given(shard_listings, shard_listings, st.sampled_from(["png", "jpg"]))
def test_so_are_shards_whatever_an_image_is_called(
    before: dict[str, str], after: dict[str, str], extension: str
) -> None:
    lost = _tars(after, _tars(before), extension).lost
    gone = before.keys() - after.keys()
    assert (lost.total, lost.lost) == (len(before), len(gone))
    assert set(lost.examples) <= gone


@settings(max_examples=15)
@given(listings, shard_listings)
def test_another_kind_of_archive_has_lost_all(
    images: dict[str, str], shards: dict[str, str]
) -> None:
    lost = _tars(shards, _objects(images)).lost
    assert (lost.total, lost.lost) == (len(images), len(images))
    lost = _objects(images, _tars(shards)).lost
    assert (lost.total, lost.lost) == (len(shards), len(shards))


@settings(max_examples=15)
@given(listings, listings, listings, st.integers(1, 4))
def test_what_comes_back_in_the_same_version_takes_its_results(
    before: dict[str, str], after: dict[str, str], unlisted: dict[str, str], unit_images: int
) -> None:
    unlisted = {uri: etag for uri, etag in unlisted.items() if uri not in before}
    rows, units = [], {}
    names = sorted(unlisted)
    for start in range(0, len(names), unit_images):
        group = names[start : start + unit_images]
        unit = make_objects_unit([Member(uri, uri, unlisted[uri], -1) for uri in group])
        units[unit.unit] = set(group)
        rows += [{"image_id": uri, "uri": uri, "etag": unlisted[uri], "shard": "",
                  "unit": unit.unit} for uri in group]  # fmt: skip
    table = pa.Table.from_pylist(rows, UNLISTED_SCHEMA)
    previous = _objects(before)
    plan = _objects(after, previous, unlisted=table)
    members = [member.uri for unit in plan.units for member in unit.members]
    assert sorted(members) == sorted(after)

    by_id = {unit.unit: {member.uri for member in unit.members} for unit in plan.units}
    old = {unit.unit: {member.uri for member in unit.members} for unit in previous.units} | units
    reused = {
        uri for unit in by_id.keys() & (old.keys() | plan.carried.keys()) for uri in by_id[unit]
    }
    returned = {uri for uri, etag in unlisted.items() if etag and after.get(uri) == etag}
    assert returned <= reused
    assert all(by_id[unit] < old[old_unit] for unit, old_unit in plan.carried.items())
