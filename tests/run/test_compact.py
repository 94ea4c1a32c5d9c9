"""Compaction changes where rows lie and nothing else, whatever dies or runs at the same time.

Outputs are compared with a model of a few lines (`tests.run.test_settle`): which image has which
version. Processes die before any change of storage; runs and compactions happen between any two
changes of each other; and DuckDB reads what the documentation says it may read.
"""

from __future__ import annotations

import os
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.errors import SegcoreError, StorageError
from segcore.inspection.status import read_status
from segcore.inspection.verify import verify_output
from segcore.lease.hold import hold_lease
from segcore.lease.lease import LeaseHeld
from segcore.output.compacted_rows import CompactedParts
from segcore.output.compaction import read_pointer
from segcore.output.layout import EditionLayout, OutputLayout, Table
from segcore.output.parts import Parts
from segcore.output.results import open_results
from segcore.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
from segcore.run.compact import compact
from segcore.run.compact_plan import CompactOptions, NotSettled
from segcore.run.compact_report import CompactReport
from segcore.run.segment import segment
from segcore.storage import Storage
from tests.run.test_settle import SEVEN, TWELVE, Archive, Versions, archives
from tests.support.fake_models import RAISES, BrightModel
from tests.support.finished_output import FinishedOutput, finish_run
from tests.support.jobs import job_config
from tests.support.run_without_ray import ProcessKilled, killed_when, without_ray

storage = Storage()
TABLES: tuple[Table, Table] = ("images", "instances")
AT_ONCE = CompactOptions(grace_s=0.0)
FILE_PER_UNIT = CompactOptions(file_bytes=1, grace_s=0.0)
SORTED = CompactOptions(sort="category,score", grace_s=0.0)
ALL_OPTIONS = [CompactOptions(), AT_ONCE, FILE_PER_UNIT, SORTED]


@pytest.fixture(autouse=True, scope="module")
def _no_ray() -> Iterator[None]:
    with without_ray():
        yield


def _rows(output: str, *, include_unlisted: bool = False) -> dict[str, list[str]]:
    """All rows that readers get, as sorted texts; an output that is gone on with loses no row."""
    results = open_results(storage, output, include_unlisted=include_unlisted)
    images = [str(row) for table in results.images() for row in table.to_pylist()]
    instances = [str(row) for table in results.instances() for row in table.to_pylist()]
    return {"images": sorted(images), "instances": sorted(instances)}


def _duckdb_rows(query: str, table: Table) -> list[str]:
    schema = IMAGES_SCHEMA if table == "images" else INSTANCES_SCHEMA
    rows = duckdb.sql(query).to_arrow_table().select(schema.names).cast(schema)
    return sorted(map(str, rows.to_pylist()))


def _check_sql(output: str) -> None:
    """`Results.sql` gives the rows that readers get."""
    for include_unlisted in (False, True):
        results = open_results(storage, output, include_unlisted=include_unlisted)
        rows = _rows(output, include_unlisted=include_unlisted)
        for table in TABLES:
            if results.units:
                assert _duckdb_rows(results.sql(table), table) == rows[table]


def _check_glob(report: CompactReport, output: str) -> None:
    """The documented pattern finds exactly the results, those of unlisted images among them."""
    rows = _rows(output, include_unlisted=True)
    for table, pattern in zip(TABLES, (report.images, report.instances), strict=True):
        query = f"SELECT * FROM read_parquet('{pattern}')"
        assert _duckdb_rows(query, table) == rows[table]


def _check_verified(output: str) -> None:
    checked = verify_output(storage, output, threads=1, include_unlisted=True)
    assert checked.problems == []


def _compact(output: str, options: CompactOptions = AT_ONCE) -> CompactReport:
    return compact(storage, output, options=options)


