"""Rankings while their edition changes: which calls change it, and who counts their files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import segcore
from segcore.config import Config
from segcore.inspection.status import read_status
from segcore.inspection.verify import verify_output
from segcore.output.layout import EditionLayout
from segcore.output.rankings import read_ranking
from segcore.output.report import RunReport
from segcore.output.results import open_results
from segcore.run.compact import compact
from segcore.run.compact_plan import CompactOptions
from segcore.run.prune import prune
from segcore.run.segment import segment
from segcore.storage import Storage
from tests.support.bright_images import bright_png, bright_pngs
from tests.support.commands import call_segcore
from tests.support.fake_models import RAISES
from tests.support.jobs import job_config, write_files
from tests.support.run_without_ray import without_ray

storage = Storage()


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    with without_ray():
        yield


def _config(folder: Path, *sets: str) -> Config:
    return job_config(
        folder / "in", folder / "out", "plan.images=2", "source.allow_shrunk_listing=true",
        "run.max_failed_fraction=1", *sets,
    )  # fmt: skip


def _run(folder: Path, *sets: str) -> RunReport:
    return segment(_config(folder, *sets))


def _remark(prefix: str, name: str = "uncertain") -> str:
    results = open_results(storage, prefix)
    return read_ranking(results, name).remark(results)


def _files(prefix: str) -> set[Path]:
    return {file for file in Path(prefix).rglob("*") if file.is_file()}


def _check_accounts(prefix: str) -> None:
    """Neither `status` nor `verify` takes a ranking for a part, or for something foreign."""
    assert not verify_output(storage, prefix).counts
    status = read_status(storage, prefix)
    assert (status.units_foreign, status.units, status.unreadable) == (0, status.units_done, ())


@pytest.mark.slow
def test_an_older_state_is_said_wherever_it_is_used(tmp_path: Path) -> None:
    photos = tmp_path / "in"
    write_files(photos, bright_pngs(5))
    prefix = _run(tmp_path).prefix
    segcore.rank(prefix, "uncertain")
    assert _remark(prefix) == ""
    compact(storage, prefix, options=CompactOptions())  # moves rows and changes none
    assert _remark(prefix) == ""
    gone, *_ = sorted(photos.iterdir())
    gone.unlink()
    (photos / "new1.png").write_bytes(bright_png(7))
    (photos / "new2.png").write_bytes(bright_png(8))
    _run(tmp_path)
    _check_accounts(prefix)
    remark = _remark(prefix)
    assert (
        "Ranking uncertain was made from an older state of this edition: 1 of its images is gone "
        "and 2 images came since;" in remark
    )
    shown = call_segcore("show", prefix, "--ranking", "uncertain", "--out", f"{tmp_path}/x.png")
    exported = call_segcore(
        "export", prefix, f"{tmp_path}/coco", "--ranking", "uncertain", "--workers", "1"
    )
    report = call_segcore(
        "report", prefix, "--ranking", "uncertain", "--out", f"{tmp_path}/report.html"
    )
    for done in (shown, exported, report):
        assert (done.returncode, remark in done.stderr) == (0, True), done.stderr
    assert "older state of this edition" in (tmp_path / "report.html").read_text()
    segcore.rank(prefix, "uncertain")
    assert _remark(prefix) == ""


@pytest.mark.slow
def test_images_that_are_tried_again_change_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_MODEL_MENDED", str(tmp_path / "mended"))
    images = {**bright_pngs(4), "a.png": bright_png(9, RAISES), "b.png": b"no image"}
    write_files(tmp_path / "in", images)
    prefix = _run(tmp_path).prefix
    for by in ("uncertain", "crowded"):
        assert segcore.rank(prefix, by).ranking.rows.num_rows == 4
    files = _files(EditionLayout(prefix).rankings_folder)
    before = {file: file.read_bytes() for file in files}
    segment(_config(tmp_path), retry_failed=True)  # nothing recovers, so nothing changes
    assert _remark(prefix) == ""
    (tmp_path / "mended").touch()
    assert segment(_config(tmp_path), retry_failed=True).images_recovered == 1
    _check_accounts(prefix)
    for by in ("uncertain", "crowded"):
        remark = _remark(prefix, by)
        assert "from an older state of this edition: 1 image came since; what was found in its" in (
            remark
        )
    assert {file: file.read_bytes() for file in files} == before  # never changed unasked
    compact(storage, prefix, options=CompactOptions())
    _check_accounts(prefix)
    assert "1 image came since" in _remark(prefix)
    assert segcore.rank(prefix, "uncertain").ranking.rows.num_rows == 5
    assert _remark(prefix) == ""


@pytest.mark.slow
def test_pruned_editions_take_their_rankings_with_them(tmp_path: Path) -> None:
    write_files(tmp_path / "in", bright_pngs(3))
    reports = [_run(tmp_path, f"model.conf={conf}") for conf in (0.1, 0.2, 0.3)]
    for report in reports:
        segcore.rank(report.prefix, "uncertain")
        segcore.rank(report.prefix, "random")
    kept = {report.edition: _files(report.prefix) for report in (reports[0], reports[2])}
    n_files = len(_files(reports[1].prefix))
    planned = prune(storage, str(tmp_path / "out"), keep=1)
    assert {item.edition: item.files for item in planned.editions if item.deleted} == {
        reports[1].edition: n_files
    }
    assert len(_files(reports[1].prefix)) == n_files  # nothing was deleted yet
    prune(storage, str(tmp_path / "out"), keep=1, dry_run=False)
    assert not _files(reports[1].prefix)
    for report in (reports[0], reports[2]):
        assert _files(report.prefix) - {Path(report.prefix, "lease")} == kept[report.edition]
        assert _remark(report.prefix) == ""
        _check_accounts(report.prefix)


def test_damaged_units_do_not_hide_that_the_state_is_older(tmp_path: Path) -> None:
    write_files(tmp_path / "in", bright_pngs(4))
    prefix = _run(tmp_path).prefix
    segcore.rank(prefix, "uncertain")
    (tmp_path / "in" / "new.png").write_bytes(bright_png(7))
    _run(tmp_path)
    results = open_results(storage, prefix)
    for unit in results.units:
        Path(results.layout.part("images", unit)).write_bytes(b"PAR1")
    n = len(results.units)
    assert f": 4 of its images are gone or in {n} units that cannot be read;" in _remark(prefix)
