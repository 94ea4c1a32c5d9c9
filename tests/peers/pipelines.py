"""A whole job of segcore against what a user writes with Ray Data and ultralytics, in pairs.

    python -m tests.peers.pipelines --python VENV/bin/python [--images 384] [--pairs 5]

VENV has ultralytics; `tests.parity` makes one in .venv-peers. Both sides segment the same
photographs with the same weights on all cores, from the start of the command to its end; they take
turns, so that other work on the machine meets both. Prints a line for each pair, then the medians
of the ratios, by the clock and by CPU seconds of all processes, and writes nothing. It measures;
nothing can fail.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import psutil

from tests.parity.__main__ import peers_environment
from tests.support.paths import ROOT

_SAMPLE_INTERVAL_S = 0.2


@dataclass(frozen=True)
class Cost:
    """Of one command, from its start to its end."""

    seconds: float
    cpu_seconds: float


def run_command(command: list[str], build: Path) -> Cost:
    """Run a command, which must succeed; CPU seconds are those of all its processes.

    Processes of Ray are not waited for by their parents, so their CPU time is sampled.
    """
    started = monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=peers_environment(build),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    cpu_seconds: dict[int, float] = {}
    ended = threading.Event()

    def sample() -> None:
        root = psutil.Process(process.pid)
        while not ended.wait(_SAMPLE_INTERVAL_S):
            try:
                for one in [root, *root.children(recursive=True)]:
                    times = one.cpu_times()
                    cpu_seconds[one.pid] = times.user + times.system
            except psutil.Error:
                continue  # one ended meanwhile

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    _, stderr = process.communicate()
    seconds = monotonic() - started
    ended.set()
    sampler.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{stderr[-3000:]}")
    return Cost(seconds, sum(cpu_seconds.values()))


def make_photos(folder: Path, target: Path, n: int) -> None:
    """`n` photographs, the same ones again and again under other names."""
    photos = sorted(folder.glob("*.jpg"))
    if not photos:
        raise SystemExit(f"the comparison needs a folder of JPEG photographs; none at {folder}")
    target.mkdir()
    for number in range(n):
        shutil.copyfile(photos[number % len(photos)], target / f"{number:05d}.jpg")


def main() -> None:
    """Run the pairs and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", required=True, help="interpreter that has ultralytics")
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, default=ROOT.parent / "shared" / "data" / "coco-sample" / "images"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        photos, weights = work / "photos", work / "yolo11n-seg.pt"
        make_photos(options.folder, photos, options.images)
        measure = [options.python, "-m", "tests.measure.gpu.make_checkpoint"]
        run_command([*measure, str(weights), "--photos", str(photos)], work)
        sides = {
            "hand": _by_hand(options.python, photos, weights, work / "hand"),
            "own": _by_us(photos, weights, work / "own"),
        }
        ratios = []
        for pair in range(options.pairs):
            costs = {}
            for side in sides if pair % 2 == 0 else reversed(sides):
                costs[side] = run_command(sides[side], work)
                shutil.rmtree(work / side)
            hand, own = costs["hand"], costs["own"]
            ratios.append((hand.seconds / own.seconds, hand.cpu_seconds / own.cpu_seconds))
            print(
                f"pair {pair + 1}: by hand {hand.seconds:.1f} s ({hand.cpu_seconds:.0f} s of CPU), "
                f"segcore {own.seconds:.1f} s ({own.cpu_seconds:.0f} s of CPU): "
                f"{ratios[-1][0]:.2f}x, {ratios[-1][1]:.2f}x by CPU",
                flush=True,
            )
    clock, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"{options.images} images, median of {options.pairs}: {clock:.2f}x, {cpu:.2f}x by CPU")


def _by_hand(python: str, photos: Path, weights: Path, output: Path) -> list[str]:
    command = [python, "-m", "tests.measure.gpu.handwritten", str(photos), str(output)]
    return [*command, "--model", str(weights), "--device", "cpu"]


def _by_us(photos: Path, weights: Path, output: Path) -> list[str]:
    command = [sys.executable, "-m", "segcore", "segment", str(photos), str(output)]
    settings = ["--set", "model.max_det=50", "--set", "ray.address=local"]
    return [*command, "--model", str(weights), "--device", "cpu", *settings]


if __name__ == "__main__":
    main()
