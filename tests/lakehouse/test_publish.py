"""Editions as Iceberg tables: the rows that readers find, whatever happens to the files meanwhile.

The tables must be equal, sorted and without the column `unit`, to what `open_results` reads of the
published edition; and every file that any snapshot refers to must keep its bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from segcore.errors import AccessDenied, SegcoreError, UsageError
from segcore.inspection.verify import verify_output
from segcore.lakehouse.iceberg import IcebergTable
from segcore.lakehouse.target import TableError
from segcore.lease.hold import hold_lease
from segcore.lease.lease import LeaseHeld
from segcore.output.layout import OutputLayout
from segcore.output.schema import IMAGES_SCHEMA
from segcore.run.compact import compact
from segcore.run.prune import prune
from segcore.run.publish import PublishReport, publish_edition
from segcore.storage import Storage
from tests.support import lake
from tests.support.bright_images import bright_png, bright_pngs
from tests.support.jobs import write_files
from tests.support.lake_changes import (
    AT_ONCE,
    CHANGES,
    check_refusal,
    new_edition,
    segment_again,
    seven_images,
)
from tests.support.nights import BLIND_MODEL, night, published_rows
from tests.support.run_without_ray import ProcessKilled, killed_when, without_ray

storage = Storage()
PATIENT = ("run.max_failed_fraction=0.5", "run.lease_ttl_s=60")


@pytest.fixture(autouse=True)
def _lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    lake.use_catalog(monkeypatch, tmp_path / "lake")
    with without_ray():
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output of an archive of seven images; one of them fails until it is mended."""
    monkeypatch.setenv("FAKE_MODEL_MENDED", str(tmp_path / "mended"))
    return seven_images(tmp_path / "a b")  # spaces are not escaped in Iceberg


def _publish(folder: Path, edition: str | None = None) -> PublishReport:
    output = str(folder / "out")
    edition = edition or next(p.parent.name for p in (folder / "out").glob("*/edition.json"))
    return publish_edition(storage, output, edition, to=lake.URL)


def _hashes(table: str) -> dict[str, str]:
    """The bytes of all files that any snapshot refers to."""
    opened = lake.lake_table(table)
    files = set()
    for snapshot in opened.snapshots():
        for task in opened.scan(snapshot_id=snapshot.snapshot_id).plan_files():
            files.add(task.file.file_path.removeprefix("file://"))
    return {name: hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in sorted(files)}


def _check(folder: Path) -> None:
    """Readers of the tables find what those of the output find, and the output is sound."""
    expected = published_rows(folder)
    assert lake.lake_rows() == expected
    assert lake.lake_rows(by="duckdb") == expected
    assert not verify_output(storage, str(folder / "out")).counts


def test_parts_are_registered_as_they_are_and_twice_is_once(folder: Path) -> None:
    before = {p: p.read_bytes() for p in (folder / "out").rglob("images/*.parquet")}
    first = _publish(folder)
    _check(folder)
    assert first.tables is not None
    assert (first.tables.changed, first.tables.images, first.tables.files) == (True, 7, 6)
    assert lake.data_files(lake.lake_table("images")) == sorted(map(str, before))
    assert {p: p.read_bytes() for p in before} == before
    again = _publish(folder)
    assert again.tables is not None
    assert not again.tables.changed
    for table in lake.TABLE_NAMES:
        assert len(lake.lake_table(table).snapshots()) == 2  # one is of the empty table
        assert list(lake.lake_table(table).metadata.refs) == ["main"]
        found = lake.marks(table)
        assert (found["segcore.edition"], found["segcore.run"]) == (first.edition, first.run)
        assert found["segcore.execution"]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_no_registered_file_changes_underneath(folder: Path, change: Callable[[Path], str]) -> None:
    _publish(folder)
    rows, kept = lake.lake_rows(), {table: _hashes(table) for table in lake.TABLE_NAMES}
    edition = change(folder)
    prune(storage, str(folder / "out"), keep=0, dry_run=False)
    compact(storage, str(folder / "out"), edition, AT_ONCE)  # deletes parts that it covers
    assert {table: _hashes(table) for table in lake.TABLE_NAMES} == kept
    assert lake.lake_rows() == rows  # until it is published again
    assert not verify_output(storage, str(folder / "out")).counts
    _publish(folder, edition)
    _check(folder)
    again = {table: _hashes(table) for table in lake.TABLE_NAMES}
    assert all(again[table].items() >= kept[table].items() for table in kept)
    assert not (tables := _publish(folder, edition).tables) or not tables.changed


