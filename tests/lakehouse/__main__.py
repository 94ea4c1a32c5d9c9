"""Runs the tests of tables in an environment of their own, with the extra ``lakehouse``.

    python -m tests.lakehouse [ARGUMENTS OF PYTEST]

The environment, `.venv-lakehouse`, is made by the first run and sees the packages of the one that
runs this.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.environments import environment, extra
from tests.support.paths import ROOT


def main() -> int:
    """Run pytest in the environment."""
    python = environment(".venv-lakehouse", extra("lakehouse"), sees_this_one=True)
    arguments = sys.argv[1:] or ["tests/lakehouse", "tests/cluster/test_policy_of_tables.py"]
    tools = Path(sys.executable).parent  # the S3 server is one of them
    path = os.pathsep.join([str(tools), os.environ.get("PATH", "")])
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}
    command = [str(python), "-m", "pytest", "-q", "-rs", *arguments]
    return subprocess.run(command, cwd=ROOT, env=variables).returncode


if __name__ == "__main__":
    sys.exit(main())
