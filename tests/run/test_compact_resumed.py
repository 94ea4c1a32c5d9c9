"""A compaction that died, other commands in between, and the same compaction once more."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import duckdb
import pytest

from segcore.inspection.verify import verify_output
from segcore.output.results import open_results
from segcore.run.compact import compact
from segcore.run.compact_plan import CompactOptions
from segcore.run.compact_report import CompactReport
from segcore.run.prune import prune
from segcore.run.segment import segment
from segcore.storage import Storage
from tests.support.bright_images import bright_png
from tests.support.jobs import job_config, write_files
from tests.support.run_without_ray import ProcessKilled, killed_when

pytestmark = pytest.mark.usefixtures("serial")
storage = Storage()
FILE_PER_UNIT = CompactOptions(file_bytes=1)


def _segment(folder: Path, *sets: str, **options: bool) -> str:
    """Run on the archive as it is now; the edition."""
    sets = ("plan.images=2", "source.allow_shrunk_listing=true", *sets)
    return segment(job_config(folder / "in", folder / "out", *sets), **options).edition


def _change(folder: Path) -> None:
    write_files(folder / "in", {"003.png": bright_png(77)})


def _lose(folder: Path) -> None:
    (folder / "in" / "003.png").unlink()


def _grow(folder: Path) -> None:
    write_files(folder / "in", {"new.png": bright_png(77)})


def _compact_until(folder: Path, is_last: Callable[[int, str, str], bool]) -> None:
    with pytest.raises(ProcessKilled), killed_when(is_last):
        compact(storage, str(folder / "out"), None, FILE_PER_UNIT)


def _compact_and_check(folder: Path, edition: str) -> CompactReport:
    """Compacted files are exactly the results right after a compaction, as docs/output.md says."""
    output = str(folder / "out")
    report = compact(storage, output, edition, FILE_PER_UNIT)
    rows = open_results(storage, output, edition, include_unlisted=True).to_arrow("images")
    expected = zip(rows["image_id"].to_pylist(), rows["etag"].to_pylist(), strict=True)
    query = f"SELECT image_id, etag FROM read_parquet('{report.images}')"
    assert sorted(duckdb.sql(query).fetchall()) == sorted(expected)
    assert compact(storage, output, edition, FILE_PER_UNIT).nothing_to_do
    assert not verify_output(storage, output, edition).counts
    return report


@pytest.mark.slow
@pytest.mark.parametrize("change", [_change, _lose, _grow])
@pytest.mark.parametrize("last", [2, 8, 14])  # work is written; some files are; only the pointer
def test_what_a_run_did_since_a_compaction_died_is_in_its_files(
    folder: Path, change: Callable[[Path], None], last: int
) -> None:
    _segment(folder)
    _compact_until(folder, lambda n, kind, uri: n == last)
    change(folder)
    _compact_and_check(folder, _segment(folder))


def test_files_of_a_compaction_that_died_are_of_use_to_an_archive_that_grew(folder: Path) -> None:
    _segment(folder)
    _compact_until(folder, lambda n, kind, uri: uri.endswith("images/00002.parquet"))
    _grow(folder)
    edition = _segment(folder)
    writes: list[str] = []
    with killed_when(lambda n, kind, uri: bool(writes.append(uri))):  # nobody dies
        assert _compact_and_check(folder, edition).generation.startswith("000002-")
    resumed = [uri for uri in writes if "/000001-" in uri and "/images/" in uri]
    assert not any(uri.endswith(("00000.parquet", "00001.parquet")) for uri in resumed)
    assert resumed


def test_parts_whose_deletion_was_not_marked_do_not_come_back(folder: Path) -> None:
    _segment(folder)
    _compact_until(folder, lambda n, kind, uri: uri.endswith("units.parquet"))
    _change(folder)
    with pytest.raises(ProcessKilled), killed_when(lambda n, kind, uri: "/withdrawn/" in uri):
        _segment(folder)
    _compact_and_check(folder, _segment(folder))


@pytest.mark.slow
@pytest.mark.parametrize("last", range(2, 8, 2))
def test_rows_of_a_deleted_edition_do_not_come_back(folder: Path, last: int) -> None:
    _segment(folder)
    edition = _segment(folder, "model.conf=0.5")
    compact(storage, str(folder / "out"), edition, FILE_PER_UNIT)
    with suppress(ProcessKilled), killed_when(lambda n, kind, uri: n == last):
        prune(storage, str(folder / "out"), 0, dry_run=False)
    _change(folder)
    (folder / "in" / "005.png").unlink()
    _compact_and_check(folder, _segment(folder, "model.conf=0.5"))
