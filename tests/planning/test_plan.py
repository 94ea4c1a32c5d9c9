from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcore.errors import SegcoreError, UsageError
from segcore.planning.hash_index import Digests, HashIndex, object_digests
from segcore.planning.plan import (
    Plan,
    Units,
    make_plan,
    remaining_units,
    summarize_plan,
)
from segcore.planning.plan_files import decode_plan, encode_plan
from segcore.sources import SourceOptions, open_source
from segcore.sources.objects import ObjectsSource
from segcore.sources.tar import TarSource
from segcore.sources.unit_tables import (
    UNIT_SCHEMA,
    from_stored_batch,
    to_stored_table,
    units_from_table,
    units_to_table,
)
from segcore.sources.units import Member, Unit, UnitLimits, make_unit
from segcore.storage import Storage, join
from segcore.storage.listing import Listing
from tests.support.archives import image_bytes, open_and_read, parquet_bytes, tar_bytes

storage = Storage()

# uri -> (size, etag)
archives = st.dictionaries(
    st.text("abc/é", min_size=1, max_size=4).map(lambda name: "/in/" + name),
    st.tuples(st.integers(-1, 5), st.sampled_from(["", "e1", "e2"])),
    max_size=30,
)
unit_limits = st.builds(UnitLimits, images=st.integers(1, 5), bytes=st.integers(1, 12))


def _source(archive: dict[str, tuple[int, str]]) -> ObjectsSource:
    rows = ((uri, size, etag) for uri, (size, etag) in archive.items())
    return ObjectsSource(input="/in", kind="images", listing=Listing.from_rows(rows))


def _members(plan: Plan) -> list[tuple[str, int, str]]:
    return [
        (member.uri, member.size, member.etag) for unit in plan.units for member in unit.members
    ]


def _check_each_image_is_in_one_unit(plan: Plan, archive: dict[str, tuple[int, str]]) -> None:
    expected = [(uri, size, etag) for uri, (size, etag) in archive.items()]
    assert sorted(_members(plan)) == sorted(expected)
    assert len(set(plan.units.ids())) == len(plan.units)


def _replaced_units(previous: Plan, plan: Plan) -> list[Unit]:
    """Units of the previous plan that are not in the new one."""
    kept = set(plan.units.ids())
    return [unit for unit in previous.units if unit.unit not in kept]


@given(archives, unit_limits)
def test_every_image_is_in_exactly_one_unit_within_the_limits(
    archive: dict[str, tuple[int, str]], limits: UnitLimits
) -> None:
    plan = make_plan(_source(archive), limits)
    _check_each_image_is_in_one_unit(plan, archive)
    assert _members(plan) == sorted(_members(plan))
    for unit in plan.units:
        assert 1 <= len(unit.members) == unit.n_images == unit.stop <= limits.images
        assert unit.n_bytes == sum(max(m.size, 0) for m in unit.members)
        assert unit.n_bytes <= limits.bytes or len(unit.members) == 1


