"""Time and memory of `segcore compare` and `segcore evaluate` on generated masks.

    python -m tests.measure.compare --images 5000 --instances 20

Writes two editions and known masks of that many images into a temporary folder (photos of
1280 x 960 with masks of 60 to 400 pixels, or `--size nuclei`), then runs each command in a process
of its own: wall time, CPU time of all its threads, and the most resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from segcore.storage import Storage
from tests.support.generated_output import draw_instances
from tests.support.two_editions import drift, truth_bytes, write_images

_DISTINCT = 200  # images that are drawn; the rest repeats them


def write_sides(folder: str, n_images: int, n_instances: int, size: str) -> list[str]:
    """Write editions A and B and a ground truth; their places."""
    drawn = [draw_instances(size, n_instances, seed) for seed in range(min(n_images, _DISTINCT))]
    drifted = [drift(one, seed) for seed, one in enumerate(drawn)]
    ids = [f"s3://archive/photos/{number:06}.jpg" for number in range(n_images)]
    first = {image_id: drawn[i % len(drawn)] for i, image_id in enumerate(ids)}
    second = {image_id: drifted[i % len(drawn)] for i, image_id in enumerate(ids)}
    write_images(f"{folder}/a", first, 256, "first")
    write_images(f"{folder}/b", second, 256, "second")
    Storage().write(f"{folder}/truth.json", truth_bytes(first))
    return [f"{folder}/a", f"{folder}/b", f"{folder}/truth.json"]


def measure(arguments: list[str]) -> dict[str, float]:
    """Run a command; seconds, CPU seconds and MB at its peak."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "segcore", *arguments, "--json"], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"segcore {' '.join(arguments)} ended with {code}")
    return {
        "wall_s": round(time.monotonic() - started, 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--instances", type=int, default=20)
    parser.add_argument("--size", choices=("photos", "nuclei"), default="photos")
    parser.add_argument("--only", choices=("compare", "compare-truth", "evaluate"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        a, b, truth = write_sides(folder, args.images, args.instances, args.size)
        size = Path(truth).stat().st_size / 1e6
        print(f"{args.images:,} images of {args.instances} instances; truth.json {size:.0f} MB")
        commands = {
            "compare": ["compare", a, b],
            "compare-truth": ["compare", b, truth],
            "evaluate": ["evaluate", b, truth],
        }
        for name, arguments in commands.items():
            if args.only in (None, name):
                print(name, json.dumps(measure(arguments)), flush=True)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    print(f"(generating took {own:.0f} s of CPU)")


if __name__ == "__main__":
    main()
