"""`segcore report OUTPUT`: the file, what is said about it, exit codes; in a browser as well."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import call_segcore
from tests.support.finished_output import FinishedOutput, finish_run


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FinishedOutput:
    monkeypatch.chdir(tmp_path)
    return finish_run(str(tmp_path), n_images=5)


def test_a_file_here_or_where_it_is_wanted(finished: FinishedOutput, tmp_path: Path) -> None:
    done = call_segcore("report", finished.output)
    default = Path(f"{finished.report.edition}-report.html")
    assert (done.returncode, done.stdout) == (0, "")
    assert f"Wrote {default} (" in done.stderr
    done = call_segcore("report", finished.output, "--out", "new/r.html", "--json", "--images", "2")
    document = json.loads(done.stdout)
    assert document["problems"] == []
    assert document["bytes"] == (tmp_path / "new" / "r.html").stat().st_size
    assert document["bytes"] < default.stat().st_size
    assert list(document["section_bytes"]) == ["run", "counts", "gallery"]


def test_what_is_missing_is_said_and_makes_the_exit_code_1(finished: FinishedOutput) -> None:
    Path("in/image03.png").unlink()
    done = call_segcore("report", finished.output, "--ground-truth", "nix.json")
    assert done.returncode == 1
    assert "Scores left out: " in done.stderr
    assert "image03.png does not exist." in done.stderr
    assert Path(f"{finished.report.edition}-report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "report.parquet"], "no name of an HTML file"),
        (["--edition", "nix"], "has no edition nix"),
        (["--images", "0"], "--images"),
    ],
)
def test_errors_are_sentences(finished: FinishedOutput, arguments: list[str], message: str) -> None:
    done = call_segcore("report", finished.output, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(Path().glob("*.html"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_shows_it_without_complaint(finished: FinishedOutput, tmp_path: Path) -> None:
    call_segcore("report", finished.output, "--out", "report.html")
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--user-data-dir={tmp_path}/profile", "--dump-dom", f"file://{tmp_path}/report.html"],
        capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr  # such as a refusal by the page's own policy
    assert 'id="score-slider"' in done.stdout  # its own script ran
