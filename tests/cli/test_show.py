"""`segcore show OUTPUT`: files, sheets, reasons, and what is said about them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from segcore.cli import show
from tests.support.commands import call_segcore
from tests.support.finished_output import FinishedOutput, finish_run


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FinishedOutput:
    monkeypatch.chdir(tmp_path)
    return finish_run(str(tmp_path), n_images=6)


def test_a_sheet_a_picture_and_a_folder(finished: FinishedOutput) -> None:
    done = call_segcore("show", finished.output)
    assert (done.returncode, done.stdout) == (0, "")
    sheet = Path(f"{finished.report.edition}-random.png")
    assert f"Wrote {sheet}." in done.stderr
    assert Image.open(sheet).width > 1000
    assert call_segcore("show", finished.output, "image03.png").returncode == 0
    assert Image.open("image03-masks.png").size == (224, 172)  # small ones are enlarged
    done = call_segcore("show", finished.output, "*.png", "--limit", "3", "--out", "pictures/")
    assert "Wrote 3 files in pictures." in done.stderr
    assert "4 more images like these" in done.stderr
    assert len(list(Path("pictures").iterdir())) == 3
    assert (
        call_segcore("show", finished.output, "--random", "2", "--out", "two.jpg").returncode == 0
    )
    assert Image.open("two.jpg").format == "JPEG"


def test_failed_images_are_cards_and_json_says_all(finished: FinishedOutput) -> None:
    done = call_segcore("show", finished.output, "--failed", "--json")
    document = json.loads(done.stdout)
    assert [row["error_code"] for row in document["images"]] == ["not_an_image"]
    assert (done.returncode, document["matching"]) == (0, 1)
    assert Image.open(document["files"][0]).size == (640, 480)


def test_an_image_that_is_gone_is_said_and_the_others_are_shown(
    finished: FinishedOutput, tmp_path: Path
) -> None:
    (tmp_path / "in" / "image02.png").unlink()
    done = call_segcore("show", finished.output, "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 1
    problems = {row["image_id"].rpartition("/")[2]: row["problem"] for row in document["images"]}
    assert [name for name, problem in problems.items() if problem] == ["image02.png"]
    assert "image02.png cannot be shown" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nix.png"], "has no image nix.png"),
        (["--failed", "--empty"], "Choose one of --failed and --empty"),
        (["--random", "2", "--limit", "2"], "leave --limit out"),
        (["--empty"], "has no images without instances to show"),
        (["--out", "x.nothing"], "neither a picture nor a folder"),
        (["--edition", "nix"], "has no edition nix"),
        (["image01.png", "--empty"], "like image01.png to show"),
    ],
)
def test_errors_are_sentences(finished: FinishedOutput, arguments: list[str], message: str) -> None:
    done = call_segcore("show", finished.output, *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(Path().glob("*.png"))


def test_a_file_that_cannot_be_written_is_an_error(finished: FinishedOutput) -> None:
    Path("file").write_text("")
    done = call_segcore("show", finished.output, "--out", "file/x.png")
    assert done.returncode == 1
    assert "file/x.png cannot be written" in done.stderr


def test_a_viewer_is_opened_only_where_a_person_sees_it(
    finished: FinishedOutput, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(show.typer, "launch", lambda file: opened.append(file) or 0)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    for display, is_terminal, expected in ((":0", True, 1), ("", True, 0), (":0", False, 0)):
        opened.clear()
        monkeypatch.setenv("DISPLAY", display)
        monkeypatch.setattr(show, "is_terminal", lambda answer=is_terminal: answer)
        done = call_segcore("show", finished.output, "image01.png")
        assert (len(opened), done.stderr.count("Opened it.")) == (expected, expected)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(show, "is_terminal", lambda: True)
    opened.clear()
    for option in ("--no-open", "--json"):
        assert call_segcore("show", finished.output, "image01.png", option).returncode == 0
    assert opened == []
