"""Times segcore against ultralytics on one core, in the environment that `tests.parity` creates.

    python -m tests.peers                       # everything, about half an hour
    python -m tests.peers --parts masks,end_to_end --strings 2000
    python -m tests.peers --python VENV/bin/python   # an environment that has the peers already

Prints a table and writes `build/peers/peers.json`. It measures; nothing can fail.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tests.parity.__main__ import peers_environment, peers_python
from tests.support.paths import ROOT

BUILD = ROOT / "build" / "peers"


def peers_python_with_numba() -> Path:
    """Python of the peers' environment, with the extra for segcore's compiled masks."""
    return peers_python(("--editable", f"{ROOT}[fast]"))


def main() -> int:
    """Runs `tests.peers.speed` in the peers' environment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, help="interpreter that has ultralytics and numba")
    parser.add_argument("--parts", default="masks,strings,end_to_end")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--strings", type=int, default=20_000, help="number of instances compared")
    parser.add_argument("--sizes", default="640x480,12 MP", help="of the images end to end")
    parser.add_argument(
        "--folder", type=Path, default=ROOT.parent / "shared" / "data" / "coco-sample" / "images"
    )
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        print(f"the comparison needs a folder of JPEG photographs; none at {arguments.folder}")
        return 2
    python = arguments.python or peers_python_with_numba()
    BUILD.mkdir(parents=True, exist_ok=True)
    command = [
        *(str(python), "-m", "tests.peers.speed"),
        *("--parts", arguments.parts, "--repeats", str(arguments.repeats)),
        *("--strings", str(arguments.strings), "--sizes", arguments.sizes),
        *("--folder", str(arguments.folder), "--build", str(BUILD)),
    ]
    return subprocess.run(command, env=peers_environment(BUILD), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
