"""Times segcore against ultralytics on one core, in the environment that `tests.parity` makes.

    python -m tests.peers                       # everything, about half an hour
    python -m tests.peers --parts masks,whole --strings 2000
    python -m tests.peers --python VENV/bin/python   # an environment that has the peers already

Prints a table and writes `build/peers/peers.json`. There is no pass or fail: it measures.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tests.parity.__main__ import ROOT, environment

BUILD = ROOT / "build" / "peers"


def prepared() -> Path:
    """Python of the peers' environment, with segcore's compiled masks."""
    python = environment()
    done = python.parent.parent / "complete-fast"
    if not done.exists():
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--editable", f"{ROOT}[fast]"], check=True)
        done.touch()
    return python


def main() -> int:
    """Runs speed.py beside this file in the peers' environment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, help="interpreter that has ultralytics and numba")
    parser.add_argument("--parts", default="masks,strings,whole")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--strings", type=int, default=20_000, help="instances compared")
    parser.add_argument("--sizes", default="640x480,12 MP", help="of the images end to end")
    parser.add_argument(
        "--folder", type=Path, default=ROOT.parent / "shared" / "data" / "coco-sample" / "images"
    )
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        print(f"the comparison needs a folder of JPEG photographs; none at {arguments.folder}")
        return 2
    python = arguments.python or prepared()
    BUILD.mkdir(parents=True, exist_ok=True)
    settings = {
        "YOLO_CONFIG_DIR": str(BUILD),
        "YOLO_OFFLINE": "true",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests" / "parity"))),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        *(str(python), str(Path(__file__).with_name("speed.py"))),
        *("--parts", arguments.parts, "--repeats", str(arguments.repeats)),
        *("--strings", str(arguments.strings), "--sizes", arguments.sizes),
        *("--folder", str(arguments.folder), "--build", str(BUILD)),
    ]
    return subprocess.run(command, env={**os.environ, **settings}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
