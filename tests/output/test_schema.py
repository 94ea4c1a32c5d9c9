"""The columns of schema 2, what DuckDB sees of them, and outputs of schema 1 read with defaults."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from segcore.errors import ErrorCode, ImageError, ImageWarning, WarningCode
from segcore.instances import Instances
from segcore.output.part_counts import PartCounts
from segcore.output.parts import Parts
from segcore.output.results import open_results
from segcore.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA, schema_of
from segcore.output.tables import ImageResult, results_from_tables
from segcore.sources.units import Member, make_unit
from segcore.storage import Storage
from tests.support.reports import account_of

SCHEMA1 = Path(__file__).parent.parent / "compat" / "schema1" / "output"
PAGES = ImageWarning(WarningCode.PAGES_LEFT_OUT, "1,200 pages after the first are not read")
NARROW = ImageWarning(WarningCode.NARROW_RANGE, "little contrast")


def _commit(folder: Path) -> tuple[Parts, PartCounts]:
    names = ("a", "b", "c")
    members = [Member(name, name, "1", 1) for name in names]
    unit = make_unit("objects", stop=3, n_images=None, n_bytes=3, members=members)
    empty = Instances.empty(2, 3)
    rows = [
        ImageResult("a", "a", "1", 3, 2, empty, warnings=(PAGES, NARROW)),
        ImageResult("b", "b", "1", 3, 2, empty, warnings=(NARROW,), page=2),
        ImageResult("c", "c", "1", error=ImageError(ErrorCode.CORRUPT, "bad"), warnings=(PAGES,)),
    ]
    parts = Parts(Storage(), str(folder), "e", "r", "CC0-1.0", ((1, "one"),))
    return parts, parts.commit(unit, rows, {"inner_archives": 1})


def test_warnings_and_pages_are_columns_that_duckdb_counts(tmp_path: Path) -> None:
    parts, _ = _commit(tmp_path)
    rows = duckdb.sql(
        "select split_part(warning, ':', 1) code, count(*) n from (select unnest(warnings) warning "
        f"from '{parts.prefix}/images/*.parquet') group by 1 order by 1"
    ).fetchall()
    assert rows == [("narrow_range", 2), ("pages_left_out", 2)]
    files = f"select count(*) from '{parts.prefix}/images/*.parquet'"
    assert duckdb.sql(f"{files} where len(warnings) = 0").fetchall() == [(0,)]
    assert duckdb.sql(f"{files} where page is not null").fetchall() == [(1,)]


def test_counts_of_warnings_follow_from_the_rows(tmp_path: Path) -> None:
    parts, counts = _commit(tmp_path)
    assert counts.warnings == {"narrow_range": 2, "pages_left_out": 2}
    assert counts.notes == {"inner_archives": 1, "pages_left_out": 2400}
    assert list(parts.read_counts([counts.unit])) == [counts]
    images, instances = parts.read_tables(counts.unit)
    carried = PartCounts.of_tables(counts.unit, images, instances)
    assert (carried.warnings, carried.notes) == (counts.warnings, {"pages_left_out": 2400})
    reused = results_from_tables(images, instances)
    assert [(row.warnings, row.page) for row in reused] == [((PAGES, NARROW), None), ((NARROW,), 2)]
    account = account_of({counts.unit: None}, [counts])
    assert account.warnings == counts.warnings


@pytest.mark.parametrize("kind", ["loose", "tars", "tables"])
def test_schema_1_is_read_with_the_defaults_of_the_new_columns(kind: str) -> None:
    results = open_results(Storage(), str(SCHEMA1 / kind))
    images, instances = list(results.images()), list(results.instances())
    assert {table.schema.remove_metadata() for table in images} == {IMAGES_SCHEMA}
    assert {table.schema.remove_metadata() for table in instances} == {INSTANCES_SCHEMA}
    rows = [row for table in images for row in table.to_pylist()]
    assert {(tuple(row["warnings"]), row["page"]) for row in rows} == {((), None)}
    places = {
        (row["window_x"], row["window_y"], row["geometry"])
        for table in instances
        for row in table.to_pylist()
    }
    assert places == {(0, 0, None)}
    columns = ["page", "image_id", "warnings"]
    assert next(results.images(columns)).column_names == columns
    stored = pq.read_table(results.layout.part("images", results.units[0]))
    assert stored.schema.remove_metadata() == schema_of("images", 1)
    assert images[0].select(stored.column_names).equals(stored)


def test_texts_of_warnings_are_read_back() -> None:
    for warning in (PAGES, NARROW, ImageWarning(WarningCode.REPAIRED, "a: b, c")):
        assert ImageWarning.parse(str(warning)) == warning
    assert (PAGES.n_left_out, NARROW.n_left_out) == (1200, 0)
    with pytest.raises(ValueError, match="nonsense"):
        ImageWarning.parse("nonsense: text")
