"""Each exit code of `segcore segment`, from the command itself without Ray."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from segcore.cli import console
from segcore.cli.main import app
from segcore.errors import ClusterError, StorageError, StorageFull
from segcore.exit_codes import ExitCode
from segcore.lease.lease import LeaseLost
from segcore.run.job import Job
from segcore.run.passes import Notify, Pass, RunState
from tests.support import serial_run
from tests.support.bright_images import bright_png
from tests.support.jobs import BRIGHT_MODEL, write_files
from tests.support.paths import ROOT

Segment = Callable[..., int]


@pytest.fixture
def segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Segment:
    """Runs `segcore segment in out ...` on two good images and a bad one; gives the exit code."""
    serial_run.without_ray(monkeypatch)
    images = {"1.png": bright_png(1), "2.png": bright_png(2), "words.png": b"no image"}
    write_files(tmp_path / "in", images)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, source: str = "in") -> int:
        words = ["segcore", "segment", source, "out", "--model", BRIGHT_MODEL, *arguments]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as end:
            console.run_app(app)
        assert isinstance(end.value.code, int)
        return end.value.code

    return run


LENIENT = ("--set", "run.max_failed_fraction=0.5")


@pytest.mark.slow
def test_done_and_nothing_to_do(segment: Segment, capsys: pytest.CaptureFixture[str]) -> None:
    ask = "--exit-99-if-nothing-to-do"
    assert segment(*LENIENT, ask, "--dry-run") == ExitCode.DONE == 0
    assert segment(*LENIENT, ask) == 0
    assert segment(*LENIENT) == 0
    assert segment(*LENIENT, ask) == ExitCode.NOTHING_TO_DO == 99
    assert segment(*LENIENT, ask, "--dry-run") == 99
    assert segment(*LENIENT, ask, "--no-publish") == 99
    assert segment(*LENIENT, ask, "--dry-run", "--retry-failed") == 0
    assert segment(*LENIENT, ask, "--dry-run", "--overwrite") == 0
    assert segment(*LENIENT, ask, "--retry-failed") == 0  # that was tried again
    assert segment(*LENIENT, ask, "--overwrite") == 0
    capsys.readouterr()
    # What is wrong is said, whether or not there was anything to do.
    assert segment(ask, "--set", "run.max_failed_fraction=0", "--json") == 3
    assert json.loads(capsys.readouterr().out)["nothing_to_do"] is True


def test_too_many_failed_images(segment: Segment) -> None:
    assert segment("--set", "run.max_failed_fraction=0.3") == ExitCode.TOO_MANY_FAILED == 3


def test_work_left(segment: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    serial_run.without_ray(monkeypatch, lambda *args: None)
    assert segment(*LENIENT) == ExitCode.INCOMPLETE == 1


def _end_by(error: BaseException) -> serial_run.RunPasses:
    """Passes in which a unit fails, and then the run ends."""

    def run(job: Job, passes: Sequence[Pass], state: RunState, notify: Notify) -> None:
        state.errors["a unit"] = "StorageError: the server is gone"
        raise error

    return run


ENDS = [  # how the run ends, flags, its exit code, what the first error says
    (_end_by(StorageError("Stopped after 20 consecutive units failed")), [], 1, "20 consecutive"),
    (_end_by(StorageFull("no room is left")), [], 1, "no room"),
    (_end_by(ClusterError("The actor pool failed")), [], 1, "actor pool"),
    (_end_by(LeaseLost("Another run took over.")), [], 1, "took over"),
    (_end_by(KeyboardInterrupt()), [], 130, "Stopped"),
    (_end_by(ZeroDivisionError("oops")), [], 1, "oops"),
    (lambda *args: None, LENIENT, 1, "1 unit got no result"),  # all workers died
    (serial_run.run_passes, [], 3, "1 of 3 images failed (33.3%)"),
    (serial_run.run_passes, ["--actors", "none"], 2, "--actors"),
    (serial_run.run_passes, ["--set", "modle.conf=1"], 2, "modle.conf"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("end", "flags", "code", "message"), ENDS)
def test_every_run_that_failed_says_why(
    segment: Segment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], end: Any, flags: Sequence[str], code: int, message: str,
) -> None:  # fmt: skip
    serial_run.without_ray(monkeypatch, end)
    assert segment(*flags, "--json") == code
    document = json.loads(capsys.readouterr().out)
    assert message in document["errors"][0]
    records = [json.loads(path.read_text()) for path in tmp_path.glob("out/*/runs/history/*.json")]
    assert len(records) == (code != 2)
    for record in records:
        assert record["errors"]
        assert record["errors"][0] == document["errors"][0] or "Stopped" in record["errors"][0]
        logs = "".join(path.read_text() for path in Path(record["log"]).iterdir())
        assert "Error" in logs or "ERROR" in logs or "Stopped" in logs or "Ended: " in logs
    is_early = "error" in document and code != 2
    has_details = is_early and document["error"]["code"] != "bug"
    assert ("StorageError: the server is gone" in document["errors"]) == has_details


def test_a_refusal_and_success_in_json(
    segment: Segment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment(*LENIENT, "--json") == 0
    assert json.loads(capsys.readouterr().out)["errors"] == []
    for name in ("1.png", "2.png"):
        (tmp_path / "in" / name).unlink()
    assert segment(*LENIENT, "--json") == 1
    assert "has shrunk" in json.loads(capsys.readouterr().out)["errors"][0]


def test_an_input_without_an_image(segment: Segment, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert segment(source="empty") == 1
    assert segment("--set", "source.allow_empty=true", source="empty") == 0


def test_a_wrong_command(segment: Segment) -> None:
    assert segment("--set", "modle.conf=1") == ExitCode.USAGE == 2
    assert segment("--no-such-option") == 2
    assert segment(source="nowhere") == 2


def test_an_interrupt(segment: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    serial_run.without_ray(monkeypatch, interrupted)
    assert segment() == ExitCode.INTERRUPTED == 130
    monkeypatch.setattr(Job, "preview", interrupted)  # before anything began
    assert segment() == 130


def test_a_run_that_did_not_publish_gives_the_command_that_would(
    segment: Segment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment(*LENIENT) == 0
    published = (tmp_path / "out" / "latest.json").read_bytes()
    capsys.readouterr()
    assert segment(*LENIENT, "--set", "model.conf=0.5", "--no-publish") == 0
    *_, line = capsys.readouterr().err.splitlines()
    command = line.removeprefix("To publish it: ")
    assert command == (
        f"segcore segment in out --model {BRIGHT_MODEL} --set run.max_failed_fraction=0.5 "
        "--set model.conf=0.5 --publish"
    )
    assert (tmp_path / "out" / "latest.json").read_bytes() == published
    assert segment(*command.split()[4:], "--exit-99-if-nothing-to-do") == 0
    assert (tmp_path / "out" / "latest.json").read_bytes() != published


def test_a_command_with_a_secret_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["segcore", "segment", "in", "out", "--model", "https://u:p@host/m.pt?Signature=x"]
    monkeypatch.setattr(sys, "argv", words)
    assert console.own_command("--publish", without="--no-publish") == ""


def test_every_code_is_in_the_docs() -> None:
    page = (ROOT / "docs" / "operations.md").read_text().partition("## Exit codes")[2]
    assert re.findall(r"^\| (\d+) \| ", page, re.MULTILINE) == [str(int(code)) for code in ExitCode]
