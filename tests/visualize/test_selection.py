"""Which images are shown: against a plain search through all rows."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcore.errors import UsageError
from segcore.output.image_rows import RECORD_COLUMNS, ImageRecord
from segcore.output.layout import EditionLayout
from segcore.output.results import Results
from segcore.output.schema import IMAGES_SCHEMA
from segcore.storage import Storage
from segcore.visualize.selection import Choice, Selection, select_images

SCHEMA = pa.schema([IMAGES_SCHEMA.field(name) for name in RECORD_COLUMNS])


class _Rows(Results):
    """Results whose `images` table is in memory, two rows in a unit."""

    def read_rows(self, table: str, unit: str, columns: Sequence[str]) -> pa.Table:
        start = int(unit, 16)
        records = self.edition["records"][start : start + 2]
        rows = [{**vars(record), "unit": unit} for record in records]
        return pa.Table.from_pylist(rows, SCHEMA).select(list(columns))


def _results(records: Sequence[ImageRecord]) -> Results:
    units = tuple(f"{start:08x}" for start in range(0, len(records), 2))
    return _Rows(Storage(), EditionLayout("out/edition"), {"records": records}, units)


def _record(image_id: str, n_instances: int = 0, failed: bool = False) -> ImageRecord:
    status = ("failed", "corrupt", "it is") if failed else ("ok", None, None)
    return ImageRecord(image_id, image_id, "", "", "", 1, 1, *status, n_instances, None)


letters = st.lists(st.sampled_from(list("ab/#*?.[(\n\\é")), max_size=6).map("".join)
images = st.builds(_record, letters, st.integers(0, 3), st.booleans())


def _wanted(record: ImageRecord, choice: Choice) -> bool:
    if choice == Choice.FIRST:
        return True
    if choice == Choice.FAILED:
        return record.status == "failed"
    return record.status == "ok" and (choice != Choice.EMPTY or record.n_instances == 0)


def _plainly_named(records: Sequence[ImageRecord], name: str) -> list[ImageRecord]:
    def ends(image_id: str) -> list[str]:
        return [image_id, *(image_id[m.end() :] for m in re.finditer(r"[/#\\]", image_id))]

    pattern = re.compile(fnmatch.translate(name.replace("[", "[[]")))
    for matches in (
        lambda image_id: image_id == name,
        lambda image_id: name in ends(image_id),
        lambda image_id: any(pattern.match(end) for end in ends(image_id)),
    ):
        found = [record for record in records if matches(record.image_id)]
        if found:
            return found
    return []


@given(
    records=st.lists(images, max_size=12, unique_by=lambda record: record.image_id),
    choice=st.sampled_from(Choice),
    name=letters,
    limit=st.integers(1, 4),
    seed=st.integers(0, 3),
)
def test_equals_a_plain_search(
    records: list[ImageRecord], choice: Choice, name: str, limit: int, seed: int
) -> None:
    selection = Selection(choice, name, limit, seed)
    named = _plainly_named(records, name) if name else records
    if name and not named:
        with pytest.raises(UsageError, match="has no image"):
            select_images(_results(records), selection)
        return
    expected = [record for record in named if _wanted(record, choice)]
    selected = select_images(_results(records), selection)
    assert selected.n_matching == len(expected)
    found = [replace(record, unit="") for record in selected.records]
    assert len(found) == min(limit, len(expected))
    if choice == Choice.CROWDED:
        expected.sort(key=lambda record: -record.n_instances)
    if choice == Choice.RANDOM:
        assert {record.image_id for record in found} <= {record.image_id for record in expected}
        assert select_images(_results(records), selection) == selected
    else:
        assert found == expected[:limit]


def test_random_images_depend_on_the_seed_and_reach_all() -> None:
    results = _results([_record(f"{number}.png") for number in range(9)])
    seen = [
        frozenset(r.image_id for r in select_images(results, Selection(limit=3, seed=s)).records)
        for s in range(40)
    ]
    assert len(set(seen)) > 10
    assert len(frozenset().union(*seen)) == 9


def test_ids_that_are_like_the_one_asked_for_are_named() -> None:
    results = _results([_record(f"in/photo{number}.jpg") for number in range(30)])
    with pytest.raises(UsageError) as error:
        select_images(results, Selection(Choice.FIRST, "phot07.jpg"))
    assert "in/photo7.jpg" in error.value.hint
    with pytest.raises(UsageError) as error:
        select_images(results, Selection(Choice.FIRST, "zzz"))
    assert "30 images have ids such as in/photo0.jpg" in error.value.hint
