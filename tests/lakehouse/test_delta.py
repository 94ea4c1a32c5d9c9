"""Editions as Delta tables: the rows that readers find, whatever happens to the output meanwhile.

They are read by the specification of the protocol, by both engines of deltalake, and by DuckDB from
the files that deltalake names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from segcore.errors import AccessDenied, SegcoreError, UsageError
from segcore.inspection.verify import verify_output
from segcore.lakehouse.delta import DeltaLakeTable
from segcore.lakehouse.target import TableError
from segcore.output.schema import IMAGES_SCHEMA
from segcore.run.compact import compact
from segcore.run.prune import prune
from segcore.run.publish import PublishReport, publish_edition
from segcore.run.segment import segment
from segcore.storage import Storage
from tests.support.bright_images import bright_png, bright_pngs
from tests.support.delta_log import TABLES, delta_files, delta_rows, delta_versions
from tests.support.jobs import job_config, write_files
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
READERS = ("specification", "pyarrow", "query", "duckdb")
TO_DELTA = ("run.max_failed_fraction=0.5", "run.lease_ttl_s=60", "schedule.table=delta")


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    pytest.importorskip("deltalake", reason="the extra lakehouse")
    with without_ray():
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output of an archive of seven images; one of them fails until it is mended."""
    monkeypatch.setenv("FAKE_MODEL_MENDED", str(tmp_path / "mended"))
    return seven_images(tmp_path / "a #b ä")


def _publish(folder: Path, edition: str | None = None) -> PublishReport:
    output = str(folder / "out")
    edition = edition or next(p.parent.name for p in (folder / "out").glob("*/edition.json"))
    return publish_edition(storage, output, edition, to="delta")


def _check(folder: Path) -> None:
    """Readers of the tables find what those of the output find, and the output is sound."""
    expected = published_rows(folder)
    for reader in READERS:
        assert delta_rows(str(folder / "out"), by=reader) == expected, reader
    assert not verify_output(storage, str(folder / "out")).counts


def test_files_are_links_and_twice_is_once(folder: Path) -> None:
    first = _publish(folder)
    _check(folder)
    assert first.tables is not None
    assert (first.tables.changed, first.tables.images, first.tables.files) == (True, 7, 6)
    for table in TABLES:
        parts = {path.stat().st_ino for path in (folder / "out").glob(f"*/{table}/*.parquet")}
        (version,) = delta_versions(str(folder / "out"), table)
        places = [folder / "out" / "delta" / table / path for path in version["files"]]
        assert {path.stat().st_ino for path in places} == parts
        assert version["commit"]["segcore.edition"] == first.edition
        assert version["txn"][f"segcore.edition={first.edition}"] == version["txn"]["segcore"] == 1
    again = _publish(folder)
    assert again.tables is not None
    assert not again.tables.changed
    assert [len(delta_versions(str(folder / "out"), table)) for table in TABLES] == [1, 1]


def test_a_disk_without_links_gets_copies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(18, os.strerror(18))

    monkeypatch.setattr("os.link", refuse)
    _publish(folder)
    _check(folder)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_no_version_changes_underneath(folder: Path, change: Callable[[Path], str]) -> None:
    output = str(folder / "out")
    _publish(folder)
    rows, kept = delta_rows(output, by="pyarrow"), delta_files(folder / "out")
    edition = change(folder)
    prune(storage, output, keep=0, dry_run=False)
    compact(storage, output, edition, AT_ONCE)  # deletes parts that it covers
    assert delta_files(folder / "out") == kept
    assert delta_rows(output, by="query") == rows  # until it is published again
    _publish(folder, edition)
    _check(folder)
    assert delta_files(folder / "out").items() >= kept.items()
    assert delta_rows(output, by="specification", version=0) == rows
    assert [len(delta_versions(output, table)) for table in TABLES] == [2, 2]
    assert not (tables := _publish(folder, edition).tables) or not tables.changed


def test_an_edition_made_again_with_overwrite(folder: Path) -> None:
    edition = _publish(folder).edition
    kept = delta_files(folder / "out")
    (folder.parent / "mended").touch()  # the same names, other bytes
    segment_again(folder, overwrite=True)
    assert delta_files(folder / "out") == kept
    _publish(folder, edition)
    _check(folder)
    assert delta_files(folder / "out").items() >= kept.items()


def test_going_back_to_an_edition_and_vacuum(folder: Path) -> None:
    from deltalake import DeltaTable

    old = _publish(folder).edition
    rows = published_rows(folder)
    _publish(folder, new_edition(folder))
    for table in TABLES:
        opened = DeltaTable(str(folder / "out" / "delta" / table))
        gone = opened.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
        assert len(gone) == 3
    _check(folder)
    _publish(folder, old)
    _check(folder)
    assert published_rows(folder) == rows


