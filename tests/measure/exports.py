"""What an export of many masks costs: seconds, CPU seconds and memory, for each format.

    python -m tests.measure.exports [--masks 1000000] [--per-image 50] [--size nuclei]
                                    [--formats "coco;cvat"] [--workers 2]

An output with so many masks is written first, without images, so formats that need these (overlays)
are left out, and so is `--images copy`. Each export is a process of its own with its workers; its
memory is the largest sum of what they hold at one time, pages that they share counted for each.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.support.generated_output import SIZES, write_output
from tests.support.paths import PYTHONPATH

FORMATS = {
    "coco": [],
    "coco, polygons": ["--format", "coco", "--masks", "polygons"],
    "coco-results": ["--format", "coco-results"],
    "yolo-seg": ["--format", "yolo-seg"],
    "cvat": ["--format", "cvat"],
    "label-studio": ["--format", "label-studio"],
    "label-studio, brush": ["--format", "label-studio", "--masks", "exact"],
    "labelme": ["--format", "labelme"],
    "hf": ["--format", "hf"],
}
_IMAGES_IN_A_UNIT = 250
_POLL_S = 0.2


def measure(arguments: list[str]) -> tuple[float, float, int]:
    """Run `segcore` with these arguments: seconds, CPU seconds, bytes of memory at most."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    process = psutil.Popen(
        [sys.executable, "-m", "segcore", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, _memory(process))
        time.sleep(_POLL_S)
    seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SystemExit(process.stderr.read().decode())
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, peak


def _memory(process: psutil.Process) -> int:
    total = 0
    try:
        for one in [process, *process.children(recursive=True)]:
            total += one.memory_info().rss
    except psutil.Error:  # one has ended in the meantime
        pass
    return total


def main() -> None:
    """Write an output, export it in each format, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--masks", type=int, default=1_000_000)
    parser.add_argument("--per-image", type=int, default=50)
    parser.add_argument("--size", choices=SIZES, default="nuclei")
    parser.add_argument("--formats", default=";".join(FORMATS), help="separated by ;")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="segcore-exports-") as name:
        folder = Path(name)
        n_units = max(1, options.masks // options.per_image // _IMAGES_IN_A_UNIT)
        output = str(folder / "out")
        write_output(output, n_units, _IMAGES_IN_A_UNIT, options.per_image, options.size)
        n_masks = n_units * _IMAGES_IN_A_UNIT * options.per_image
        print(f"{n_masks:,} masks ({options.size}) in {n_units * _IMAGES_IN_A_UNIT:,} images")
        print(f"{'format':<22}{'seconds':>9}{'CPU s':>9}{'MB memory':>11}{'MB written':>12}")
        for key in options.formats.split(";"):
            _print_row(key.strip(), folder, output, options.workers)


def _print_row(key: str, folder: Path, output: str, workers: int) -> None:
    dest = folder / "dest"
    arguments = ["export", output, str(dest), *FORMATS[key], "--workers", str(workers)]
    seconds, cpu, peak = measure(arguments)
    size = sum(path.stat().st_size for path in dest.rglob("*") if path.is_file())
    shutil.rmtree(dest)
    print(
        f"{key:<22}{seconds:>9.1f}{cpu:>9.1f}{peak / 1e6:>11,.0f}{size / 1e6:>12,.0f}", flush=True
    )


if __name__ == "__main__":
    main()