def test_files_are_free_once_the_table_has_dropped_its_snapshots(folder: Path) -> None:
    old = _publish(folder).edition
    new = new_edition(folder)
    _publish(folder, new)
    output = str(folder / "out")
    (kept,) = [e for e in prune(storage, output, 0, dry_run=False).editions if e.edition == old]
    assert "a table refers to 6 files" in kept.reason
    for table in lake.TABLE_NAMES:
        opened = lake.lake_table(table)
        old_id = opened.snapshots()[1].snapshot_id
        opened.maintenance.expire_snapshots().by_id(old_id).commit()
    _publish(folder, new)  # sees what is left
    (gone,) = [e for e in prune(storage, output, 0, dry_run=False).editions if e.edition == old]
    assert gone.deleted
    _check(folder)


def test_a_run_at_work_makes_no_part_while_files_are_registered(folder: Path) -> None:
    layout = OutputLayout(str(folder / "out")).edition(segment_again(folder))
    with hold_lease(storage, layout.lease_folder, 60.0), pytest.raises(LeaseHeld):
        _publish(folder)
    assert lake.lake_rows() == {}


def test_overwriting_is_refused_while_a_table_has_the_files(folder: Path) -> None:
    _publish(folder)
    with pytest.raises(UsageError, match=r"6 files.*would change them underneath"):
        segment_again(folder, overwrite=True)
    _check(folder)


def _gaps(monkeypatch: pytest.MonkeyPatch, is_last: Callable[[str, str], bool]) -> None:
    """Let the process die before a step of publishing: `is_last` is told the step and the table."""

    def watched(name: str) -> Callable[..., object]:
        method = getattr(IcebergTable, name)

        def step(table: IcebergTable, *args: object) -> object:
            if is_last(name, table._table):
                raise ProcessKilled(name)
            return method(table, *args)

        return step

    for name in ("stage", "staged_rows", "forward"):
        monkeypatch.setattr(IcebergTable, name, watched(name))


STEPS = [
    (name, table) for name in ("stage", "staged_rows", "forward") for table in lake.TABLE_NAMES
]


@pytest.mark.parametrize("step", STEPS, ids=" ".join)
def test_a_death_at_each_gap_is_finished_by_the_next_call(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: tuple[str, str]
) -> None:
    table = f"schedule.table={lake.URL}"
    sets = (*PATIENT, table)
    assert night(folder, *sets).status == "published"
    before = published_rows(folder)
    write_files(folder / "in", {"new.png": bright_png(31)})
    with monkeypatch.context() as patch:
        _gaps(patch, lambda name, of: (name, of) == step)
        with pytest.raises(ProcessKilled):
            night(folder, *sets, "model.conf=0.5")
    assert published_rows(folder) == before
    found = lake.lake_rows()
    expected_instances_moved = step == ("forward", "images")
    assert found["images"] == before["images"]
    assert (found["instances"] == before["instances"]) != expected_instances_moved
    assert night(folder, *sets, "model.conf=0.5").status == "published"
    _check(folder)
    for name in lake.TABLE_NAMES:
        opened = lake.lake_table(name)
        assert len(opened.snapshots()) == 3  # an empty one, and one for each night
        assert list(opened.metadata.refs) == ["main"]
    assert night(folder, *sets, "model.conf=0.5").status == "nothing_to_do"


def test_a_death_before_the_pointer_and_while_files_are_pinned(folder: Path) -> None:
    table = (*PATIENT, f"schedule.table={lake.URL}")
    for place in ("/registered/", "latest.json"):
        with pytest.raises(ProcessKilled), killed_when(lambda n, kind, uri: place in uri):  # noqa: B023
            night(folder, *table, "model.conf=0.5", "gates.max_vanished=null")
    assert night(folder, *table, "model.conf=0.5", "gates.max_vanished=null").status == "published"
    _check(folder)


