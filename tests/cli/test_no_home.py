"""Users without a home directory, as in containers: no HOME, or one that is not there.

Below /proc nobody can make a folder; root could make /nonexistent.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from segcore.distributed import quiet
from tests.support.bright_images import bright_png
from tests.support.jobs import write_files
from tests.support.paths import PYTHONPATH

_UNSHARE = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
_NAMES = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "SEGCORE_CACHE", "XDG_CACHE_HOME")


def _can_be_a_user_without_a_name() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*_UNSHARE, "true"], check=False, capture_output=True).returncode == 0


def _run(home: str | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    if home is None and not _can_be_a_user_without_a_name():
        pytest.skip("this system lets nobody be a user without a name (unshare --user)")
    environment = {name: value for name, value in os.environ.items() if name not in _NAMES}
    environment |= {"PYTHONPATH": PYTHONPATH} | ({"HOME": home} if home else {})
    command = [*(_UNSHARE if home is None else []), sys.executable, "-m", "segcore", *arguments]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("home", [None, "/proc/nowhere", "/dev/null/home"])
def test_models_and_convert_need_no_home(home: str | None, tmp_path: Path) -> None:
    listed = _run(home, "models")
    assert (listed.returncode, "nuclei-yolo11n" in listed.stdout) == (0, True), listed.stderr
    assert ("SEGCORE_CACHE" in listed.stderr) == (home is None)
    entries = json.loads(_run(home, "models", "--json").stdout)
    assert any(entry["file"] is None for entry in entries) == (home is None)
    target = tmp_path / "x.safetensors"
    converted = _run(home, "convert", "nuclei-yolo11n", str(target))
    assert "Traceback" not in converted.stderr
    assert converted.returncode == 0, converted.stderr
    assert target.is_file()


@pytest.mark.ray
@pytest.mark.faults
@pytest.mark.parametrize("home", [None, "/proc/nowhere", "/proc"])
def test_segment_needs_no_home(home: str | None, tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", {"a.png": bright_png(1)})
    model = ["--model", "tests.support.fake_models:BrightModel"]
    finished = _run(home, "segment", source, str(tmp_path / "out"), *model)
    assert finished.returncode == 0, finished.stderr


def test_a_home_that_cannot_be_found_is_named_for_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("HOME", "/root")
    quiet.set_environment()
    assert os.environ["HOME"] == "/root"
    monkeypatch.setattr(quiet.Path, "home", no_home)
    quiet.set_environment()
    assert os.environ["HOME"] == "/nonexistent"