def _versions(archive: Archive, *, include_unlisted: bool) -> Versions:
    results = open_results(storage, f"{archive.folder}/out", include_unlisted=include_unlisted)
    rows = [row for table in results.images() for row in table.to_pylist()]
    names = [archive.name(row["image_id"]) for row in rows]
    assert len(set(names)) == len(names), names
    masks = sum(table.num_rows for table in results.instances())
    assert masks == sum(row["n_instances"] for row in rows)
    return {name: row["width"] - 40 for name, row in zip(names, rows, strict=True)}


@contextmanager
def interrupted_by(n_changes: int, action: Callable[[], object]) -> Iterator[list[int]]:
    """Within the block, something happens once, before the change of storage of this number.

    Yields:
        A list that gets an element when it has happened.
    """
    happened: list[int] = []
    seen = 0
    lock = threading.Lock()

    def watched(name: str) -> Callable[..., object]:
        method = getattr(Storage, name)

        def change(self: Storage, uri: str, *args: object) -> object:
            nonlocal seen
            if "/lease/" not in uri and not happened:
                with lock:
                    is_now = seen == n_changes
                    seen += 1
                if is_now:
                    happened.append(n_changes)
                    action()
            return method(self, uri, *args)

        return change

    def delete_one_by_one(self: Storage, uris: object) -> None:
        for uri in uris:  # type: ignore[attr-defined]
            self.delete(uri)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("write", "write_if_absent", "delete"):
            patch.setattr(Storage, name, watched(name))
        patch.setattr(Storage, "delete_all", delete_one_by_one)
        yield happened


def _after(n_changes: int) -> Callable[[int, str, str], bool]:
    return lambda changes, method, uri: changes == n_changes


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedOutput:
    return finish_run(str(tmp_path_factory.mktemp("finished")))


@pytest.fixture
def output(finished: FinishedOutput, tmp_path: Path) -> str:
    """A copy of a finished output."""
    shutil.copytree(finished.output, tmp_path / "out")
    return str(tmp_path / "out")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(CompactOptions(), marks=pytest.mark.slow, id="default"),
        pytest.param(AT_ONCE, id="at once"),
        pytest.param(FILE_PER_UNIT, marks=pytest.mark.slow, id="small"),
        pytest.param(SORTED, id="sorted"),
    ],
)
def test_readers_get_the_same_rows_from_compacted_files(
    output: str, options: CompactOptions
) -> None:
    rows = _rows(output)
    status = read_status(storage, output).to_dict()
    report = _compact(output, options)
    assert (report.units, report.units_added, report.units_outside) == (3, 3, 0)
    assert _rows(output) == rows
    _check_sql(output)
    _check_glob(report, output)
    _check_verified(output)
    after = read_status(storage, output)
    assert (after.units_compacted, after.compacted) == (3, report.generation)
    assert after.to_dict() | {"units_compacted": 0, "compacted": ""} == status
    assert f"3 of the units done, in {report.generation}" in after.summary()
    n_parts = len(list(Path(output).glob("*/images/*.parquet")))
    assert n_parts == (0 if options.grace_s == 0 else 3)
    assert report.files == (6 if options is FILE_PER_UNIT else 2)

    again = _compact(output, options)
    assert (again.nothing_to_do, again.generation) == (True, report.generation)
    assert "nothing: no unit has changed" in again.summary()


def test_a_dry_run_changes_nothing(output: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(output).rglob("*")}
    planned = compact(storage, output, dry_run=True)
    assert (planned.units_added, planned.nothing_to_do, planned.generation) == (3, False, "")
    assert before == {path: path.stat().st_mtime_ns for path in Path(output).rglob("*")}
    assert "3 new, 0 replaced or withdrawn" in planned.summary()
    _compact(output)
    assert compact(storage, output, dry_run=True).nothing_to_do


@pytest.mark.slow
def test_another_order_is_made_when_it_is_asked_for(output: str) -> None:
    rows = _rows(output)
    first = _compact(output)
    report = _compact(output, SORTED)
    assert not report.nothing_to_do
    assert report.generation > first.generation
    scores = duckdb.sql(
        f"SELECT category, score FROM read_parquet('{report.instances}')"
    ).fetchall()
    assert scores == sorted(scores, key=lambda row: (row[0], -row[1]))
    assert _rows(output) == rows
    assert _compact(output, SORTED).nothing_to_do


