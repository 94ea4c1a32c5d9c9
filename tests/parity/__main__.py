"""Makes an environment with the peers (segcore never depends on ultralytics) and compares.

    python -m tests.parity                      # all models; the first run downloads the peers
    python -m tests.parity --models n,s,v2 --images 6
    python -m tests.parity --python VENV/bin/python   # an environment that has it already
    python -m tests.parity --only-segment             # peers' results of the last time

Models are the sizes n, s, m, l, x of YOLO11-seg and the layouts v1, v2 of Mask R-CNN. Results: a
table on stdout, JSON in `build/parity`. Exit code 1 when a promise is broken.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

from tests.parity import whole

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "parity"
VENV = ROOT / ".venv-peers"
SCRIPTS = {"yolo11.py": ("n", "s", "m", "l", "x"), "maskrcnn.py": ("v1", "v2")}


def environment() -> Path:
    """Python of the peers' environment, made on first use (several GB)."""
    python = VENV / "bin" / "python"
    done = VENV / "complete"
    if not done.exists():
        print("making the peers' environment (some minutes, several GB)", file=sys.stderr)
        venv.create(VENV, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        # The build of torch that torchvision from the same index was made for.
        subprocess.run([*pip, "ultralytics", "torch", "torchvision"], check=True)
        subprocess.run([*pip, "--editable", str(ROOT)], check=True)
        done.touch()
    return python


def run_peers(arguments: argparse.Namespace, asked: list[str]) -> bool:
    """Runs the scripts beside this file in the peers' environment; whether all promises hold."""
    python = arguments.python or environment()
    settings = {"YOLO_CONFIG_DIR": str(BUILD), "YOLO_OFFLINE": "true", "PYTHONPATH": str(ROOT)}
    settings["OMP_NUM_THREADS"] = "1"
    good = True
    for script, models in SCRIPTS.items():
        chosen = [model for model in models if model in asked]
        if not chosen:
            continue
        command = [
            str(python),
            str(Path(__file__).with_name(script)),
            *("--models", ",".join(chosen), "--images", str(arguments.images)),
            *("--folder", str(arguments.folder), "--build", str(BUILD)),
        ]
        good &= subprocess.run(command, env={**os.environ, **settings}, check=False).returncode == 0
    return good


def main() -> int:
    """Compares inside the peers' environment, then through the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, help="interpreter that has ultralytics")
    parser.add_argument("--models", default="n,s,m,l,x,v1,v2")
    parser.add_argument("--images", type=int, default=8, help="images for each model")
    parser.add_argument(
        "--only-segment", action="store_true", help="run segcore again, not the peers"
    )
    parser.add_argument(
        "--folder", type=Path, default=ROOT.parent / "shared" / "data" / "coco-sample" / "images"
    )
    arguments = parser.parse_args()
    asked = arguments.models.split(",")
    unknown = set(asked) - {model for models in SCRIPTS.values() for model in models}
    if unknown:
        parser.error(f"unknown models {', '.join(sorted(unknown))}")
    if not arguments.folder.is_dir():
        print(f"parity needs a folder of JPEG photographs; none at {arguments.folder}")
        return 2
    BUILD.mkdir(parents=True, exist_ok=True)
    failed = not arguments.only_segment and not run_peers(arguments, asked)
    failed |= not whole.check(asked, arguments.folder, BUILD)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
