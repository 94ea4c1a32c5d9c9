"""The demo: right on a right run, and a failure when anything in it is not as it must be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segcore.cli.demo import AP50_FLOOR, Outcome, Recipe, _claim, check, one_liners, recipe, show
from segcore.errors import ErrorCode, ImageError, UsageError
from segcore.models.registry import bundled_names
from segcore.output.results import open_results
from segcore.storage import Storage
from segcore.testing.synthetic_archive import SyntheticArchive
from segcore.visualize.originals import read_originals
from tests.support import serial_run
from tests.support.paths import PYTHONPATH

MODEL = "tests.support.threshold_model:Threshold"


def _quiet(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A demo of 60 images by a model that needs no training, without Ray."""
    folder = tmp_path_factory.mktemp("demo")
    todo = Recipe(folder, str(folder), 60, MODEL, ap50_floor=0.3)
    return recipe(todo, _quiet, serial_run.segment)


def test_a_right_run_has_no_problems(outcome: Outcome) -> None:
    assert outcome.problems() == []
    assert outcome.report.images == outcome.archive.n_images == 60
    assert outcome.report.failed == len(outcome.archive.broken) >= 1
    assert 0.3 < outcome.evaluation.scores.mask.ap50 < AP50_FLOOR  # a threshold cannot do it
    assert outcome.evaluation.images == 60 - outcome.report.failed
    assert outcome.contact_sheet.read_bytes().startswith(b"\x89PNG")
    document = json.loads(json.dumps(outcome.to_dict(), allow_nan=False))
    assert document["ok"] is True


def test_too_few_right_masks_are_a_problem(outcome: Outcome) -> None:
    worse = replace(outcome, ap50_floor=0.99)
    assert "AP50" in worse.problems()[0]
    assert worse.to_dict()["ok"] is False


ARCHIVE = SyntheticArchive("", "", {"b.png": ErrorCode.EMPTY}, 1, 3, 9)
GOOD = [("s#a.png", "ok", None), ("s#b.png", "failed", "empty"), ("s#c.png", "ok", None)]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (GOOD, None),
        (GOOD[:2], "2 rows"),
        ([*GOOD, GOOD[0]], "4 rows"),
        ([GOOD[0], ("s#b.png", "ok", None), GOOD[2]], "b.png was broken as empty but was not"),
        ([GOOD[0], ("s#b.png", "failed", "corrupt"), GOOD[2]], "but failed as corrupt"),
        ([*GOOD[:2], ("s#c.png", "failed", "corrupt")], "c.png is a good image but failed"),
    ],
)
def test_rows_must_be_what_was_drawn_and_broken(rows: list[tuple], words: str | None) -> None:
    names = ["image_id", "status", "error_code"]
    table = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])
    found = check(ARCHIVE, iter([table]))
    assert found == [] if words is None else words in " ".join(found)


def test_the_printed_commands_work(outcome: Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    show(outcome)
    printed = capsys.readouterr().out
    assert str(outcome.contact_sheet) in printed
    for command, word in zip(one_liners(outcome.tables), ("score", "nucleus"), strict=True):
        assert command in printed
        done = subprocess.run(
            command, shell=True, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        assert word in done.stdout


@pytest.mark.parametrize("folder", ["plain", "with space", "it's $5", 'say "x"'])
def test_the_printed_commands_survive_odd_folders(folder: str, tmp_path: Path) -> None:
    tables = tmp_path / folder
    (tables / "instances").mkdir(parents=True)
    row = {"category": "nucleus", "area": 4, "score": 0.5}
    pq.write_table(pa.Table.from_pylist([row]), tables / "instances" / "u.parquet")
    for command in one_liners(str(tables)):
        done = subprocess.run(
            command, shell=True, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, (command, done.stderr)


def test_originals_are_read_back_from_the_archive(outcome: Outcome, tmp_path: Path) -> None:
    results = open_results(Storage(), outcome.report.output)
    rows = [row for table in results.images() for row in table.to_pylist()]
    good = [row for row in rows if row["status"] == "ok"]
    chosen = [good[0], good[-1]]
    images = read_originals(results, [row["image_id"] for row in chosen])
    for row in chosen:
        assert images[row["image_id"]].shape == (row["height"], row["width"], 3)
    failed = next(row for row in rows if row["status"] == "failed")
    with pytest.raises(ImageError):
        read_originals(results, [failed["image_id"]])
    with pytest.raises(UsageError, match="no image nix"):
        read_originals(results, ["nix"])


def test_a_smaller_demo_over_a_larger_one_leaves_nothing_behind(tmp_path: Path) -> None:
    for n_images in (60, 20):
        todo = Recipe(tmp_path, str(tmp_path), n_images, MODEL, ap50_floor=0.2)
        shutil.rmtree(tmp_path / "masks", ignore_errors=True)
        assert recipe(todo, _quiet, serial_run.segment).problems() == []


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    _claim(tmp_path / "new")
    _claim(tmp_path / "new")  # our own again
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="not of this demo"):
        _claim(tmp_path / "theirs")
    with pytest.raises(UsageError, match="is a file"):
        _claim(tmp_path / "theirs" / "thesis.tex")


def _demo(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "segcore", "demo", "--out", str(folder), "--json", *options]
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "AWS_SESSION_TOKEN": "not-of-this-server"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=580, check=False, env=environment
    )


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.s3
def test_the_whole_demo_on_s3_fails_for_bad_masks_only(tmp_path: Path) -> None:
    done = _demo(tmp_path / "out", "--images", "60", "--s3", "--model", MODEL)
    assert done.returncode == 1, done.stderr  # a threshold is no network
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    assert len(document["problems"]) == 1
    assert "AP50" in document["problems"][0]
    assert document["problems"][0] in done.stderr
    assert document["run"]["input"].startswith("s3://")
    assert document["run"]["images"] == 60
    assert document["run"]["failed"] == len(document["archive"]["broken"])
    copied = open_results(Storage(), str(tmp_path / "out" / "masks"))
    assert copied.prefix == document["tables"]
    assert sum(table.num_rows for table in copied.images()) == 60
    assert sum(t.num_rows for t in copied.instances()) == document["run"]["instances"]
    assert Path(document["contact_sheet"]).exists()
    assert not (tmp_path / "out" / "s3-server").exists()


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.skipif(not bundled_names(), reason="this checkout has no bundled model yet")
def test_the_bundled_model_passes_the_demo(tmp_path: Path) -> None:
    done = _demo(tmp_path / "out", "--images", "60")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["ok"] is True
    assert document["evaluation"]["scores"]["mask"]["ap50"] >= AP50_FLOOR
