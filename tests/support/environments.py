"""Environments for the tools and libraries of others, which segcore never depends on.

One is made on first use, and made anew where it was made for something else than is wanted today:
in an environment of an older list of packages, tests of what it lacks would be skipped or wrong.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT


def environment(name: str, *installs: Sequence[str], sees_this_one: bool = False) -> Path:
    """Python of the environment in the folder `name` of the repository.

    Two callers may share one, if the `installs` of one begin with those of the other.

    Args:
        installs: Arguments of `pip install`, one call after the other.
        sees_this_one: It also has the packages of the environment that this runs in.
    """
    folder = ROOT / name
    python, complete = folder / "bin" / "python", folder / "complete"
    packages = sysconfig.get_path("purelib") if sees_this_one else ""
    # The scripts of an environment have its path in their first line.
    made_for: dict[str, Any] = {
        "folder": str(folder), "python": list(sys.version_info[:2]), "sees": packages,
    }  # fmt: skip
    wanted = [_with_requirements(install) for install in installs]
    done = _read_done(complete, made_for)
    if done is None or (done[: len(wanted)] != wanted and wanted[: len(done)] != done):
        print(f"making {name} (some minutes)", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        if packages:
            paths = {"base": str(folder), "platbase": str(folder)}
            own = Path(sysconfig.get_path("purelib", "venv", paths))
            (own / "outer.pth").write_text(packages + "\n")
        done = []
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for install, record in list(zip(installs, wanted, strict=True))[len(done) :]:
        subprocess.run([*pip, *install], check=True)
        done.append(record)
        complete.write_text(json.dumps({**made_for, "installs": done}, indent=1))
    return python


def extra(name: str) -> list[str]:
    """What pyproject.toml lists for an extra of segcore."""
    listed: list[str] = _project()["optional-dependencies"][name]
    return listed


def _read_done(complete: Path, made_for: dict[str, Any]) -> list[list[str]] | None:
    """The calls of pip that a usable environment has behind it; None where there is none."""
    try:
        written = json.loads(complete.read_text())
    except (FileNotFoundError, ValueError):  # those of an older form are not JSON
        return None
    if not isinstance(written, dict):
        return None
    done = written.pop("installs", None)
    return done if written == made_for and isinstance(done, list) else None


def _with_requirements(install: Sequence[str]) -> list[str]:
    """The arguments; with what segcore requires today, if they install segcore itself."""
    if not any(word.startswith(str(ROOT)) for word in install):
        return list(install)
    project = _project()
    extras = [f"{name}: {one}" for name, all_ in project["optional-dependencies"].items()
              for one in all_]  # fmt: skip
    return [*install, *project["dependencies"], *extras]


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project