def test_tables_that_lag_are_brought_up_by_a_night_with_nothing_else_to_do(folder: Path) -> None:
    sets = PATIENT
    assert night(folder, *sets).status == "nothing_to_do"
    table = (*sets, f"schedule.table={lake.URL}")
    assert night(folder, *table).status == "published"
    _check(folder)
    assert night(folder, *table).status == "nothing_to_do"


def test_a_refused_edition_does_not_reach_the_tables(folder: Path) -> None:
    table = (*PATIENT, f"schedule.table={lake.URL}")
    night(folder, *table)
    write_files(folder / "in", {"new.png": bright_png(31)})
    refused = night(folder, *table, model=BLIND_MODEL)
    assert (refused.status, refused.exit_code, refused.updated) == ("refused", 4, True)
    _check(folder)  # with the new image, under the old model
    assert lake.marks("images")["segcore.edition"] == refused.before


def _refuses(folder: Path, error: type[SegcoreError], words: str) -> None:
    sets = (*PATIENT, f"schedule.table={lake.URL}")
    check_refusal(folder, partial(_publish, folder), sets, error, words)


def test_a_catalog_that_is_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__URI", "sqlite:////nowhere/at/all/catalog.db")
    lake.reload_config(monkeypatch)
    _refuses(folder, TableError, "of the catalog lake could not be opened: OperationalError")


def test_a_catalog_that_nobody_defined(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYICEBERG_CATALOG__LAKE__URI")
    monkeypatch.delenv("PYICEBERG_CATALOG__LAKE__TYPE")
    lake.reload_config(monkeypatch)
    _refuses(folder, TableError, "of the catalog lake could not be opened")


def test_a_catalog_that_may_not_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyiceberg.exceptions import ForbiddenError

    def refuse(self: object, *args: object) -> None:
        raise ForbiddenError("you may not load secret=abc123")

    monkeypatch.setattr("pyiceberg.catalog.sql.SqlCatalog.load_table", refuse)
    _refuses(folder, AccessDenied, "could not be opened: you may not")


OTHER_SCHEMAS = {
    "a column is missing": (IMAGES_SCHEMA.remove(3), "shard is string"),
    "a column has another type": (
        IMAGES_SCHEMA.set(5, pa.field("width", pa.string())), "width is int in results, and string"
    ),
    "another column is required": (
        IMAGES_SCHEMA.append(pa.field("team", pa.string(), nullable=False)), "asks for the column"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHER_SCHEMAS)
def test_a_table_with_another_schema(folder: Path, kind: str) -> None:
    from pyiceberg.catalog import load_catalog

    schema, words = OTHER_SCHEMAS[kind]
    catalog = load_catalog(lake.CATALOG)
    catalog.create_namespace("vision")
    catalog.create_table(lake.TABLE_NAMES["images"], schema=schema)
    _refuses(folder, UsageError, words)
    assert not catalog.table_exists(lake.TABLE_NAMES["instances"])


def test_a_table_of_others(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_files(other / "in", bright_pngs(3))
    segment_again(other)
    _publish(other)
    _refuses(folder, UsageError, "One pair of tables|holds the rows of")
    _check(other)


@pytest.mark.parametrize(
    "url",
    ["iceberg://lake/nuclei", "iceberg:///a.b", "hudi://x/y.z", "delta:///folder", "", "a.b",
     "iceberg://lake/a.b; DROP", "iceberg://user:secret@lake/a.b"],
)  # fmt: skip
def test_a_url_that_names_no_table(folder: Path, url: str) -> None:
    with pytest.raises(UsageError, match="names no table") as caught:
        publish_edition(storage, str(folder / "out"), segment_again(folder), to=url)
    assert "secret" not in caught.value.message
    with pytest.raises(SegcoreError):
        night(folder, *PATIENT, f"schedule.table={url or 'x'}")