def test_optimized_by_others_and_published_again(folder: Path) -> None:
    from deltalake import DeltaTable

    _publish(folder)
    for table in TABLES:
        DeltaTable(str(folder / "out" / "delta" / table)).optimize.compact()
    expected = published_rows(folder)
    for reader in READERS[1:]:
        assert delta_rows(str(folder / "out"), by=reader) == expected
    tables = _publish(folder).tables
    assert tables is not None
    assert not tables.changed, "the rows are those that were published"
    write_files(folder / "in", {"new.png": bright_png(31)})
    _publish(folder, segment_again(folder))
    for reader in READERS[1:]:
        assert delta_rows(str(folder / "out"), by=reader) == published_rows(folder)


def test_rows_are_found_by_the_statistics(folder: Path) -> None:
    import deltalake

    _publish(folder)
    opened = deltalake.DeltaTable(str(folder / "out" / "delta" / "images"))
    for row in published_rows(folder)["images"]:
        name = row["image_id"]
        assert opened.to_pyarrow_table(filters=[("image_id", "=", name)]).num_rows == 1
        query = deltalake.QueryBuilder().register("t", opened)
        found = query.execute(f"SELECT * FROM t WHERE image_id = '{name}'").read_all()
        assert pa.table(found).num_rows == 1


STEPS = [(name, table) for name in ("stage", "staged_rows", "forward") for table in TABLES]


@pytest.mark.parametrize("step", STEPS, ids=" ".join)
def test_a_death_at_each_gap_is_finished_by_the_next_call(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: tuple[str, str]
) -> None:
    output = str(folder / "out")
    assert night(folder, *TO_DELTA).status == "published"
    before = published_rows(folder)
    write_files(folder / "in", {"new.png": bright_png(31)})
    with monkeypatch.context() as patch:
        _die_before(patch, *step)
        with pytest.raises(ProcessKilled):
            night(folder, *TO_DELTA, "model.conf=0.5")
    assert published_rows(folder) == before
    found = delta_rows(output, by="query")
    assert found["images"] == before["images"]
    assert (found["instances"] == before["instances"]) == (step != ("forward", "images"))
    assert night(folder, *TO_DELTA, "model.conf=0.5").status == "published"
    _check(folder)
    assert [len(delta_versions(output, table)) for table in TABLES] == [2, 2]
    assert night(folder, *TO_DELTA, "model.conf=0.5").status == "nothing_to_do"


def _die_before(patch: pytest.MonkeyPatch, name: str, table: str) -> None:
    method = getattr(DeltaLakeTable, name)

    def step(self: DeltaLakeTable, *args: object) -> object:
        if self._table == table:
            raise ProcessKilled(name)
        return method(self, *args)

    patch.setattr(DeltaLakeTable, name, step)


def test_a_death_between_the_files_and_before_the_pointer(folder: Path) -> None:
    changes = iter(range(1000))
    for last in (1, 4):
        with pytest.MonkeyPatch.context() as patch:
            bring = Storage.link_or_copy

            def watched(self: Storage, *uris: str, stop: int = last, bring=bring) -> None:  # type: ignore[no-untyped-def]
                if next(changes) == stop:
                    raise ProcessKilled(uris[0])
                bring(self, *uris)

            patch.setattr(Storage, "link_or_copy", watched)
            with pytest.raises(ProcessKilled):
                night(folder, *TO_DELTA, "model.conf=0.5", "gates.max_vanished=null")
        assert delta_rows(str(folder / "out"), by="specification") == {}
    with pytest.raises(ProcessKilled), killed_when(lambda n, kind, uri: "latest.json" in uri):
        night(folder, *TO_DELTA, "model.conf=0.5", "gates.max_vanished=null")
    report = night(folder, *TO_DELTA, "model.conf=0.5", "gates.max_vanished=null")
    assert report.status == "published"
    _check(folder)


def test_tables_that_lag_and_a_refused_edition(folder: Path) -> None:
    assert night(folder, *TO_DELTA[:2]).status == "nothing_to_do"
    assert night(folder, *TO_DELTA).status == "published"
    _check(folder)
    assert night(folder, *TO_DELTA).status == "nothing_to_do"
    write_files(folder / "in", {"new.png": bright_png(31)})
    refused = night(folder, *TO_DELTA, model=BLIND_MODEL)
    assert (refused.status, refused.exit_code, refused.updated) == ("refused", 4, True)
    _check(folder)  # with the new image, under the old model