@pytest.mark.slow
@given(archives, unit_limits, st.randoms())
def test_a_plan_does_not_depend_on_the_order_of_the_listing(
    archive: dict[str, tuple[int, str]], limits: UnitLimits, random: object
) -> None:
    items = list(archive.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    first, second = make_plan(_source(archive), limits), make_plan(_source(dict(items)), limits)
    assert list(first.units) == list(second.units)
    assert first.run == second.run


@pytest.mark.slow
@given(archives, archives, unit_limits, unit_limits)
def test_a_second_plan_covers_all_images_and_keeps_every_unchanged_unit(
    before: dict[str, tuple[int, str]],
    after: dict[str, tuple[int, str]],
    limits: UnitLimits,
    new_limits: UnitLimits,
) -> None:
    first = make_plan(_source(before), limits)
    second = make_plan(_source(after), new_limits, first)
    _check_each_image_is_in_one_unit(second, after)
    for unit in _replaced_units(first, second):
        assert any(after.get(member.uri) != (member.size, member.etag) for member in unit.members)
    assert second.run == make_plan(_source(after), new_limits, second).run


@pytest.mark.slow
@given(archives, archives, unit_limits)
def test_undoing_all_changes_gives_the_first_plan_again(
    before: dict[str, tuple[int, str]], after: dict[str, tuple[int, str]], limits: UnitLimits
) -> None:
    plan = make_plan(_source(before), limits)
    for archive in (after, before, {}, before):
        plan = make_plan(_source(archive), limits, plan)
        _check_each_image_is_in_one_unit(plan, archive)
    assert plan.run == make_plan(_source(before), limits).run


@pytest.mark.slow
@given(archives, unit_limits, st.data())
def test_the_remaining_units_are_those_that_are_not_committed(
    archive: dict[str, tuple[int, str]], limits: UnitLimits, data: st.DataObject
) -> None:
    plan = make_plan(_source(archive), limits)
    ids = plan.units.ids()
    committed = data.draw(st.sets(st.sampled_from([*ids, "of another plan"])))
    remaining = remaining_units(plan.units, committed)
    assert remaining.ids() == [unit for unit in ids if unit not in committed]
    counts = summarize_plan(plan, committed)
    assert counts.units == len(ids)
    assert counts.images == len(archive) == counts.done_images + counts.todo_images  # type: ignore
    assert counts.bytes == counts.done_bytes + counts.todo_bytes
    assert (counts.done_units, counts.todo_units) == (len(ids) - len(remaining), len(remaining))


@pytest.mark.slow
@given(archives, unit_limits)
def test_a_plan_survives_its_file(archive: dict[str, tuple[int, str]], limits: UnitLimits) -> None:
    plan = make_plan(_source(archive), limits)
    data = encode_plan(plan)
    decoded = decode_plan(data)
    assert list(decoded.units) == list(plan.units)
    assert (decoded.run, decoded.input, decoded.fingerprint) == (plan.run, plan.input, "")
    assert encode_plan(decoded) == data
    assert make_plan(_source(archive), limits, decoded).run == plan.run


unit_members = st.builds(Member, st.text("ab#~"), st.text("ab/"), st.text("e!"), st.integers(-1, 9))


@given(st.lists(unit_members, max_size=3), st.none() | st.integers(0, 9))
def test_units_survive_tables(members: list[Member], n_images: int | None) -> None:
    unit = make_unit("tar", shard="s", etag="e", start=1, stop=5, n_images=n_images, n_bytes=4,
                     members=members, reader="r")  # fmt: skip
    table = units_to_table([unit] * 3)
    assert list(units_from_table(table)) == [unit] * 3
    stored = to_stored_table(table)
    restored = [from_stored_batch(batch) for batch in stored.to_batches()]
    assert list(units_from_table(pa.Table.from_batches(restored))) == [unit] * 3


def test_a_unit_id_depends_on_everything_that_selects_images() -> None:
    base = make_unit("tar", shard="s", etag="e", start=0, stop=9, n_images=3, n_bytes=9, reader="r")
    assert len(base.unit) == 20
    assert int(base.unit, 16) >= 0

    def compute_id(unit: Unit) -> str:
        return make_unit(
            unit.kind, shard=unit.shard, etag=unit.etag, start=unit.start, stop=unit.stop,
            n_images=unit.n_images, n_bytes=unit.n_bytes, members=unit.members, reader=unit.reader,
        ).unit  # fmt: skip

    assert compute_id(base) == base.unit
    members = (Member("a", "a", "1", 2),)
    variants = [
        replace(base, kind="parquet"), replace(base, shard="t"), replace(base, etag="f"),
        replace(base, start=1), replace(base, stop=8), replace(base, reader="q"),
        replace(base, members=members), replace(base, members=(Member("a", "a", "2", 2),)),
        replace(base, members=(Member("b", "a", "1", 2),)), replace(base, members=members * 2),
    ]  # fmt: skip
    assert len({compute_id(unit) for unit in variants} | {base.unit}) == len(variants) + 1
    # fields that only describe the unit do not change its id
    assert compute_id(replace(base, n_images=None, n_bytes=7)) == base.unit


def test_unit_ids_are_the_same_in_all_versions() -> None:
    # The parts of earlier runs are found by these ids: a change here orphans all results.
    unit = make_unit("objects", stop=1, n_images=1, n_bytes=3, members=[Member("a", "a", "e", 3)])
    assert unit.unit == "17091c54bbc2eb93ded1"


def _tar_source(etags: dict[str, str], extensions: tuple[str, ...] = ("png",)) -> TarSource:
    """Shards by their etags."""
    shards = Listing.from_rows((uri, 100, etag) for uri, etag in etags.items()).to_table()
    options = SourceOptions(extensions=extensions)
    return TarSource(input="/in", kind="tar", shards=shards, storage=storage, options=options)


shard_etags = st.dictionaries(st.text("ab", min_size=1, max_size=3), st.sampled_from("123"))


@pytest.mark.slow
@given(shard_etags, shard_etags)
def test_unchanged_shards_keep_their_units(before: dict[str, str], after: dict[str, str]) -> None:
    first = make_plan(_tar_source(before), UnitLimits())
    second = make_plan(_tar_source(after), UnitLimits(images=1), first)
    assert {unit.shard: unit.etag for unit in second.units} == after
    assert len(second.units) == len(after)
    assert {unit.shard for unit in _replaced_units(first, second)} == {
        shard for shard in before if after.get(shard) != before[shard]
    }


def test_other_extensions_replace_the_units_of_tars() -> None:
    first = make_plan(_tar_source({"a": "1"}), UnitLimits())
    second = make_plan(_tar_source({"a": "1"}, ("png", "jpg")), UnitLimits(), first)
    assert _replaced_units(first, second) == list(first.units)
    assert len(second.units) == 1


def test_unchanged_shards_keep_their_cut_under_other_limits(folder: str) -> None:
    members = [(f"{i}.png", bytes([i]) * 1000) for i in range(10)]
    storage.write(join(folder, "a.tar"), tar_bytes(members))
    storage.write(join(folder, "b.tar"), tar_bytes(members))
    options = SourceOptions()
    first = make_plan(open_source(folder, options, storage), UnitLimits(images=3, bytes=9000))
    assert len(first.units) == 8
    storage.write(join(folder, "b.tar"), tar_bytes(members[:5]))
    second = make_plan(
        open_source(folder, options, storage), UnitLimits(), decode_plan(encode_plan(first))
    )
    assert len(second.units) == 5
    assert {unit.shard for unit in _replaced_units(first, second)} == {join(folder, "b.tar")}
    counts = summarize_plan(second, set())
    # only reading b.tar, which is one unit now, tells how many images it has
    assert (counts.images, counts.todo_images) == (None, None)


def test_no_units_of_another_kind_of_archive_are_kept(folder: str) -> None:
    storage.write(join(folder, "a.png"), image_bytes())
    storage.write(join(folder, "b.parquet"), parquet_bytes({"image": [image_bytes()]}))
    plans = []
    for kind in ("images", "parquet", "images"):
        source, _ = open_and_read(folder, storage, kind=kind)
        plans.append(make_plan(source, UnitLimits(), plans[-1] if plans else None))
    assert _replaced_units(plans[0], plans[1]) == list(plans[0].units)
    assert plans[2].run == plans[0].run != plans[1].run


def test_notes_of_the_source_are_in_the_plan(tmp_path: object) -> None:
    storage.write(f"{tmp_path}/a.png", b"1")
    storage.write(f"{tmp_path}/a.txt", b"1")
    plan = make_plan(open_source(str(tmp_path), SourceOptions(), storage), UnitLimits())
    assert plan.notes == (f"Skipped 1 other file in {tmp_path}: 1 x .txt.",)


def test_the_plan_of_another_input_is_refused() -> None:
    plan = make_plan(_source({"/in/a": (1, "e")}), UnitLimits())
    other = ObjectsSource(input="/other", kind="images", listing=Listing.from_rows([]))
    with pytest.raises(UsageError, match="holds results of /in, not of /other"):
        make_plan(other, UnitLimits(), plan)


def test_units_are_a_sequence() -> None:
    plan = make_plan(_source({f"/in/{i}": (1, "e") for i in range(5)}), UnitLimits(images=1))
    units = list(plan.units)
    assert plan.units[0] == units[0]
    assert plan.units[-1] == units[-1]
    assert list(plan.units[1:4:2]) == units[1:4:2]
    assert isinstance(plan.units[:2], Units)
    with pytest.raises(IndexError):
        plan.units[5]


def test_damaged_and_foreign_plans_are_readable_errors() -> None:
    plan = make_plan(_source({"/in/a": (1, "e"), "/in/b": (1, "e")}), UnitLimits(images=1))
    data = encode_plan(plan)
    with pytest.raises(SegcoreError, match=r"plans/x\.parquet cannot be read"):
        decode_plan(data[:-10], "plans/x.parquet")
    with pytest.raises(SegcoreError, match="not a plan of version 1"):
        decode_plan(parquet_bytes({"a": [1]}))

    def with_plan_metadata(table: pa.Table) -> bytes:
        sink = io.BytesIO()
        metadata = {**(pq.read_schema(io.BytesIO(data)).metadata or {})}
        pq.write_table(table.replace_schema_metadata(metadata), sink)
        return sink.getvalue()

    with pytest.raises(SegcoreError, match="its units do not match its name"):
        decode_plan(with_plan_metadata(pq.read_table(io.BytesIO(data)).slice(1)))
    with pytest.raises(SegcoreError, match="does not have the columns of a plan"):
        decode_plan(with_plan_metadata(pq.read_table(io.BytesIO(data)).drop_columns(["etag"])))


@pytest.mark.slow
def test_large_plans_stay_small() -> None:
    n = 50_000
    rows = [(f"/in/{i:08}.jpg", 1000, "e") for i in range(n)]
    source = ObjectsSource(input="/in", kind="images", listing=Listing.from_rows(rows))
    first = make_plan(source, UnitLimits())
    assert summarize_plan(first, set()).images == n
    assert first.units.table.nbytes < 30 * n  # packed names
    source.listing = Listing.from_rows(rows[:-1])
    second = make_plan(source, UnitLimits(), first)
    assert len(_replaced_units(first, second)) == 1
    assert second.units.table.schema == UNIT_SCHEMA


def test_stored_plans_open_as_columns(tmp_path: Path) -> None:
    plan = make_plan(_source({f"/in/{i}": (i, f"e{i}") for i in range(5)}), UnitLimits(images=2))
    (tmp_path / "plan.parquet").write_bytes(encode_plan(plan))
    members = duckdb.sql(
        f"from (select unit, unnest(members, recursive := true) "
        f"from read_parquet('{tmp_path}/plan.parquet')) order by uri"
    )
    assert members.columns == ["unit", "image_id", "uri", "etag", "size"]
    rows = members.fetchall()
    assert [row[2:] for row in rows] == [(f"/in/{i}", f"e{i}", i) for i in range(5)]
    assert [row[0] for row in rows[:2]] == [plan.units[0].unit] * 2


def test_a_hash_index_distinguishes_objects_that_share_half_a_hash() -> None:
    def digests(pairs: list[tuple[int, int]]) -> Digests:
        high, low = zip(*pairs, strict=True)
        return Digests(np.array(high, np.uint64), np.array(low, np.uint32))

    pieces = [digests([(7, 3), (5, 1)]), digests([(7, 1), (7, 2), (2**63, 0)])]
    index = HashIndex(pieces, 5)
    queries = digests([(7, 2), (7, 9), (2**63, 0), (5, 1), (6, 0), (7, 1), (2**64 - 1, 0), (7, 3)])
    assert index.find(queries).tolist() == [3, -1, 4, 1, -1, 2, -1, 0]
    assert HashIndex([], 0).find(queries).tolist() == [-1] * 8


def test_a_hash_index_finds_each_row_however_the_hashes_are_spread() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 63, 70_000, 1_200_000):
        for most in (2**64 - 1, 2**58, 3 * 2**58):  # all buckets, one, three
            high = rng.integers(0, most, n, np.uint64, endpoint=True)
            digests = Digests(high, np.arange(n, dtype=np.uint32))
            pieces = [
                Digests(high[i : i + 9999], digests.low[i : i + 9999]) for i in range(0, n, 9999)
            ]
            index = HashIndex(pieces, n)
            assert np.array_equal(index.find(digests), np.arange(n))
            assert (index.find(Digests(high, digests.low + np.uint32(n))) == -1).all()


