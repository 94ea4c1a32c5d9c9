"""What --log-level, --quiet and --log-format show, and that stdout is the same with all of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from segcore.cli import console, stderr_log
from segcore.cli.main import app
from segcore.logs.options import LogOptions
from segcore.output.report import RunReport
from tests.support import serial_run
from tests.support.bright_images import bright_png
from tests.support.jobs import BRIGHT_MODEL, write_files

LOGGER = logging.getLogger("segcore.tests")


@pytest.fixture(autouse=True)
def _hide_log() -> Iterator[None]:
    yield
    stderr_log.hide_log()


def _say_everything() -> None:
    LOGGER.debug("a detail")
    LOGGER.info("a step")
    LOGGER.info("for the file", extra={"kept_only": True})
    LOGGER.warning("careful", extra={"image": "a.png"})
    logging.getLogger("some.library").warning("of a library")
    logging.getLogger("segcore.libraries.torch").warning("of a library in a worker")
    try:
        raise ValueError("no")
    except ValueError:
        LOGGER.exception("failed")
    console.notify("a sentence")
    console.notify("Error: it ended", "do this", level=logging.ERROR)


TEXT = {
    "a step": logging.INFO,
    "Warning: careful (image a.png)": logging.WARNING,
    "Error: failed": logging.ERROR,
    "a sentence": logging.INFO,
    "Error: it ended": logging.ERROR,
    "do this": logging.ERROR,
}


@pytest.mark.parametrize("level", ["info", "warning", "error"])
@pytest.mark.parametrize("quiet", [False, True])
def test_what_is_shown_as_text(capsys, level: str, quiet: bool) -> None:
    options = LogOptions(level=level, quiet=quiet)  # type: ignore[arg-type]
    stderr_log.show_log(options)
    _say_everything()
    expected = [line for line, number in TEXT.items() if number >= options.shown_level]
    assert capsys.readouterr().err.splitlines() == expected


def test_debug_shows_all_and_the_tracebacks(capsys) -> None:
    stderr_log.show_log(LogOptions(level="debug"))
    _say_everything()
    text = capsys.readouterr().err
    for part in ("Debug: a detail", "of a library", "in a worker", "Traceback", *TEXT):
        assert part in text
    assert "for the file" not in text


def test_json_is_one_object_a_line(capsys) -> None:
    stderr_log.show_log(LogOptions(format="json"))
    _say_everything()
    console.show_bug(ZeroDivisionError("oops"))
    documents = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [document["level"] for document in documents[:4]] == ["info", "warning", "error", "info"]
    assert "Traceback" in documents[2]["traceback"]
    assert documents[1]["image"] == "a.png"
    assert "ZeroDivisionError: oops" in documents[-1]["traceback"]


def test_a_terminal_without_such_letters(capsys, monkeypatch) -> None:
    class _Ascii:
        encoding = "ascii"

        def __init__(self) -> None:
            self.text = ""

        def write(self, text: str) -> None:
            self.text += text.encode("ascii").decode()

        def flush(self) -> None:
            return

    stream = _Ascii()
    monkeypatch.setattr("sys.stderr", stream)
    stderr_log.show_log(LogOptions())
    LOGGER.info("grün 1 · 2")
    assert stream.text == "gr\\xfcn 1 \\xb7 2\n"


def _segment(folder: Path, *flags: str) -> Any:
    words = ["segment", str(folder / "in"), str(folder / "out"), "--model", BRIGHT_MODEL, *flags]
    return CliRunner().invoke(app, words)


@pytest.mark.slow
def test_the_flags_of_segment(tmp_path, monkeypatch) -> None:
    serial_run.without_ray(monkeypatch)
    write_files(tmp_path / "in", {"a.png": bright_png(1)})
    shown = _segment(tmp_path)
    assert shown.exit_code == 0, shown.output
    assert shown.stderr.splitlines()[0].startswith("Plan: 1 image")
    assert "status     success" in shown.stdout

    quiet = _segment(tmp_path, "--overwrite", "--quiet")
    assert (quiet.exit_code, quiet.stderr, quiet.stdout) == (0, "", "")
    as_json = _segment(tmp_path, "--overwrite", "-q", "--json")
    report = json.loads(as_json.stdout)
    assert RunReport(**report).exit_code == 0
    assert list(Path(report["log"]).glob("00000.log"))

    lines = _segment(tmp_path, "--overwrite", "--log-format", "json")
    assert all(json.loads(line) for line in lines.stderr.splitlines())
    assert sorted(path.suffix for path in Path(report["prefix"]).rglob("0000?.*")) == [
        *[".jsonl"],
        *[".log"] * 3,
    ]
    wrong = _segment(tmp_path, "--set", "log.level=loud")
    assert "log.level" in str(wrong.exception)


@pytest.mark.parametrize("command", ["segment", "train"])
def test_help_has_the_texts_of_the_options(command: str) -> None:
    text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout
    for words in ("--log-level", "--quiet", "--log-format", "Least severe messages on stderr"):
        assert words in text
