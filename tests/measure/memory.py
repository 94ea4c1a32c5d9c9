"""Memory of a whole job over more and more images: driver, actors, object store, spilling.

    python -m tests.measure.memory [--images 1000 5000 20000] [--csv FILE] [--plot FILE.png]

Each size is a job of its own, the real command on a Ray of its own, over tar shards of small
JPEG and PNG images that are made first. RSS counts what several processes share (libraries, pages
of the object store) in each of them; USS is what would be freed if the process ended. The exit code
is 1 when a peak grows by more than 10 % from the first size to the last, or anything was spilled.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import psutil

from tests.support.archives import tar_bytes
from tests.support.commands import SegmentCommand, command_line, pool_actors
from tests.support.image_files import save
from tests.support.jobs import BRIGHT_MODEL

IMAGES_PER_SHARD = 250
N_DISTINCT_IMAGES = 50
MAX_GROWTH = 1.1
SAMPLE_EVERY_S = 0.5
_MB = 1e6


@dataclass(frozen=True)
class MemorySample:
    """The processes of a job at one moment; megabytes (10^6 bytes), of actors the largest."""

    seconds: float
    driver_rss: float
    driver_uss: float
    actor_rss: float
    actor_uss: float
    store: float
    spilled: float


def make_shards(folder: Path, n: int) -> None:
    """Write `n` images in tar shards; a function of `n`."""
    contents = [_encode_image(i, ("JPEG", "PNG")[i % 2]) for i in range(N_DISTINCT_IMAGES)]
    folder.mkdir()
    for start in range(0, n, IMAGES_PER_SHARD):
        members = [
            (f"{i:06d}.{'jpg' if i % 2 == 0 else 'png'}", contents[i % N_DISTINCT_IMAGES])
            for i in range(start, min(start + IMAGES_PER_SHARD, n))
        ]
        (folder / f"{start:06d}.tar").write_bytes(tar_bytes(members))


def _encode_image(seed: int, kind: str) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = np.zeros((240, 320, 3), np.uint8)
    for _ in range(8):
        y, x = rng.integers(0, 200, 2)
        pixels[y : y + rng.integers(5, 40), x : x + rng.integers(5, 40)] = rng.integers(0, 256, 3)
    return save(pixels, kind)


def sample_memory(command: SegmentCommand) -> MemorySample | None:
    """What the processes of a job hold now; None once the driver has ended."""
    processes = command.descendants()
    try:
        driver = psutil.Process(command.process.pid).memory_full_info()
    except psutil.Error:
        return None
    actors = [memory for process in pool_actors(processes) if (memory := _rss_and_uss_mb(process))]
    store = spilled = 0.0
    for process in processes:
        words = command_line(process)
        if words and words[0].endswith("/raylet"):
            store = _shared_mb(process.pid)
            spilled = _spilled_mb(words)
    return MemorySample(
        seconds=round(time.monotonic() - command.started, 1),
        driver_rss=driver.rss / _MB,
        driver_uss=driver.uss / _MB,
        actor_rss=max((rss for rss, _ in actors), default=0.0),
        actor_uss=max((uss for _, uss in actors), default=0.0),
        store=store,
        spilled=spilled,
    )


def _rss_and_uss_mb(process: psutil.Process) -> tuple[float, float] | None:
    try:
        memory = process.memory_full_info()
    except psutil.Error:
        return None
    return memory.rss / _MB, memory.uss / _MB


def _shared_mb(pid: int) -> float:
    """Shared memory of the raylet: the pages of the object store that were ever touched."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    match = re.search(r"RssShmem:\s+(\d+) kB", status)
    return int(match[1]) * 1024 / _MB if match else 0.0


def _spilled_mb(words: list[str]) -> float:
    """Size of the folder to which Ray spills objects, found by the raylet's command line."""
    socket = next((w.partition("=")[2] for w in words if w.startswith("--raylet_socket_name=")), "")
    session = Path(socket).parent.parent
    if not socket or not session.is_dir():
        return 0.0
    files = [f for folder in session.glob("ray_spilled_objects*") for f in folder.rglob("*")]
    return sum(file.stat().st_size for file in files if file.is_file()) / _MB


def measure(n: int, folder: Path, n_actors: int) -> list[MemorySample]:
    """Run a job over `n` images; samples of its memory, about two a second."""
    source, output = folder / f"in{n}", folder / f"out{n}"
    make_shards(source, n)
    options = ["--model", BRIGHT_MODEL, "--json", "--actors", str(n_actors)]
    command = SegmentCommand([str(source), str(output), *options], folder / f"{n}.log")
    samples = []
    try:
        while (sample := sample_memory(command)) is not None and command.running():
            samples.append(sample)
            time.sleep(SAMPLE_EVERY_S)
        assert command.process.wait() == 0, command.describe()
        assert command.report()["images"] == n
    finally:
        command.kill_all()
    return samples


def peaks(samples: list[MemorySample]) -> dict[str, float]:
    """The largest value of each column."""
    names = [field.name for field in fields(MemorySample)]
    return {name: round(max(getattr(sample, name) for sample in samples), 1) for name in names}


def plot(samples_by_size: dict[int, list[MemorySample]], path: str) -> None:
    """Draw curves over time, one column for each size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    n_sizes = len(samples_by_size)
    figure, axes = pyplot.subplots(1, n_sizes, sharey=True, figsize=(4 * n_sizes, 3.5))
    for axis, (n, samples) in zip(np.atleast_1d(axes), samples_by_size.items(), strict=True):
        for name in ("driver_rss", "driver_uss", "actor_rss", "actor_uss", "store"):
            values = [getattr(sample, name) for sample in samples]
            axis.plot([sample.seconds for sample in samples], values, label=name.replace("_", " "))
        axis.set(title=f"{n:,} images", xlabel="seconds")
    np.atleast_1d(axes)[0].set(ylabel="MB", ylim=(0, None))
    np.atleast_1d(axes)[-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, and print one JSON object for each size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", type=int, nargs="+", default=[1000, 5000, 20_000], help="size of each job"
    )
    parser.add_argument("--actors", type=int, default=1, help="size of the pool")
    parser.add_argument("--csv", help="write all samples to this file")
    parser.add_argument("--plot", help="write their curves to this PNG")
    options = parser.parse_args()
    samples_by_size: dict[int, list[MemorySample]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for n in options.images:
            samples_by_size[n] = measure(n, Path(folder), options.actors)
            print(json.dumps({"images": n, **peaks(samples_by_size[n])}), flush=True)
    if options.csv:
        rows = [
            {"images": n, **asdict(sample)}
            for n, samples in samples_by_size.items()
            for sample in samples
        ]
        with open(options.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    if options.plot:
        plot(samples_by_size, options.plot)
    first, last = (peaks(samples_by_size[options.images[place]]) for place in (0, -1))
    names = ("driver_rss", "driver_uss", "actor_rss", "actor_uss")
    growth = {name: round(last[name] / first[name], 3) for name in names}
    print(json.dumps({"growth": growth, "spilled": last["spilled"]}))
    sys.exit(int(max(growth.values()) > MAX_GROWTH or last["spilled"] > 0))


if __name__ == "__main__":
    main()
