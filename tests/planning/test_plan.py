from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcore.errors import SegcoreError, UsageError
from segcore.planning.hash_index import HashIndex, object_digests
from segcore.planning.plan import (
    Plan,
    Units,
    decode_plan,
    encode_plan,
    make_plan,
    remaining_units,
    summarize_plan,
)
from segcore.sources import SourceOptions, open_source
from segcore.sources.objects import ObjectsSource
from segcore.sources.tar import TarSource
from segcore.sources.units import (
    UNIT_SCHEMA,
    Member,
    Unit,
    UnitLimits,
    from_row,
    make_unit,
    to_row,
    units_from_table,
    units_to_table,
)
from segcore.storage import Storage, join
from segcore.storage.listing import Listing
from tests.support.archives import image_bytes, open_and_read, parquet_bytes, tar_bytes

storage = Storage()

listings = st.dictionaries(
    st.text("abc/é", min_size=1, max_size=4).map(lambda name: "/in/" + name),
    st.tuples(st.integers(-1, 5), st.sampled_from(["", "e1", "e2"])),
    max_size=30,
)
limits_ = st.builds(UnitLimits, images=st.integers(1, 5), bytes=st.integers(1, 12))


def _source(listing: dict[str, tuple[int, str]]) -> ObjectsSource:
    rows = ((uri, size, etag) for uri, (size, etag) in listing.items())
    return ObjectsSource(input="/in", kind="images", table=Listing.from_rows(rows))


def _members(plan: Plan) -> list[tuple[str, int, str]]:
    return [(m.uri, m.size, m.etag) for unit in plan.units for m in unit.members]


def _check_exact_cover(plan: Plan, listing: dict[str, tuple[int, str]]) -> None:
    assert sorted(_members(plan)) == sorted((u, s, e) for u, (s, e) in listing.items())
    assert len(set(plan.units.ids())) == len(plan.units)


@given(listings, limits_)
def test_every_image_is_in_exactly_one_unit_within_the_limits(
    listing: dict[str, tuple[int, str]], limits: UnitLimits
) -> None:
    plan = make_plan(_source(listing), limits)
    _check_exact_cover(plan, listing)
    assert _members(plan) == sorted(_members(plan))
    for unit in plan.units:
        assert 1 <= len(unit.members) == unit.n_images == unit.stop <= limits.images
        assert unit.n_bytes == sum(max(m.size, 0) for m in unit.members)
        assert unit.n_bytes <= limits.bytes or len(unit.members) == 1
    assert len(plan.stale) == 0