def test_an_output_that_was_moved_takes_its_tables_along(folder: Path, tmp_path: Path) -> None:
    edition = _publish(folder).edition
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    _check(moved)
    _publish(moved, edition)
    _check(moved)


def _refuses(folder: Path, error: type[SegcoreError], words: str) -> None:
    check_refusal(folder, partial(_publish, folder), TO_DELTA, error, words)


OTHER_TABLES = {
    "a column is missing": ({}, IMAGES_SCHEMA.remove(3), "shard is PrimitiveType"),
    "a column has another type": (
        {}, IMAGES_SCHEMA.set(5, pa.field("width", pa.string())), "has another schema: width"
    ),
    "another column is required": (
        {}, IMAGES_SCHEMA.append(pa.field("team", pa.string(), nullable=False)), "asks for the col"
    ),
    "of somebody else": ({}, IMAGES_SCHEMA, "was not made by segcore"),
    "partitioned": ({"partition_by": ["status"]}, IMAGES_SCHEMA, "is partitioned"),
    "append only": (
        {"configuration": {"delta.appendOnly": "true"}}, IMAGES_SCHEMA, "delta.appendOnly"
    ),
    "a newer protocol": (
        {"configuration": {"delta.enableDeletionVectors": "true"}}, IMAGES_SCHEMA, "of version 3"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHER_TABLES)
def test_a_table_that_cannot_take_results(folder: Path, kind: str) -> None:
    from deltalake import DeltaTable

    options, schema, words = OTHER_TABLES[kind]
    DeltaTable.create(folder / "out" / "delta" / "images", schema, **options)
    _refuses(folder, UsageError, words)
    assert not (folder / "out" / "delta" / "instances").exists()


def test_a_log_that_is_damaged_or_may_not_be_written(folder: Path) -> None:
    _publish(folder)
    log = folder / "out" / "delta" / "images" / "_delta_log" / f"{0:020}.json"
    kept = log.read_bytes()
    log.write_bytes(kept[: len(kept) // 2])
    _refuses(folder, TableError, "could not be (opened|read)")
    log.write_bytes(kept)
    _check(folder)


def test_a_commit_that_is_denied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError("Generic S3 error: 403 Forbidden <Code>AccessDenied</Code>")

    monkeypatch.setattr("deltalake.transaction.create_table_with_add_actions", refuse)
    _refuses(folder, AccessDenied, "could not be written: Generic S3 error")
    assert delta_rows(str(folder / "out"), by="specification") == {}


def test_rows_that_the_run_did_not_count(folder: Path) -> None:
    edition = segment_again(folder)
    layout = folder / "out" / edition
    record = next((layout / "runs").glob("*.json"))
    record.write_text(record.read_text().replace('"instances": ', '"instances": 1'))
    with pytest.raises(TableError, match="but the run counted"):
        _publish(folder)
    assert delta_rows(str(folder / "out"), by="specification") == {}


@pytest.mark.parametrize("name", ["50%41", "back\\slash", "new\nline"])
def test_a_folder_that_the_library_cannot_name(folder: Path, name: str) -> None:
    moved = folder.with_name(name)
    folder.rename(moved)
    with pytest.raises(UsageError, match="cannot use a folder with a percent sign"):
        _publish(moved)


@pytest.mark.s3
def test_on_s3_the_server_copies(s3_prefix: str) -> None:
    def run(*sets: str) -> str:
        return segment(job_config(f"{s3_prefix}/in", f"{s3_prefix}/out", *sets)).edition

    for name, data in bright_pngs(8).items():
        storage.write(f"{s3_prefix}/in/{name}", data)
    output, edition = f"{s3_prefix}/out", run()
    reports = [publish_edition(storage, output, edition, to="delta").tables for _ in range(2)]
    assert [report and report.changed for report in reports] == [True, False]
    storage.write(f"{s3_prefix}/in/new.png", bright_png(20))
    changed = run("model.conf=0.5")
    publish_edition(storage, output, changed, to="delta")
    prune(storage, output, keep=0, dry_run=False)
    fresh = f"{s3_prefix}/fresh"
    segment(job_config(f"{s3_prefix}/in", fresh, "model.conf=0.5"))
    publish_edition(storage, fresh, changed, to="delta")
    expected = delta_rows(fresh, by="specification")
    for reader in ("specification", "pyarrow", "query"):
        assert delta_rows(output, by=reader) == expected
    assert len(expected["images"]) == 9
    assert not verify_output(storage, output).counts
