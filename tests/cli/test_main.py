from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import segcore
from segcore.cli import bench, console
from segcore.cli.main import app
from segcore.errors import CheckpointError, StorageError, UsageError
from segcore.exit_codes import MEANINGS
from tests.support.commands import call_segcore
from tests.support.paths import ROOT

HEAVY = "torch ray cv2 numpy pyarrow pydantic obstore boto3 PIL"


def _run_segcore(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "segcore", *args], cwd=ROOT, capture_output=True, text=True
    )


def test_the_commands_import_nothing_heavy_before_they_run():
    code = f"import sys, segcore.cli.main; print([m for m in {HEAVY.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_version_is_printed_and_imports_nothing_heavy():
    code = f"""
import sys
from segcore.cli.main import main
sys.argv = ["segcore", "--version"]
try:
    main()
except SystemExit as end:
    print(end.code, [m for m in {HEAVY.split()} if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"segcore {segcore.__version__}", "0 []"], done.stderr
    assert _run_segcore("--version").stdout == f"segcore {segcore.__version__}\n"


def test_every_command_is_registered():
    assert {command.name for command in app.registered_commands} >= {
        "segment",
        "evaluate",
        "demo",
        "train",
    }


@pytest.mark.slow
def test_help_shows_examples_and_exit_codes():
    done = _run_segcore("segment", "--help")
    assert done.returncode == 0
    assert "segcore segment photos/ out/" in done.stdout
    assert "--dry-run" in done.stdout
    assert "130 interrupted" in " ".join(done.stdout.split())


def test_exit_codes_are_listed_in_the_same_way_everywhere():
    epilogs = [command.epilog or "" for command in app.registered_commands]
    listings = [text for text in epilogs if "exit code" in text.lower()]
    assert len(listings) >= 3
    for text in listings:
        listing = " ".join(text.partition("\nExit codes: ")[2].split())
        entries = listing.removesuffix(".").split("; ")
        assert [int(entry.split()[0]) for entry in entries] in (
            [0, 1, 2, 130],
            [0, 1, 2, 4, 130],
            [0, 1, 2, 4, 99, 130],
            list(MEANINGS),
        )
        assert {"2 usage error", "130 interrupted"} <= set(entries)


@pytest.mark.slow
def test_a_folder_named_jobs_on_the_path_does_not_matter(tmp_path: Path):
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    for name in ("__init__", "segment", "train", "evaluate", "demo"):
        (jobs / f"{name}.py").write_text("this is not Python\n")
    path = os.pathsep.join((str(tmp_path), str(jobs), str(ROOT)))
    done = subprocess.run(
        [sys.executable, "-m", "segcore", "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "segment" in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
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
def test_a_usage_error_is_one_sentence_and_exit_code_2(args, message):
    done = call_segcore(*args)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def _run_command_that_raises(error: BaseException, capsys) -> tuple[int | str | None, str]:
    failing_app = console.new_app()

    @failing_app.command()
    def fail() -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fail"])
        with pytest.raises(SystemExit) as caught:
            console.run_app(failing_app)
    return caught.value.code, capsys.readouterr().err


def test_errors_become_sentences_with_their_exit_codes(capsys):
    def outcome(error: BaseException) -> tuple[int | str | None, str]:
        return _run_command_that_raises(error, capsys)

    assert outcome(UsageError("wrong", hint="do this")) == (2, "Error: wrong\ndo this\n")
    assert outcome(CheckpointError("no")) == (2, "Error: no\n")
    assert outcome(StorageError("gone")) == (1, "Error: gone\n")
    assert outcome(typer.Exit(3)) == (3, "")


def test_a_bug_shows_its_traceback(capsys):
    code, stderr = _run_command_that_raises(ZeroDivisionError("oops"), capsys)
    assert code == 1
    assert "ZeroDivisionError: oops" in stderr
    assert "bug in segcore" in stderr


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("seg", ["segment"]),
        ("segment --retry", ["--retry-failed"]),
        ("bench --stag", ["--stages-only"]),
        ("bench sc", ["scale"]),
        ("bench scale --un", ["--units"]),
        ("bench --size 640x480 --sec", ["--seconds"]),
    ],
)
def test_the_shell_completes_commands_and_options(typed: str, expected: list[str]) -> None:
    code = "import sys; sys.argv = ['segcore']; from segcore.cli.main import main; main()"
    words = {"COMP_WORDS": f"segcore {typed}", "COMP_CWORD": str(len(typed.split()))}
    environment = os.environ | words | {"_SEGCORE_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert done.stdout.split() == expected, done.stderr


def test_the_help_of_bench_names_every_measurement() -> None:
    shown = _run_segcore("bench", "--help").stdout
    measurements = [command.name for command in bench.app.registered_commands]
    assert len(measurements) > 2
    assert [name for name in measurements if f"segcore bench {name}" not in shown] == []