@given(listings, limits_, st.randoms())
def test_a_plan_depends_on_the_listing_not_on_its_order(
    listing: dict[str, tuple[int, str]], limits: UnitLimits, random: object
) -> None:
    items = list(listing.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    first, second = make_plan(_source(listing), limits), make_plan(_source(dict(items)), limits)
    assert list(first.units) == list(second.units)
    assert first.run == second.run


@given(listings, listings, limits_, limits_)
def test_a_second_plan_covers_all_keeps_what_it_can_and_names_what_is_stale(
    before: dict[str, tuple[int, str]],
    after: dict[str, tuple[int, str]],
    limits: UnitLimits,
    new_limits: UnitLimits,
) -> None:
    first = make_plan(_source(before), limits)
    second = make_plan(_source(after), new_limits, first)
    _check_exact_cover(second, after)
    kept = set(second.units.ids())
    for unit in first.units:
        unchanged = all(after.get(m.uri) == (m.size, m.etag) for m in unit.members)
        assert unchanged <= (unit.unit in kept)
    assert set(second.stale.ids()) == set(first.units.ids()) - kept
    assert second.run == make_plan(_source(after), new_limits, second).run


@given(listings, listings, limits_)
def test_changes_back_and_forth_end_where_they_began(
    before: dict[str, tuple[int, str]], after: dict[str, tuple[int, str]], limits: UnitLimits
) -> None:
    plan = make_plan(_source(before), limits)
    for listing in (after, before, {}, before):
        plan = make_plan(_source(listing), limits, plan)
        _check_exact_cover(plan, listing)
    assert plan.run == make_plan(_source(before), limits).run


@given(listings, limits_, st.data())
def test_remaining_is_plan_minus_committed(
    listing: dict[str, tuple[int, str]], limits: UnitLimits, data: st.DataObject
) -> None:
    plan = make_plan(_source(listing), limits)
    ids = plan.units.ids()
    done = data.draw(st.sets(st.sampled_from([*ids, "of another plan"])))
    left = remaining_units(plan, done)
    assert left.ids() == [unit for unit in ids if unit not in done]
    counts = summarize_plan(plan, done)
    assert counts.units == len(ids)
    assert counts.images == len(listing) == counts.done_images + counts.todo_images  # type: ignore
    assert counts.bytes == counts.done_bytes + counts.todo_bytes
    assert (counts.done_units, counts.todo_units) == (len(ids) - len(left), len(left))


@given(listings, limits_)
def test_saved_and_loaded(listing: dict[str, tuple[int, str]], limits: UnitLimits) -> None:
    plan = make_plan(_source(listing), limits)
    data = encode_plan(plan)
    again = decode_plan(data)
    assert list(again.units) == list(plan.units)
    assert (again.run, again.input, again.fingerprint) == (plan.run, plan.input, "")
    assert encode_plan(again) == data
    assert make_plan(_source(listing), limits, again).run == plan.run


member = st.builds(Member, st.text("ab#~"), st.text("ab/"), st.text("e!"), st.integers(-1, 9))


@given(st.lists(member, max_size=3), st.none() | st.integers(0, 9))
def test_units_survive_rows_and_tables(members: list[Member], n_images: int | None) -> None:
    unit = make_unit("tar", shard="s", etag="e", start=1, stop=5, n_images=n_images, n_bytes=4,
                     members=members, reader="r")  # fmt: skip
    assert from_row(to_row(unit)) == unit
    assert from_row(json.loads(json.dumps(to_row(unit)))) == unit
    assert list(units_from_table(units_to_table([unit] * 3))) == [unit] * 3


def test_the_id_depends_on_everything_that_selects_images() -> None:
    base = make_unit("tar", shard="s", etag="e", start=0, stop=9, n_images=3, n_bytes=9, reader="r")
    assert len(base.unit) == 20
    assert int(base.unit, 16) >= 0

    def remade(unit: Unit) -> str:
        return make_unit(
            unit.kind, shard=unit.shard, etag=unit.etag, start=unit.start, stop=unit.stop,
            n_images=unit.n_images, n_bytes=unit.n_bytes, members=unit.members, reader=unit.reader,
        ).unit  # fmt: skip

    assert remade(base) == base.unit
    members = (Member("a", "a", "1", 2),)
    others = [
        replace(base, kind="parquet"), replace(base, shard="t"), replace(base, etag="f"),
        replace(base, start=1), replace(base, stop=8), replace(base, reader="q"),
        replace(base, members=members), replace(base, members=(Member("a", "a", "2", 2),)),
        replace(base, members=(Member("b", "a", "1", 2),)), replace(base, members=members * 2),
    ]  # fmt: skip
    assert len({remade(unit) for unit in others} | {base.unit}) == len(others) + 1
    # what only describes the unit does not rename it
    assert remade(replace(base, n_images=None, n_bytes=7)) == base.unit


def test_ids_are_stable_between_versions() -> None:
    # parts of earlier runs are found by these names: a change here orphans all results
    unit = make_unit("objects", stop=1, n_images=1, n_bytes=3, members=[Member("a", "a", "e", 3)])
    assert unit.unit == "17091c54bbc2eb93ded1"


@dataclass(kw_only=True)
class _Tars(TarSource):
    @classmethod
    def of(cls, listing: dict[str, str], extensions: tuple[str, ...] = ("png",)) -> _Tars:
        rows = ((uri, 100, etag) for uri, etag in sorted(listing.items()))
        table = Listing.from_rows(rows).to_table()
        options = SourceOptions(extensions=extensions)
        return cls(input="/in", kind="tar", listing=table, storage=storage, options=options)


shards = st.dictionaries(st.text("ab", min_size=1, max_size=3), st.sampled_from("123"))


@given(shards, shards)
def test_unchanged_shards_keep_their_units(before: dict[str, str], after: dict[str, str]) -> None:
    first = make_plan(_Tars.of(before), UnitLimits())
    second = make_plan(_Tars.of(after), UnitLimits(images=1), first)
    assert {u.shard: u.etag for u in second.units} == after
    assert len(second.units) == len(after)
    assert {u.shard for u in second.stale} == {s for s in before if after.get(s) != before[s]}


def test_other_extensions_make_the_units_of_tars_anew() -> None:
    first = make_plan(_Tars.of({"a": "1"}), UnitLimits())
    second = make_plan(_Tars.of({"a": "1"}, ("png", "jpg")), UnitLimits(), first)
    assert second.stale.ids() == first.units.ids() != second.units.ids()


def test_a_changed_cut_is_kept_as_it_was(folder: str) -> None:
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
    assert {u.shard for u in second.stale} == {join(folder, "b.tar")}
    counts = summarize_plan(second, set())
    assert (counts.images, counts.todo_images) == (None, None)  # b.tar tells when it is read


def test_a_plan_of_another_kind_of_archive_is_stale(folder: str) -> None:
    storage.write(join(folder, "a.png"), image_bytes())
    storage.write(join(folder, "b.parquet"), parquet_bytes({"image": [image_bytes()]}))
    plans = []
    for kind in ("images", "parquet", "images"):
        source, _ = open_and_read(folder, storage, kind=kind)
        plans.append(make_plan(source, UnitLimits(), plans[-1] if plans else None))
    assert plans[1].stale.ids() == plans[0].units.ids()
    assert plans[2].run == plans[0].run != plans[1].run


def test_notes_of_the_source_are_in_the_plan(tmp_path: object) -> None:
    storage.write(f"{tmp_path}/a.png", b"1")
    storage.write(f"{tmp_path}/a.txt", b"1")
    plan = make_plan(open_source(str(tmp_path), SourceOptions(), storage), UnitLimits())
    assert plan.notes == (f"1 other files under {tmp_path} are left out.",)


def test_the_plan_of_another_input_is_refused() -> None:
    plan = make_plan(_source({"/in/a": (1, "e")}), UnitLimits())
    other = ObjectsSource(input="/other", kind="images", table=Listing.from_rows([]))
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


def test_damaged_and_foreign_plans_are_one_sentence() -> None:
    plan = make_plan(_source({"/in/a": (1, "e"), "/in/b": (1, "e")}), UnitLimits(images=1))
    data = encode_plan(plan)
    with pytest.raises(SegcoreError, match=r"plans/x\.parquet cannot be read"):
        decode_plan(data[:-10], "plans/x.parquet")
    with pytest.raises(SegcoreError, match="no plan of version 1"):
        decode_plan(parquet_bytes({"a": [1]}))

    def altered(table: pa.Table) -> bytes:
        sink = io.BytesIO()
        metadata = {**(pq.read_schema(io.BytesIO(data)).metadata or {})}
        pq.write_table(table.replace_schema_metadata(metadata), sink)
        return sink.getvalue()

    with pytest.raises(SegcoreError, match="its units do not match its name"):
        decode_plan(altered(pq.read_table(io.BytesIO(data)).slice(1)))
    with pytest.raises(SegcoreError, match="other columns"):
        decode_plan(altered(pq.read_table(io.BytesIO(data)).drop_columns(["etag"])))


def test_large_plans_stay_small() -> None:
    n = 50_000
    rows = [(f"/in/{i:08}.jpg", 1000, "e") for i in range(n)]
    source = ObjectsSource(input="/in", kind="images", table=Listing.from_rows(rows))
    first = make_plan(source, UnitLimits())
    assert summarize_plan(first, set()).images == n
    assert first.units.table.nbytes < 30 * n  # packed names
    source.table = Listing.from_rows(rows[:-1])
    second = make_plan(source, UnitLimits(), first)
    assert len(second.stale) == 1
    assert second.units.table.schema == UNIT_SCHEMA


def test_stored_plans_open_as_columns(tmp_path: Path) -> None:
    plan = make_plan(_source({f"/in/{i}": (i, f"e{i}") for i in range(5)}), UnitLimits(images=2))
    (tmp_path / "plan.parquet").write_bytes(encode_plan(plan))
    found = duckdb.sql(
        f"from (select unit, unnest(members, recursive := true) "
        f"from read_parquet('{tmp_path}/plan.parquet')) order by uri"
    )
    assert found.columns == ["unit", "image_id", "uri", "etag", "size"]
    rows = found.fetchall()
    assert [row[2:] for row in rows] == [(f"/in/{i}", f"e{i}", i) for i in range(5)]
    assert [row[0] for row in rows[:2]] == [plan.units[0].unit] * 2


def test_a_hash_index_tells_objects_that_share_half_a_hash() -> None:
    rows = np.array([[7, 3], [5, 1], [7, 1], [7, 2], [9, 0]], np.uint64)
    index = HashIndex([rows[:2].tobytes(), rows[2:].tobytes()], 5)
    wanted = np.array([[7, 2], [7, 9], [9, 0], [5, 1], [6, 0], [7, 1], [10, 0], [7, 3]], np.uint64)
    assert index.find(wanted.tobytes()).tolist() == [3, -1, 4, 1, -1, 2, -1, 0]
    assert HashIndex([], 0).find(wanted.tobytes()).tolist() == [-1] * 8
    assert object_digests(["ab", "a"], [1, 1], ["c", "bc"])[:16] != object_digests(
        ["a"], [1], ["bc"]
    )
