"""Plans are what a few lines over lists and dicts say they are, whatever lies in files meanwhile.

Chunks, batches and what stays in memory are made so small that all their boundaries are met.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.planning import plan_files, reuse
from segcore.planning.plan import Plan, make_plan
from segcore.planning.plan_files import decode_plan, encode_plan
from segcore.sources import unit_tables
from segcore.sources.objects import ObjectsSource
from segcore.sources.packed_members import inline_members
from segcore.sources.unit_tables import STORED_UNIT_SCHEMA, units_from_table
from segcore.sources.units import UnitLimits
from segcore.storage import listing, spill
from segcore.storage.listing import Listing


class Image(NamedTuple):
    uri: str
    etag: str
    size: int


class ExpectedUnit(NamedTuple):
    unit: str
    images: list[Image]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "CHUNK_ROWS", 3)
    monkeypatch.setattr(listing, "_RUN_CHUNKS", 2)
    monkeypatch.setattr(unit_tables, "BATCH_UNITS", 2)
    monkeypatch.setattr(plan_files, "BATCH_UNITS", 2)
    monkeypatch.setattr(reuse, "_BATCH_UNITS", 2)
    monkeypatch.setattr(unit_tables, "MEMORY_BYTES", 150)  # members of one or two units
    monkeypatch.setattr(spill.SpillFile.__init__, "__defaults__", (2000,))


def _unit(images: list[Image]) -> ExpectedUnit:
    members = [[image.uri, image.etag] for image in images]
    text = json.dumps(["objects", "", "", 0, len(images), "", members], separators=(",", ":"))
    return ExpectedUnit(hashlib.sha256(text.encode()).hexdigest()[:20], images)


def _cut(images: list[Image], limits: UnitLimits, n_all: int) -> Iterator[ExpectedUnit]:
    max_images = min(limits.images, max(-(-n_all // 16), 32))
    group: list[Image] = []
    for image in images:
        n_bytes = sum(max(size, 0) for *_, size in [*group, image])
        if group and (len(group) == max_images or n_bytes > limits.bytes):
            yield _unit(group)
            group = []
        group.append(image)
    if group:
        yield _unit(group)


def _expect(
    archive: list[Image],
    limits: UnitLimits,
    previous: list[ExpectedUnit],
    unlisted: list[tuple[Image, str]],
) -> tuple[list[ExpectedUnit], dict[str, str], set[str]]:
    """(units, carried, lost URIs)."""
    left = set(archive)
    kept, reduced, carried = [], [], {}
    for unit in previous:
        same = [image for image in unit.images if image in left]
        left -= set(same)
        if same == unit.images:
            kept.append(unit)
        elif same:
            reduced.append(_unit(same))
            carried[reduced[-1].unit] = unit.unit
    old = {(image.uri, image.etag): (row, unit) for row, (image, unit) in enumerate(unlisted)}
    returned: dict[str, list[tuple[int, Image]]] = {}
    for image in sorted(left):
        row, old_unit = old.get((image.uri, image.etag), (0, ""))
        if old_unit and image.etag and not image.etag.startswith("!"):
            returned.setdefault(old_unit, []).append((row, image))
            left.remove(image)
    for old_unit, images in returned.items():
        reduced.append(_unit([image for _, image in sorted(images)]))
        if reduced[-1].unit != old_unit:
            carried[reduced[-1].unit] = old_unit
    new = _cut(sorted(left), limits, len(archive))
    uris = {image.uri for image in archive}
    lost = {image.uri for unit in previous for image in unit.images if image.uri not in uris}
    return [*kept, *reduced, *new], carried, lost


def _stored(plan: Plan, expected: list[ExpectedUnit]) -> bytes:
    """The file of these units, written row by row."""
    metadata = {"segcore.plan": "1", "segcore.run": plan.run, "segcore.input": "/in",
                "segcore.fingerprint": ""}  # fmt: skip
    rows = [
        {"unit": unit, "kind": "objects", "shard": "", "etag": "", "start": 0, "reader": "",
         "stop": len(images), "n_images": len(images),
         "n_bytes": sum(max(image.size, 0) for image in images),
         "members": [{"image_id": None, **image._asdict()} for image in images]}
        for unit, images in expected
    ]  # fmt: skip
    sink = io.BytesIO()
    schema = STORED_UNIT_SCHEMA.with_metadata(metadata)
    with pq.ParquetWriter(
        sink, schema, compression="zstd", compression_level=3,
        use_dictionary=["kind", "shard", "etag", "reader"],
        column_encoding={"members.list.element.uri": "DELTA_BYTE_ARRAY"},
    ) as writer:  # fmt: skip
        for start in range(0, len(rows), unit_tables.BATCH_UNITS):
            batch = rows[start : start + unit_tables.BATCH_UNITS]
            writer.write_table(pa.Table.from_pylist(batch, schema))
    return sink.getvalue()


def _unlisted_table(unlisted: list[tuple[Image, str]]) -> pa.Table:
    rows = [
        {"uri": image.uri, "etag": image.etag, "shard": "", "unit": unit}
        for image, unit in unlisted
    ]
    text = [(name, pa.string()) for name in ("uri", "etag", "shard", "unit")]
    return pa.Table.from_pylist(rows, pa.schema(text))


archives = st.dictionaries(
    st.text("ab/é\n\"\\", min_size=1, max_size=3).map(lambda name: "/in/" + name),
    st.tuples(st.sampled_from(["", "1", "2", "!link"]), st.integers(-1, 5)),
    max_size=40,
)  # fmt: skip
limits = st.builds(UnitLimits, images=st.integers(1, 5), bytes=st.integers(1, 12))


@pytest.mark.slow
@settings(max_examples=40)
@given(st.lists(st.tuples(archives, limits), min_size=1, max_size=3), st.data())
def test_plans_are_what_lists_and_dicts_say(
    steps: list[tuple[dict[str, tuple[str, int]], UnitLimits]], data: st.DataObject
) -> None:
    previous: Plan | None = None
    units: list[ExpectedUnit] = []
    unlisted: list[tuple[Image, str]] = []
    for archive, unit_limits in steps:
        images = [Image(uri, *version) for uri, version in archive.items()]
        repeated = data.draw(st.lists(st.sampled_from(images))) if images else []
        rows = (
            (uri, size, etag) for uri, etag, size in data.draw(st.permutations(images)) + repeated
        )
        source = ObjectsSource(input="/in", kind="images", listing=Listing.from_rows(rows))
        table = _unlisted_table(unlisted) if unlisted else None
        plan = make_plan(source, unit_limits, previous, table)
        gone = [(image, unit.unit) for unit in units for image in unit.images
                if image.uri not in archive]  # fmt: skip
        total = sum(len(unit.images) for unit in units)
        units, carried, lost = _expect(images, unit_limits, units, unlisted)
        _compare(plan, units, carried)
        assert (plan.lost.total, plan.lost.lost) == (total, len(lost))
        assert set(plan.lost.examples) <= lost
        data_of_plan = encode_plan(plan)
        assert data_of_plan == _stored(plan, units)
        previous = decode_plan(data_of_plan)
        _compare(previous, units, {})
        unlisted = list({image.uri: (image, unit) for image, unit in gone}.values())


def _compare(plan: Plan, expected: list[ExpectedUnit], carried: dict[str, str]) -> None:
    found = [
        ExpectedUnit(unit.unit, [Image(m.uri, m.etag, m.size) for m in unit.members])
        for unit in plan.units
    ]
    assert found == expected
    assert plan.carried == carried
    # What other processes get has the members in it.
    assert list(units_from_table(inline_members(plan.units.table))) == list(plan.units)


def test_units_of_another_process_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from segcore.errors import SegcoreError
    from segcore.sources import packed_members

    rows: list[Any] = [(f"/in/{i}", 1, "e") for i in range(40)]
    source = ObjectsSource(input="/in", kind="images", listing=Listing.from_rows(rows))
    plan = make_plan(source, UnitLimits(images=2))
    inlined = inline_members(plan.units.table)
    monkeypatch.setattr(packed_members, "_process_token", b"elsewhere")
    assert len(list(units_from_table(inlined))) == 20
    with pytest.raises(SegcoreError, match="handed to another process"):
        list(plan.units)