@pytest.mark.slow
def test_few_changes_can_wait(output: str) -> None:
    options = CompactOptions(min_pending=4)
    assert _compact(output, options).nothing_to_do
    assert read_pointer(storage, _layout(output)) is None
    assert not _compact(output, CompactOptions(min_pending=3)).nothing_to_do


def _layout(output: str) -> EditionLayout:
    (edition,) = Path(output).glob("*/edition.json")
    return EditionLayout(str(edition.parent))


def _age(folder: Path, hours: float) -> None:
    """Let files be older than they are."""
    for path in folder.rglob("*.*"):
        time = path.stat().st_mtime - hours * 3600
        os.utime(path, (time, time))


@pytest.mark.slow
def test_files_go_after_the_grace_period_and_no_others(output: str) -> None:
    rows = _rows(output)
    layout = _layout(output)
    old = open_results(storage, output)
    first = _compact(output, CompactOptions())
    assert (first.files_deleted, first.files_waiting) == (0, 6)
    early = open_results(storage, output)
    _age(Path(output), 23)
    assert _compact(output, CompactOptions()).files_deleted == 0
    second = _compact(output, CompactOptions(sort="category,score"))
    assert second.files_deleted == 0
    assert {str(row) for table in old.images() for row in table.to_pylist()} == set(rows["images"])
    _age(Path(output), 2)  # the first generation is 25 hours old, and was current until 2 hours ago
    third = _compact(output, CompactOptions(sort="category,score"))
    assert third.files_deleted == 6
    assert not list(Path(layout.parts_folder("images")).iterdir())
    assert sum(table.num_rows for table in early.instances()) == len(rows["instances"])
    _age(Path(output), 23)
    fourth = _compact(output, CompactOptions(sort="category,score"))
    assert fourth.files_deleted == 6  # the first generation
    assert not list(Path(layout.compacted(first.generation).prefix).rglob("*.*"))
    assert (_rows(output), fourth.files_waiting) == (rows, 0)
    assert sum(table.num_rows for table in early.instances()) == len(rows["instances"])
    _check_verified(output)


@pytest.mark.slow
def test_what_a_table_has_registered_stays(output: str) -> None:
    layout = _layout(output)
    first = _compact(output)
    part = next(iter(storage.list(layout.compacted(first.generation).prefix))).uri
    name = part.removeprefix(f"{layout.prefix}/")
    storage.write(f"{layout.registered_folder}/lake.json", f'{{"files": ["{name}"]}}'.encode())
    report = _compact(output, SORTED)
    assert report.files_pinned == 1
    assert storage.exists(part)
    storage.write(f"{layout.registered_folder}/lake.json", b'{"files": "all"}')
    with pytest.raises(SegcoreError, match="does not list the files"):
        _compact(output, AT_ONCE)


def test_one_compaction_at_a_time(output: str) -> None:
    folder = OutputLayout(output).lease_folder
    with hold_lease(storage, folder, 60.0), pytest.raises(LeaseHeld, match="on this output"):
        _compact(output)
    assert read_pointer(storage, _layout(output)) is None


@pytest.mark.slow
def test_workers_find_units_that_were_compacted_behind_their_back(output: str) -> None:
    layout = _layout(output)
    parts = Parts(storage, layout.prefix, layout.name, "r", "CC0-1.0", ((1, "bright"),))
    parts = parts.as_listed(parts.list_generations())
    unit = min(parts.committed_units())
    tables = parts.read_tables(unit)
    counts = sorted(parts.read_counts(parts.committed_units()), key=lambda c: c.unit)
    far_parts = pickle.loads(pickle.dumps(parts))
    for options in (AT_ONCE, SORTED, AT_ONCE):  # each deletes what these have seen before
        _compact(output, options)
        for readers in (parts, far_parts):
            assert readers.read_tables(unit) == tables
            assert readers.read_newest_tables(unit) == tables
            assert readers.read_image_columns(unit, ["uri"])[0] == tables[0].select(["uri"])
    again = sorted(parts.read_counts(parts.committed_units()), key=lambda c: c.unit)
    assert again == counts


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _flip(path: Path) -> None:
    """Change a bit of the last page of the first column; nobody reads the statistics of headers."""
    column = pq.read_metadata(path).row_group(0).column(0)
    first = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    data[first + column.total_compressed_size - 1] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [_truncate, _flip, Path.unlink])
