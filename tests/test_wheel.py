"""The wheel installs one top-level package, whatever else lies in the repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import segcore
from tests.support.paths import ROOT


@pytest.mark.faults
def test_the_wheel_holds_only_segcore(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="setuptools builds the wheel")
    source = tmp_path / "source"  # a copy, because setuptools writes into the tree
    folders = ["segcore", "jobs", "configs", "docs"]
    for folder in folders:
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for folder in ("jobs", "tests", "cluster"):  # as importable packages
        (source / folder).mkdir(exist_ok=True)
        (source / folder / "__init__.py").touch()
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source / file)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--no-index", "-w", str(tmp_path / "wheels"), str(source)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    (wheel,) = (tmp_path / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    info = f"segcore-{segcore.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"segcore", info}
    bundled = {path.name for path in (ROOT / "segcore/models/bundled").iterdir()}
    packed = {name.rpartition("/")[2] for name in names if "models/bundled/" in name}
    assert packed == bundled
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "segcore").rglob("*.py")}
    assert modules <= set(names)
