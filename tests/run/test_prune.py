"""`segcore editions`, `history`, `publish` and `prune`: several editions in one output."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from segcore.errors import SegcoreError, UsageError
from segcore.inspection.editions import list_editions
from segcore.inspection.history import read_history
from segcore.inspection.verify import verify_output
from segcore.lease.hold import hold_lease
from segcore.output.completeness import NotComplete
from segcore.output.latest import read_published
from segcore.output.layout import EditionLayout, OutputLayout
from segcore.output.report import RunReport
from segcore.run.prune import PruneReport, prune
from segcore.run.publish import publish_edition
from segcore.run.segment import segment
from segcore.storage import Storage
from tests.support.bright_images import bright_pngs
from tests.support.commands import call_segcore
from tests.support.jobs import job_config, write_files
from tests.support.run_without_ray import ProcessKilled, killed_when

pytestmark = pytest.mark.usefixtures("serial")
storage = Storage()


def _edition(folder: Path, conf: float, *sets: str) -> RunReport:
    config = job_config(folder / "in", folder / "out", f"model.conf={conf}", "plan.images=2", *sets)
    return segment(config)


@pytest.fixture
def four(tmp_path: Path) -> list[RunReport]:
    """Four editions, the oldest first, of which that is published."""
    write_files(tmp_path / "in", bright_pngs(3))
    return [_edition(tmp_path, conf) for conf in (0.1, 0.2, 0.3, 0.4)]


def _names(report: PruneReport, *, deleted: bool) -> set[str]:
    return {item.edition for item in report.editions if item.deleted == deleted}


def _left(folder: Path) -> set[str]:
    return {state.edition for state in list_editions(storage, str(folder / "out"))}


def test_editions_say_what_is_published_and_why_they_differ(
    tmp_path: Path, four: list[RunReport]
) -> None:
    states = {state.edition: state for state in list_editions(storage, str(tmp_path / "out"))}
    assert list(states) == [report.edition for report in reversed(four)]  # the newest first
    first, last = states[four[0].edition], states[four[3].edition]
    assert (first.published, first.complete, first.images, first.differs) == (True, True, 3, ())
    assert (last.published, last.complete) == (False, True)
    assert last.differs == ("model.parameters.conf: 0.1 -> 0.4",)
    assert last.bytes == sum(
        path.stat().st_size for path in Path(last.prefix).rglob("*") if path.is_file()
    )
    done = call_segcore("editions", str(tmp_path / "out"), "--json")
    assert {row["edition"] for row in json.loads(done.stdout)["editions"]} == states.keys()
    assert "conf: 0.1 -> 0.4" in call_segcore("editions", str(tmp_path / "out")).stderr


def test_history_of_all_editions(tmp_path: Path, four: list[RunReport]) -> None:
    past = read_history(storage, str(tmp_path / "out"), 3)
    assert {item.edition for item in past} <= {report.edition for report in four}
    assert len(past) == 3
    done = call_segcore("history", str(tmp_path / "out"))
    assert done.stdout.count("success, 3 images") == 4
    Path(EditionLayout(four[1].prefix).execution(four[1].execution)).unlink()
    record = Path(EditionLayout(four[1].prefix).run_record(four[1].run))
    record.write_text(json.dumps(four[1].to_dict() | {"status": "running"}))
    (died,) = [i for i in read_history(storage, str(tmp_path / "out"), 9) if i.edition ==
               four[1].edition]  # fmt: skip
    assert died.execution.status == "died"


def test_publish_moves_the_pointer_and_back(tmp_path: Path, four: list[RunReport]) -> None:
    output = str(tmp_path / "out")
    report = publish_edition(storage, output, four[2].edition)
    assert (report.before, report.changed) == (four[0].edition, True)
    assert read_published(storage, OutputLayout(output)) == (four[2].edition, four[2].run)
    assert not publish_edition(storage, output, four[2].edition).changed
    done = call_segcore("publish", output, four[0].edition)
    assert (done.returncode, "in place of" in done.stdout) == (0, True)
    assert not verify_output(storage, output).counts
    assert call_segcore("publish", output, "no-such-edition").returncode == 2


@pytest.mark.parametrize("damage", ["no run", "part", "incomplete", "plan"])
def test_an_edition_that_lacks_something_is_not_published(
    tmp_path: Path, four: list[RunReport], damage: str
) -> None:
    layout = EditionLayout(four[1].prefix)
    record = Path(layout.run_record(four[1].run))
    if damage == "no run":
        shutil.rmtree(Path(layout.runs_folder))
    elif damage == "part":
        next(Path(layout.parts_folder("images")).iterdir()).unlink()
    elif damage == "incomplete":
        record.write_text(json.dumps(four[1].to_dict() | {"status": "incomplete"}))
    else:
        Path(layout.plan(four[1].run)).unlink()
    words = {"no run": "no run", "part": "have no part", "incomplete": "status incomplete",
             "plan": "is gone"}  # fmt: skip
    with pytest.raises(NotComplete, match=words[damage]):
        publish_edition(storage, str(tmp_path / "out"), four[1].edition)
    assert read_published(storage, OutputLayout(str(tmp_path / "out"))).edition == four[0].edition
    done = call_segcore("publish", str(tmp_path / "out"), four[1].edition, "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (1, "not_complete")
    states = {state.edition: state for state in list_editions(storage, str(tmp_path / "out"))}
    assert not states[four[1].edition].complete


@pytest.mark.parametrize("keep", [0, 1, 3, 9])
def test_prune_keeps_the_newest_and_the_published(
    tmp_path: Path, four: list[RunReport], keep: int
) -> None:
    output = str(tmp_path / "out")
    expected = {report.edition for report in [*reversed(four[1:])][:keep]} | {four[0].edition}
    before = sorted(tmp_path.rglob("*"))
    planned = prune(storage, output, keep)
    assert sorted(tmp_path.rglob("*")) == before
    assert _names(planned, deleted=False) == expected
    done = prune(storage, output, keep, dry_run=False)
    assert _names(done, deleted=True) == _names(planned, deleted=True)
    assert _left(tmp_path) == expected
    gone = [report for report in four if report.edition not in expected]
    assert not any(path.is_file() for r in gone for path in Path(r.prefix).rglob("*"))
    assert not verify_output(storage, output, four[0].edition).counts


def test_prune_keeps_what_is_in_use(tmp_path: Path, four: list[RunReport]) -> None:
    output = str(tmp_path / "out")
    pinned, running = EditionLayout(four[1].prefix), EditionLayout(four[2].prefix)
    folder = Path(pinned.registered_folder)
    folder.mkdir()
    (folder / "iceberg.json").write_text(json.dumps({"files": ["images/1.parquet"]}))
    with hold_lease(storage, running.lease_folder, 60.0):
        report = prune(storage, output, 0, dry_run=False)
    reasons = {item.edition: item.reason for item in report.editions}
    assert "a table refers to 1 file" in reasons[pinned.name]
    assert reasons[running.name] == "a run is at work"
    assert _left(tmp_path) == {four[0].edition, pinned.name, running.name}
    (folder / "iceberg.json").write_text("{}")
    report = prune(storage, output, 0, dry_run=False)
    assert _left(tmp_path) == {four[0].edition, pinned.name}
    with hold_lease(storage, OutputLayout(output).lease_folder, 60.0, what="output"):
        done = call_segcore("prune", output, "--yes")
    assert (done.returncode, "working on this output" in done.stderr) == (1, True)


@pytest.mark.parametrize("latest", ["{", '{"edition": "gone-000000000000", "run": "x"}'])
def test_prune_deletes_nothing_while_the_published_edition_is_unknown(
    tmp_path: Path, four: list[RunReport], latest: str
) -> None:
    Path(OutputLayout(str(tmp_path / "out")).latest_json).write_text(latest)
    with pytest.raises(UsageError, match="Nothing was deleted"):
        prune(storage, str(tmp_path / "out"), 0, dry_run=False)
    assert len(_left(tmp_path)) == 4


@pytest.mark.slow
def test_a_prune_that_dies_anywhere_is_finished_by_the_next(
    tmp_path: Path, four: list[RunReport]
) -> None:
    shutil.copytree(tmp_path, tmp_path.with_name("whole"))
    output, died = str(tmp_path / "out"), 0
    for last in range(0, 60, 5):
        shutil.rmtree(tmp_path)
        shutil.copytree(tmp_path.with_name("whole"), tmp_path)
        try:
            with killed_when(lambda n, kind, uri, last=last: n >= last):
                prune(storage, output, 2, dry_run=False)
        except (ProcessKilled, SegcoreError):
            died += 1
        else:
            break
        # The same model again finds all that it needs, or makes it again.
        again = _edition(tmp_path, 0.2)
        assert (again.status, again.images) == ("success", 3)
        assert not verify_output(storage, output, again.edition).counts
        assert read_published(storage, OutputLayout(output)).edition == four[0].edition
        prune(storage, output, 2, dry_run=False)
        assert not verify_output(storage, output, four[0].edition).counts
        assert len(_left(tmp_path)) == 3
    assert died >= 3
