"""Results of unchanged images move with them when their unit is cut anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from segcore.errors import ErrorCode, ImageError, ImageWarning, WarningCode
from segcore.instances import Instances
from segcore.output.parts import Parts
from segcore.output.tables import ImageResult
from segcore.planning.plan import Plan, make_plan
from segcore.planning.plan_files import decode_plan, encode_plan
from segcore.run.carry_over import carry_over
from segcore.sources import page_image_id
from segcore.sources.objects import ObjectsSource
from segcore.sources.units import Unit, UnitLimits
from segcore.storage import Storage
from segcore.storage.listing import Listing
from tests.support.jobs import part_bytes

LIMITS = UnitLimits(images=4)


def _plan(listing: dict[str, str], previous: Plan | None = None) -> Plan:
    rows = Listing.from_rows((uri, 10, etag) for uri, etag in listing.items())
    return make_plan(ObjectsSource(input="/in", kind="images", listing=rows), LIMITS, previous)


def _result(uri: str, etag: str) -> ImageResult:
    """What a model finds: a function of the image alone."""
    if etag == "bad":
        return ImageResult(uri, uri, etag, error=ImageError(ErrorCode.CORRUPT, "no pixels"))
    n = len(uri) % 3
    masks = np.zeros((9, 9, n), np.uint8, order="F")
    for i in range(n):
        masks[i : i + 3, :4, i] = 1
    rles = coco_mask.encode(masks)
    instances = Instances(
        height=9,
        width=9,
        boxes=coco_mask.toBbox(rles).astype(np.float32).reshape(n, 4),
        scores=np.linspace(0.9, 0.5, n).astype(np.float32),
        category_ids=np.ones(n, np.int32),
        areas=np.full(n, 12, np.int64),
        counts=[rle["counts"] for rle in rles],
    )
    return ImageResult(uri, uri, etag, 9, 9, instances)


def _commit(parts: Parts, unit: Unit) -> None:
    parts.commit(unit, [_result(member.uri, member.etag) for member in unit.members])


def _parts(folder: str, run: str) -> Parts:
    return Parts(Storage(), f"{folder}/e", "e", run, "CC0-1.0", ((1, "thing"),))


BEFORE = {f"/in/{'x' * (i % 5)}{i:02}": "bad" if i == 6 else "1" for i in range(20)}


@pytest.fixture
def first(tmp_path: Path) -> tuple[Parts, Plan]:
    plan = _plan(BEFORE)
    parts = _parts(str(tmp_path), plan.run)
    for unit in plan.units:
        _commit(parts, unit)
    return parts, decode_plan(encode_plan(plan))


def test_only_new_and_changed_images_are_left_to_do(
    first: tuple[Parts, Plan], tmp_path: Path
) -> None:
    old_parts, before = first
    names = sorted(BEFORE)
    after = BEFORE | {names[1]: "2", "/in/new": "1"}
    del after[names[9]]
    plan = _plan(after, before)
    parts = replace(old_parts, run=plan.run)
    committed = parts.committed_units()
    carried = carry_over(parts, plan, committed)
    assert carried == set(plan.carried)
    units_left = [unit for unit in plan.units if unit.unit not in committed | carried]
    uris_left = sorted(member.uri for unit in units_left for member in unit.members)
    assert uris_left == sorted([names[1], "/in/new"])

    parts.delete_all_but(dict.fromkeys(plan.units.ids(), 0))
    for unit in units_left:
        _commit(parts, unit)
    anew = _parts(f"{tmp_path}/anew", plan.run)
    for unit in plan.units:
        _commit(anew, unit)
    carried_files = {f"/{t}/{u}.parquet" for u in carried for t in ("images", "instances")}
    assert len(carried_files) == 4
    files, segmented_anew = part_bytes(parts.prefix), part_bytes(anew.prefix)
    assert all(files[name] == segmented_anew[name] for name in carried_files)
    assert parts.committed_units() == set(plan.units.ids())


def test_what_was_not_committed_or_is_damaged_is_not_carried(first: tuple[Parts, Plan]) -> None:
    parts, before = first
    names = sorted(BEFORE)
    plan = _plan({name: "1" for name in names if name not in names[::4]}, before)
    old_units = sorted(set(plan.carried.values()))
    assert len(old_units) == 5
    parts.storage.delete(parts.layout.part("images", old_units[0]))
    parts.storage.write(parts.layout.part("instances", old_units[1]), b"PAR1 no PAR1")
    uri = parts.layout.part("images", old_units[2])
    table = pq.read_table(uri)
    pq.write_table(table.slice(table.num_rows - 1), uri)
    carried = {plan.carried[unit] for unit in carry_over(parts, plan, parts.committed_units())}
    assert carried == set(old_units[3:])
    assert carry_over(parts, plan, parts.committed_units()) == set()  # those are committed now


listings = st.dictionaries(
    st.sampled_from([f"/in/{i:02}" for i in range(24)]), st.sampled_from("12")
)


@pytest.mark.slow
@given(listings, listings)
def test_every_unchanged_image_is_kept_or_carried(
    before: dict[str, str], after: dict[str, str]
) -> None:
    first = _plan(before)
    plan = _plan(after, first)
    kept = set(first.units.ids()) | set(plan.carried)
    reused = {m.uri for unit in plan.units if unit.unit in kept for m in unit.members}
    assert reused == {uri for uri, etag in after.items() if before.get(uri) == etag}
    by_id = {unit.unit: {m.uri for m in unit.members} for unit in [*first.units, *plan.units]}
    for unit, old in plan.carried.items():
        assert by_id[unit] < by_id[old]
        assert old not in set(plan.units.ids())


def test_pages_move_with_their_file(tmp_path: Path) -> None:
    before = _plan({"/in/a.tif": "1", "/in/b.tif": "1", "/in/c.png": "1"})
    parts = _parts(str(tmp_path), before.run)
    warning = ImageWarning(WarningCode.REPAIRED, "libjpeg warned")
    rows = []
    for uri, n_pages in (("/in/a.tif", 2), ("/in/b.tif", 3), ("/in/c.png", 1)):
        for page in range(1, n_pages + 1):
            row = replace(_result(uri, "1"), image_id=page_image_id(uri, page), page=page)
            rows.append(replace(row, warnings=(warning,)) if n_pages > 1 else _result(uri, "1"))
    (unit,) = before.units
    parts.commit(unit, rows)
    after = _plan({"/in/a.tif": "2", "/in/b.tif": "1", "/in/c.png": "1"}, before)
    (carried,) = carry_over(parts, after, {unit.unit})
    images, instances = parts.read_tables(carried)
    assert images["image_id"].to_pylist() == [
        "/in/b.tif", "/in/b.tif#page=2", "/in/b.tif#page=3", "/in/c.png"
    ]  # fmt: skip
    assert set(instances["image_id"].to_pylist()) <= set(images["image_id"].to_pylist())
    (counts,) = parts.read_counts([carried])
    assert (counts.ok, counts.warnings) == (4, {"repaired": 3})