texts = st.text("ab\0é/", max_size=9) | st.sampled_from(["a" * 4096, "a" * 4097, "a" * 4096 + "b"])


@given(st.lists(st.tuples(texts, st.integers(-(2**63), 2**63 - 1), texts), max_size=20))
def test_digests_are_equal_where_objects_are(objects: list[tuple[str, int, str]]) -> None:
    # As slices of longer arrays, too, and whatever else is hashed with them.
    rows = [("x", 1, ""), *objects, *objects[::-1], ("", 0, "yy")]
    uris, sizes, etags = zip(*rows, strict=True)
    columns = pa.array(uris, pa.large_string()), np.array(sizes), pa.array(etags, pa.large_string())
    digests = [
        (int(high), int(low))
        for start, stop in ((0, len(rows)), (1, len(rows) - 1), (1, 1 + len(objects)))
        for digest in [object_digests(*(column[start:stop] for column in columns))]
        for high, low in zip(*digest, strict=True)
    ]
    all_rows = [*rows, *rows[1:-1], *objects]
    assert len(set(digests)) == len(set(all_rows))
    assert len(set(zip(digests, all_rows, strict=True))) == len(set(all_rows))


@pytest.mark.parametrize(
    ("n_images", "sizes"),
    [(20, [20]), (120, [32, 32, 32, 24]), (1000, [63] * 15 + [55]), (5000, [256] * 19 + [136])],
)
def test_a_small_archive_gives_all_workers_something(n_images: int, sizes: list[int]) -> None:
    source = _source({f"/in/{i:04d}": (1, "e") for i in range(n_images)})
    assert [unit.n_images for unit in make_plan(source, UnitLimits()).units] == sizes
    fixed = make_plan(source, UnitLimits(images=10**6)).units
    assert len(fixed) == min(len(sizes), 16)
