"""Runs the tests of tables in an environment of their own, with the extra ``lakehouse``.

    python -m tests.lakehouse [ARGUMENTS OF PYTEST]

The environment, `.venv-lakehouse`, is made by the first run and sees the packages of the one that
runs this.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-lakehouse"


def main() -> int:
    """Make the environment unless there is one of today's extra, and run pytest in it."""
    python = ENVIRONMENT / "bin" / "python"
    complete = ENVIRONMENT / "complete"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["optional-dependencies"]["lakehouse"]
    # An environment of an older extra would skip the tests of what it lacks.
    if not complete.exists() or complete.read_text().splitlines() != wanted:
        print(f"making {ENVIRONMENT.name}", file=sys.stderr)
        venv.create(ENVIRONMENT, with_pip=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages = ENVIRONMENT / "lib" / version / "site-packages"
        (packages / "outer.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *wanted], check=True)
        complete.write_text("\n".join(wanted))
    arguments = sys.argv[1:] or ["tests/lakehouse"]
    tools = Path(sys.executable).parent  # the S3 server is one of them
    path = os.pathsep.join([str(tools), os.environ.get("PATH", "")])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}
    command = [str(python), "-m", "pytest", "-q", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
