from __future__ import annotations

import subprocess
import sys

import pytest
import typer

from segcore.cli import console
from segcore.cli.main import app
from segcore.errors import CheckpointError, StorageError, UsageError
from tests.support.paths import ROOT


def _segcore(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "segcore", *args], cwd=ROOT, capture_output=True, text=True
    )


def test_help_is_fast_because_nothing_heavy_is_imported():
    heavy = "torch ray cv2 numpy pyarrow pydantic obstore boto3 PIL"
    code = f"import sys, segcore.cli.main; print([m for m in {heavy.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_job_is_registered():
    assert {command.name for command in app.registered_commands} >= {
        "segment",
        "evaluate",
        "demo",
        "train",
    }


def test_help_shows_examples_and_exit_codes():
    done = _segcore("segment", "--help")
    assert done.returncode == 0
    assert "segcore segment photos/ out/" in done.stdout
    assert "--dry-run" in done.stdout
    assert "130 interrupted" in done.stdout


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["segment"], "INPUT is missing"),
        (["segment", "in", "out", "--set", "modle.conf=1"], "did you mean `model.conf`?"),
        (["segment", "in", "out", "--actors", "0"], "--actors"),
        (["segment", "in", "out", "--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["segment", "/nowhere/at/all", "out", "--dry-run"], "/nowhere/at/all does not exist"),
        (["segment", "in", "out", "--model", "nuclei-yolo11m"], "no model"),
        (["sgment"], "sgment"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(args, part):
    done = _segcore(*args)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert part in done.stderr
    assert "Traceback" not in done.stderr


def _run(error: BaseException, capsys) -> tuple[int | str | None, str]:
    app = console.new_app()

    @app.command()
    def fail() -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fail"])
        with pytest.raises(SystemExit) as caught:
            console.run_app(app)
    return caught.value.code, capsys.readouterr().err


def test_errors_become_sentences_with_their_exit_codes(capsys):
    assert _run(UsageError("wrong", hint="do this"), capsys) == (2, "Error: wrong\ndo this\n")
    assert _run(CheckpointError("no"), capsys) == (2, "Error: no\n")
    assert _run(StorageError("gone"), capsys) == (1, "Error: gone\n")
    assert _run(typer.Exit(3), capsys) == (3, "")


def test_a_bug_shows_its_traceback(capsys):
    code, stderr = _run(ZeroDivisionError("oops"), capsys)
    assert code == 1
    assert "ZeroDivisionError: oops" in stderr
    assert "bug in segcore" in stderr
