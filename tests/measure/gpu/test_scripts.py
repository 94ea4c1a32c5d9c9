"""The scripts for a machine with a GPU also run without one, on tiny sizes."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.measure.gpu import handwritten, make_checkpoint, profile_postprocess, whole_job
from tests.support.commands import run_module
from tests.support.jobs import BRIGHT_MODEL

needs_ultralytics = pytest.mark.skipif(
    importlib.util.find_spec("ultralytics") is None, reason="ultralytics is not installed here"
)
pytestmark = pytest.mark.slow


def _run_script(name: str, *arguments: object) -> CompletedProcess[str]:
    return run_module(f"tests.measure.gpu.{name}", *map(str, arguments))


@pytest.fixture
def run_main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs a script's `main` in this process, which has imported torch; what it printed."""

    def run(main: Callable[[], object], *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images in two shards, two of them loose."""
    folder = tmp_path_factory.mktemp("gpu") / "archive"
    sizes = ("--shards", 2, "--images-per-shard", 2, "--loose", 1)
    done = _run_script("make_archive", folder, *sizes)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"4 images in {folder / 'shards'}\n"
    assert len(list((folder / "shards").glob("*.tar"))) == 2
    assert len(list((folder / "loose").glob("*.jpg"))) == 2
    return folder


@pytest.mark.faults
def test_an_archive_of_photographs(tmp_path: Path, archive: Path) -> None:
    sizes = ("--shards", 1, "--images-per-shard", 3, "--loose", 1)
    done = _run_script("make_archive", tmp_path, "--photos", archive / "loose", *sizes)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "loose").glob("*.jpg"))) == 3


@pytest.mark.faults
def test_decode_rate(archive: Path) -> None:
    done = _run_script("decode_rate", archive / "loose", "--threads", 1, 2, "--processes", 1)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["files"] == 2
    for name in ("threads_1_images_s", "threads_2_images_s", "processes_1_images_s"):
        assert figures[name] > 0


@pytest.mark.slow
def test_profile_of_a_batch(archive: Path, run_main: Callable[..., str]) -> None:
    options = ("--device", "cpu", "--batch-size", 1, "--imgsz", 64, "--repeats", 1)
    printed = run_main(profile_postprocess.main, archive / "loose", *options)
    figures = json.loads(printed.partition("\n")[0])
    assert (figures["device"], figures["batch"]) == ("cpu", 1)
    assert figures["forward_ms"] > 0
    assert figures["nms_and_masks_ms"] > 0
    assert "Self CPU" in printed


@pytest.mark.ray
@pytest.mark.faults
def test_whole_job(archive: Path, tmp_path: Path) -> None:
    options = ("--device", "cpu", "--model", BRIGHT_MODEL, "--work", tmp_path)
    done = _run_script("whole_job", archive, *options, "--jobs", "one", "--timeout-s", 250)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert (document["job"], document["images"], document["ok"]) == ("one", 4, 4)
    assert document["images_s"] > 0


def test_an_unknown_job_is_a_usage_error(
    run_main: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run_main(whole_job.main, "archive", "--device", "cpu", "--jobs", "eight")
    assert caught.value.code == 2
    assert "no such job on cpu: eight" in capsys.readouterr().err


@pytest.mark.skipif(
    importlib.util.find_spec("ultralytics") is not None, reason="ultralytics is installed here"
)
def test_without_ultralytics_a_script_says_what_it_needs(
    archive: Path, tmp_path: Path, run_main: Callable[..., str]
) -> None:
    with pytest.raises(SystemExit, match="This needs ultralytics"):
        run_main(make_checkpoint.main, tmp_path / "x.pt", "--photos", archive / "loose")
    with pytest.raises(SystemExit, match="This needs ultralytics"):
        run_main(handwritten.main, archive / "loose", tmp_path, "--model", tmp_path / "x.pt")


@pytest.mark.ray
@pytest.mark.faults
@needs_ultralytics
def test_handwritten(archive: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "random.pt"
    done = _run_script("make_checkpoint", checkpoint, "--photos", archive / "loose")
    assert done.returncode == 0, done.stderr
    arguments = (archive / "loose", tmp_path / "out", "--model", checkpoint, "--device", "cpu")
    done = _run_script("handwritten", *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 2
    assert list((tmp_path / "out").glob("*.parquet"))
