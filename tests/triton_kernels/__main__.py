"""Proves the kernels for GPUs where there is none.

    python -m tests.triton_kernels                  # 20,000 instances: 12 to 40 minutes of one core
    python -m tests.triton_kernels --instances 300

Makes an environment of its own on first use (`.venv-triton`, 1 GB), which takes torch and the rest
from the one that runs this. Then, in this order: the kernels are compiled for an H100 and their
instructions looked at; their tests run in Triton's interpreter; and strings of many instances are
compared with NumPy's. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from tests.support.environments import environment
from tests.support.paths import ROOT

TESTS = ("tests/masks/test_triton.py", "tests/models/test_triton_nms.py")


def main() -> int:
    """Run all checks; 1 if one fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--instances", type=int, default=20_000)
    options = parser.parse_args()
    python = str(environment(".venv-triton", ["--no-deps", "triton>=3.6"], sees_this_one=True))
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables["PYTHONPATH"] = str(ROOT)
    interpreted = variables | {"TRITON_INTERPRET": "1"}
    many = [python, "-m", "tests.triton_kernels.many", "--instances", str(options.instances)]
    commands = [
        ([python, "-m", "tests.triton_kernels.ptx"], variables),
        ([python, "-m", "pytest", "-q", "--timeout", "1800", *TESTS], interpreted),
        (many, interpreted),
    ]
    failed = [
        command
        for command, environ in commands
        if subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode
    ]
    for command in failed:
        print("failed:", *command[1:], file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