@pytest.mark.parametrize("name", ["images/00000.parquet", "instances/00000.parquet"])
@pytest.mark.parametrize("options", [AT_ONCE, SORTED], ids=["image", "sorted"])
def test_damage_to_compacted_files_is_found_and_named(
    output: str, options: CompactOptions, name: str, damage: Callable[[Path], None]
) -> None:
    report = _compact(output, options)
    path = Path(_layout(output).compacted(report.generation).prefix, name)
    damage(path)
    problems = verify_output(storage, output, threads=2).problems
    assert problems
    assert {problem.kind for problem in problems} <= {
        "unreadable_part", "bad_compaction", "report_differs", "wrong_area", "bad_rle",
    }  # fmt: skip
    assert str(path) in "".join(problem.uri + problem.message for problem in problems)


@pytest.mark.slow
def test_a_damaged_list_of_units_is_named_and_nothing_is_taken_for_undone(output: str) -> None:
    report = _compact(output)
    layout = _layout(output)
    for uri in (layout.compacted(report.generation).units, layout.compacted_pointer):
        data = storage.read(uri)
        storage.write(uri, data[: len(data) // 2])
        for read in (open_results, read_status, compact):
            with pytest.raises(StorageError, match=uri):
                read(storage, output)
        assert [p.kind for p in verify_output(storage, output).problems].count("bad_compaction")
        storage.write(uri, data)
    _check_verified(output)


def test_a_damaged_part_ends_the_compaction_and_is_named(output: str) -> None:
    part = next(iter(storage.list(_layout(output).parts_folder("instances")))).uri
    storage.write(part, b"PAR1 no PAR1")
    with pytest.raises(StorageError, match=part):
        _compact(output)
    assert read_pointer(storage, _layout(output)) is None


def _grown(tmp_path: Path, kind: str, options: CompactOptions) -> Archive:
    """Compacted, then changed: images came, others changed, others went."""
    archive = Archive(str(tmp_path), kind)
    archive.put(TWELVE)
    segment(archive.config())
    _compact(f"{archive.folder}/out", options)
    archive.put({**SEVEN, "b/2.png": 2, "e/0.png": 1, "e/1.png": 1})
    segment(archive.config())
    return archive


@pytest.mark.slow
@pytest.mark.parametrize("options", ALL_OPTIONS, ids=["default", "at once", "small", "sorted"])
def test_runs_go_on_from_compacted_files(tmp_path: Path, options: CompactOptions) -> None:
    archive = _grown(tmp_path, "loose", options)
    output = f"{archive.folder}/out"
    listed = {**SEVEN, "b/2.png": 2, "e/0.png": 1, "e/1.png": 1}
    kept = {**TWELVE, **listed}
    assert _versions(archive, include_unlisted=False) == listed
    assert _versions(archive, include_unlisted=True) == kept
    _check_sql(output)
    _check_verified(output)
    report = _compact(output, options)
    assert report.units_hidden > 0
    _check_glob(report, output)
    _check_sql(output)
    _check_verified(output)
    assert segment(archive.config()).nothing_to_do
    removed = segment(archive.config(), remove_unlisted=True)
    assert removed.images_removed == len(kept) - len(listed)
    assert _versions(archive, include_unlisted=True) == listed
    _check_verified(output)
    _check_glob(_compact(output, options), output)
    assert _versions(archive, include_unlisted=True) == listed

    everything = segment(archive.config(), overwrite=True)
    assert everything.images_this_time == len(listed)
    assert _versions(archive, include_unlisted=True) == listed
    _check_glob(_compact(output, options), output)


@pytest.mark.slow
def test_a_retry_wins_over_compacted_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.run.test_retry_failed import CONTENTS, MendedModel

    for name, data in CONTENTS.items():
        storage.write(f"{tmp_path}/in/{name}", data)
    output = str(tmp_path / "out")
    failed = ("plan.images=4", "run.max_failed_fraction=1")
    config = job_config(tmp_path / "in", output, *failed)
    assert segment(config).failed == 5
    _compact(output)
    monkeypatch.setattr(BrightModel, "forward", MendedModel.forward)
    MendedModel.images_seen = BrightModel.images_seen = 0  # type: ignore[attr-defined]
    report = segment(config, retry_failed=True)
    assert (report.failed, report.images_recovered) == (1, 4)
    rows = _rows(output)
    assert len(rows["images"]) == len(CONTENTS)
    _check_sql(output)
    _check_verified(output)
    compacted = _compact(output)
    assert compacted.units_hidden == compacted.units_added == 3
    assert _rows(output) == rows
    _check_glob(compacted, output)
    assert RAISES  # the images that failed begin with this pixel


@pytest.mark.slow
def test_what_no_run_has_decided_is_not_compacted(tmp_path: Path) -> None:
    archive = Archive(str(tmp_path), "loose")
    archive.put(TWELVE)
    segment(archive.config())
    output = f"{archive.folder}/out"
    _compact(output)
    archive.put({**TWELVE, "d/2.png": 2})
    is_list = lambda changes, method, uri: method == "write" and "/unlisted/" in uri  # noqa: E731
    with killed_when(is_list), suppress(ProcessKilled):
        segment(archive.config())
    with pytest.raises(NotSettled, match="no run has decided yet"):
        _compact(output)
    segment(archive.config())
    _check_glob(_compact(output), output)


def _restore(output: str, saved: str) -> None:
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(saved, output)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("options", [FILE_PER_UNIT, SORTED], ids=["small", "sorted"])
def test_a_compaction_that_dies_anywhere_changes_nothing_and_is_resumed(
    tmp_path: Path, options: CompactOptions
) -> None:
    output, saved = f"{_grown(tmp_path, 'loose', options).folder}/out", str(tmp_path / "saved")
    shutil.copytree(output, saved)
    rows = [_rows(output, include_unlisted=flag) for flag in (False, True)]
    kills: dict[str, int] = {"write": 0, "delete": 0}
    n_changes, last = 0, ""
    while last is not None:
        _restore(output, saved)
        last = None

        def is_last(changes: int, method: str, uri: str) -> bool:
            nonlocal last
            if changes == n_changes:  # noqa: B023
                last = method
            return changes == n_changes  # noqa: B023

        with killed_when(is_last), suppress(ProcessKilled):
            _compact(output, options)
        assert [_rows(output, include_unlisted=flag) for flag in (False, True)] == rows
        _check_sql(output)
        _check_verified(output)
        if last is not None:
            kills[last] += 1
            n_changes += 1 if last == "write" else 8  # files that nobody reads go, one by one
            _check_glob(_compact(output, options), output)
            assert _rows(output, include_unlisted=True) == rows[1]
    assert kills["write"] >= 6
    assert kills["delete"] >= 2


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("outer", ["compaction", "run"])
def test_a_run_and_a_compaction_at_the_same_time(tmp_path: Path, outer: str) -> None:
    """One of them happens as a whole between any two changes of storage of the other."""
    archive = Archive(str(tmp_path), "loose")
    output = f"{archive.folder}/out"
    archive.put(TWELVE)
    segment(archive.config())
    saved = [str(tmp_path / "saved0"), str(tmp_path / "saved1")]
    shutil.copytree(output, saved[0])
    _compact(output)
    shutil.copytree(output, saved[1])
    listed = {**SEVEN, "b/2.png": 2, "e/0.png": 1}
    archive.put(listed)
    kept = {**TWELVE, **listed}

    def run() -> None:
        segment(archive.config())

    def join() -> None:
        _compact_if_settled(output, AT_ONCE)

    inside, outside = (run, join) if outer == "compaction" else (join, run)
    for was_compacted in (0, 1):
        n_changes, happened = 0, [0]
        while happened:
            _restore(output, saved[was_compacted])
            if was_compacted and outer == "compaction":  # else it finds nothing to do
                archive.put({**TWELVE, "a/0.png": 2})
                segment(archive.config())
                archive.put(listed)
            with interrupted_by(n_changes, inside) as happened:
                outside()
            segment(archive.config())
            versions = _versions(archive, include_unlisted=True)
            assert versions == {**kept, "a/0.png": versions["a/0.png"]}
            assert _versions(archive, include_unlisted=False) == listed
            _check_verified(output)
            _check_glob(_compact(output), output)
            assert _versions(archive, include_unlisted=True) == versions
            n_changes += (1 if n_changes < 12 else 3) + was_compacted
        assert n_changes >= 5


def _compact_if_settled(output: str, options: CompactOptions) -> None:
    with suppress(NotSettled):
        _compact(output, options)


compactions = st.tuples(st.sampled_from(ALL_OPTIONS), st.none() | st.integers(0, 12))
steps = st.tuples(
    archives,
    st.booleans(),  # --remove-unlisted
    st.none() | st.integers(0, 40),  # the run dies after so many changes of storage
    st.lists(compactions, max_size=2),  # between the run that died and the one that resumes
    st.lists(compactions, max_size=2),  # afterwards
)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loose", "tars"])
@settings(max_examples=4)
@given(first=archives.filter(bool), steps=st.lists(steps, min_size=1, max_size=2))
def test_results_follow_the_listing_with_compactions_in_between(kind, first, steps) -> None:
    with TemporaryDirectory() as folder:
        archive = Archive(folder, kind)
        output = f"{folder}/out"
        kept: Versions = {}
        for images, remove, dies_after, between, after in [
            (first, False, None, [], [(AT_ONCE, None)]), *steps,
        ]:  # fmt: skip
            archive.put(images)
            if not archive.written:
                continue
            if dies_after is not None:
                with killed_when(_after(dies_after)), suppress(ProcessKilled):
                    segment(archive.config(), remove_unlisted=remove)
                if list(Path(output).glob("*/edition.json")):
                    _compact_all(output, between)
            report = segment(archive.config(), remove_unlisted=remove)
            kept = dict(images) if remove else {**kept, **images}
            assert report.exit_code == 0
            assert (report.images, report.images_unlisted) == (
                len(images), len(kept) - len(images),
            )  # fmt: skip
            for _ in range(2):
                assert _versions(archive, include_unlisted=False) == images
                assert _versions(archive, include_unlisted=True) == kept
                _check_verified(output)
                _check_sql(output)
                _compact_all(output, after)
            if read_pointer(storage, EditionLayout(report.prefix)) is not None:
                _check_glob(_compact(output), output)


def _compact_all(output: str, some: list[tuple[CompactOptions, int | None]]) -> None:
    for options, dies_after in some:
        if dies_after is None:
            _compact_if_settled(output, options)
        else:
            with killed_when(_after(dies_after)), suppress(ProcessKilled, NotSettled):
                _compact(output, options)


@pytest.mark.s3
@pytest.mark.slow
def test_an_output_in_a_bucket(s3_prefix: str) -> None:
    output = finish_run(s3_prefix).output
    rows = _rows(output)
    for options in (CompactOptions(), FILE_PER_UNIT, SORTED):
        report = _compact(output, options)
        assert (report.units, _rows(output)) == (3, rows)
        _check_verified(output)
    assert CompactedParts(storage, EditionLayout(report.prefix)).units().generations.keys() == (
        set(open_results(storage, output).units)
    )
    assert report.files_waiting == 0
