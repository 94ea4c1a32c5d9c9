"""Creates an environment with the peers (segcore never depends on ultralytics) and compares.

    python -m tests.parity                      # all models; the first run downloads the peers
    python -m tests.parity --models n,s,v2 --images 6
    python -m tests.parity --python VENV/bin/python   # an environment that has the peers already
    python -m tests.parity --only-segment             # against the peers' results of the last run

Models are the sizes n, s, m, l, x of YOLO11-seg and the layouts v1, v2 of Mask R-CNN. Results are a
table on stdout and JSON in `build/parity`. The exit code is 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.parity import segment_command
from tests.support.environments import environment
from tests.support.paths import ROOT

BUILD = ROOT / "build" / "parity"
MODELS = {"tests.parity.yolo11": ("n", "s", "m", "l", "x"), "tests.parity.maskrcnn": ("v1", "v2")}


def peers_python(*installs: Sequence[str]) -> Path:
    """Python of the peers' environment, which is created on first use (several GB).

    Args:
        installs: Arguments of further calls of `pip install`.
    """
    # Together, so that torchvision gets the build of torch that it was made for.
    peers = ("ultralytics", "torch", "torchvision")
    return environment(".venv-peers", peers, ("--editable", str(ROOT)), *installs)


def peers_environment(build: Path) -> dict[str, str]:
    """Environment variables for programs that call the peers: one thread, no downloads."""
    return {
        **os.environ,
        "YOLO_CONFIG_DIR": str(build),
        "YOLO_OFFLINE": "true",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }


def compare_with_peers(arguments: argparse.Namespace, requested: list[str]) -> bool:
    """Runs the comparisons in the peers' environment; whether all promises hold."""
    python = arguments.python or peers_python()
    all_hold = True
    for module, models in MODELS.items():
        chosen = [model for model in models if model in requested]
        if not chosen:
            continue
        command = [
            *(str(python), "-m", module),
            *("--models", ",".join(chosen), "--images", str(arguments.images)),
            *("--folder", str(arguments.folder), "--build", str(BUILD)),
        ]
        process = subprocess.run(command, env=peers_environment(BUILD), check=False)
        all_hold &= process.returncode == 0
    return all_hold


def main() -> int:
    """Compares in the peers' environment, then through the command `segcore segment`."""
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
    requested = arguments.models.split(",")
    unknown = set(requested) - {model for models in MODELS.values() for model in models}
    if unknown:
        parser.error(f"unknown models {', '.join(sorted(unknown))}")
    if not arguments.folder.is_dir():
        print(f"parity needs a folder of JPEG photographs; none at {arguments.folder}")
        return 2
    BUILD.mkdir(parents=True, exist_ok=True)
    peers_failed = not arguments.only_segment and not compare_with_peers(arguments, requested)
    command_failed = not segment_command.compare_with_peers(requested, arguments.folder, BUILD)
    return int(peers_failed or command_failed)


if __name__ == "__main__":
    sys.exit(main())
