"""Memory of a whole job over more and more images: driver, actors, object store, spilling.

    python tests/measure_memory.py [--images 1000 5000 20000] [--csv FILE] [--plot FILE.png]

Each size is a job of its own, the real command on a Ray of its own, over tar shards of small
JPEG and PNG images made on the fly. RSS counts what several processes share (libraries, pages of
the object store) in each of them; USS is what would be freed if the process ended. Exit code 1 when
a peak grows by more than 10 % from the first size to the last, or anything was spilled.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from segcore.storage import Storage
from tests.faults.chaos_command import Command, Parts, actors, words_of
from tests.support.archives import tar_bytes
from tests.support.paths import PYTHONPATH

PER_SHARD = 250
DISTINCT = 50
MOST_GROWTH = 1.1
_MB = 1e6


@dataclass(frozen=True)
class Reading:
    """One look at the processes of a job; megabytes (10^6 bytes), of actors the largest."""

    seconds: float
    driver_rss: float
    driver_uss: float
    actor_rss: float
    actor_uss: float
    store: float
    spilled: float


def make_shards(folder: Path, n: int) -> None:
    """`n` images in tar shards; a function of `n`."""
    kinds = [_encoded(i, ("JPEG", "PNG")[i % 2]) for i in range(DISTINCT)]
    folder.mkdir()
    for start in range(0, n, PER_SHARD):
        names = range(start, min(start + PER_SHARD, n))
        members = [
            (f"{i:06d}.{'jpg' if i % 2 == 0 else 'png'}", kinds[i % DISTINCT]) for i in names
        ]
        (folder / f"{start:06d}.tar").write_bytes(tar_bytes(members))


def _encoded(seed: int, kind: str) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = np.zeros((240, 320, 3), np.uint8)
    for _ in range(8):
        y, x = rng.integers(0, 200, 2)
        pixels[y : y + rng.integers(5, 40), x : x + rng.integers(5, 40)] = rng.integers(0, 256, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def look(command: Command, began: float) -> Reading | None:
    """What the processes of a job hold now; None once the driver has ended."""
    family = command.family()
    try:
        driver = psutil.Process(command.process.pid).memory_full_info()
    except psutil.Error:
        return None
    at_work = [found for process in actors(family) if (found := _memory(process))]
    store = spilled = 0.0
    for process in family:
        words = words_of(process)
        if words and words[0].endswith("/raylet"):
            store = _shared_mb(process.pid)
            spilled = _spilled_mb(words)
    return Reading(
        seconds=round(time.monotonic() - began, 1),
        driver_rss=driver.rss / _MB,
        driver_uss=driver.uss / _MB,
        actor_rss=max((rss for rss, _ in at_work), default=0.0),
        actor_uss=max((uss for _, uss in at_work), default=0.0),
        store=store,
        spilled=spilled,
    )


def _memory(process: psutil.Process) -> tuple[float, float] | None:
    try:
        found = process.memory_full_info()
    except psutil.Error:
        return None
    return found.rss / _MB, found.uss / _MB


def _shared_mb(pid: int) -> float:
    """Shared memory of the raylet: the pages of the object store that were ever touched."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"RssShmem:\s+(\d+) kB", status)
    return int(found[1]) * 1024 / _MB if found else 0.0


def _spilled_mb(words: list[str]) -> float:
    """What lies in the folder to which Ray spills objects."""
    socket = next((w.partition("=")[2] for w in words if w.startswith("--raylet_socket_name=")), "")
    session = Path(socket).parent.parent
    if not socket or not session.is_dir():
        return 0.0
    files = [f for folder in session.glob("ray_spilled_objects*") for f in folder.rglob("*")]
    return sum(file.stat().st_size for file in files if file.is_file()) / _MB


def measure(n: int, folder: Path, n_actors: int) -> list[Reading]:
    """Run a job over `n` images; what was read of it, about twice a second."""
    source, output = folder / f"in{n}", folder / f"out{n}"
    make_shards(source, n)
    options = [
        "--model",
        "tests.support.fake_models:BrightModel",
        "--json",
        "--actors",
        str(n_actors),
    ]
    environment = {"PYTHONPATH": PYTHONPATH}
    log = folder / f"{n}.log"
    command = Command(
        [str(source), str(output), *options], environment, log, Parts(Storage(), str(output))
    )
    readings = []
    try:
        while (reading := look(command, command.began)) is not None and command.running():
            readings.append(reading)
            time.sleep(0.5)
        assert command.process.wait() == 0, command.story()
        assert command.report()["images"] == n
    finally:
        command.end()
    return readings


def peaks(readings: list[Reading]) -> dict[str, float]:
    """The largest of each column."""
    names = [field.name for field in fields(Reading)]
    return {name: round(max(getattr(r, name) for r in readings), 1) for name in names}


def plot(found: dict[int, list[Reading]], path: str) -> None:
    """Curves over time, one column for each size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), sharey=True, figsize=(4 * len(found), 3.5))
    for axis, (n, readings) in zip(np.atleast_1d(axes), found.items(), strict=True):
        for name in ("driver_rss", "driver_uss", "actor_rss", "actor_uss", "store"):
            values = [getattr(reading, name) for reading in readings]
            axis.plot([r.seconds for r in readings], values, label=name.replace("_", " "))
        axis.set(title=f"{n:,} images", xlabel="seconds")
    np.atleast_1d(axes)[0].set(ylabel="MB", ylim=(0, None))
    np.atleast_1d(axes)[-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, and print one JSON object per size."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 5000, 20_000])
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--csv", help="all readings")
    parser.add_argument("--plot", help="their curves, as a PNG")
    options = parser.parse_args()
    found: dict[int, list[Reading]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for n in options.images:
            found[n] = measure(n, Path(folder), options.actors)
            print(json.dumps({"images": n, **peaks(found[n])}), flush=True)
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            rows = [{"images": n, **asdict(r)} for n, some in found.items() for r in some]
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    if options.plot:
        plot(found, options.plot)
    first, last = peaks(found[options.images[0]]), peaks(found[options.images[-1]])
    names = ("driver_rss", "driver_uss", "actor_rss", "actor_uss")
    growth = {name: round(last[name] / first[name], 3) for name in names}
    print(json.dumps({"growth": growth, "spilled": last["spilled"]}))
    sys.exit(int(max(growth.values()) > MOST_GROWTH or last["spilled"] > 0))


if __name__ == "__main__":
    main()
