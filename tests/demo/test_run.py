"""The demo: right on a right run, and a failure when anything in it is not as it must be."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from segcore.demo.run import AP50_FLOOR, DemoOptions, DemoReport, run_demo
from segcore.errors import UsageError
from segcore.output.results import open_results
from segcore.storage import Storage
from segcore.visualize.originals import read_originals
from tests.demo.conftest import MODEL
from tests.support import serial_run


def test_a_correct_run_has_no_problems(demo_report: DemoReport) -> None:
    assert demo_report.problems() == []
    assert demo_report.run.images == demo_report.archive.n_images == 60
    assert demo_report.run.failed == len(demo_report.archive.broken) >= 1
    ap50 = demo_report.evaluation.scores.mask.ap50
    assert 0.3 < ap50 < AP50_FLOOR  # a threshold cannot reach the floor
    assert demo_report.evaluation.images == 60 - demo_report.run.failed
    assert demo_report.contact_sheet.read_bytes().startswith(b"\x89PNG")
    assert b"Most errors" in demo_report.page.read_bytes()
    document = json.loads(json.dumps(demo_report.to_dict(), allow_nan=False))
    assert document["ok"] is True


def test_too_few_correct_masks_are_a_problem(demo_report: DemoReport) -> None:
    worse = replace(demo_report, ap50_floor=0.99)
    assert "AP50" in worse.problems()[0]
    assert worse.to_dict()["ok"] is False


def test_originals_are_read_back_from_the_archive(demo_report: DemoReport) -> None:
    results = open_results(Storage(), demo_report.run.output)
    rows = [row for table in results.images() for row in table.to_pylist()]
    ok_rows = [row for row in rows if row["status"] == "ok"]
    wanted = [ok_rows[0], ok_rows[-1]]
    images = read_originals(results, [row["image_id"] for row in wanted])
    for row in wanted:
        assert images[row["image_id"]].shape == (row["height"], row["width"], 3)
    failed = next(row for row in rows if row["status"] == "failed")
    with pytest.raises(UsageError, match=failed["error_code"]):
        read_originals(results, [failed["image_id"]])
    with pytest.raises(UsageError, match="no image nix"):
        read_originals(results, ["nix"])


@pytest.mark.faults
def test_a_smaller_demo_over_a_larger_one_leaves_nothing_behind(tmp_path: Path) -> None:
    for n_images in (60, 20):
        options = DemoOptions(tmp_path, str(tmp_path), n_images, MODEL, ap50_floor=0.2)
        shutil.rmtree(tmp_path / "masks", ignore_errors=True)
        assert run_demo(options, run_segment=serial_run.segment).problems() == []
