"""CPU time and peak memory of planning a hundred million loose images, first and after changes.

    python -m tests.measure.planning [--images 10000000] [--changed 0.01] [--shuffled]

Each step runs in a process of its own, as a run would. The first lists, plans and saves. Then 1 %
of the images are changed, 1 % new and 1 % deleted, spread evenly or in one folder in a hundred, and
the next step lists, loads the previous plan, plans and saves. The archive is a generator of names,
sizes and etags as S3 gives them; `list` is its time, all else is what a run adds to the listing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segcore.errors import ObjectNotFound
from segcore.planning.plan import make_plan, remaining_units, summarize_plan
from segcore.planning.plan_files import decode_plan, write_plan
from segcore.sources import SourceOptions, open_source
from segcore.sources.units import UnitLimits
from segcore.storage import ObjectInfo, Storage
from segcore.storage.listing import CHUNK_ROWS, Listing

_IMAGES_PER_FOLDER = 1000


def memory_mb(name: str) -> int:
    """Of this process alone; getrusage would count what its parent held when it was started."""
    match = re.search(name + r":\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match, "memory is read from /proc, which this machine lacks"
    return int(match[1]) // 1024


class PeakOfOwnMemory(threading.Thread):
    """Samples what the process cannot give back; pages of temporary files that it maps can go."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mb = 0
        self.start()

    def run(self) -> None:
        while True:
            self.mb = max(self.mb, memory_mb("RssAnon"))
            time.sleep(0.05)


def tables(n: int, changed: float, clustered: bool) -> Iterator[pa.Table]:
    """(uri, size, etag) of an archive in the order of its names.

    A share `changed` of the images have another etag, as many are gone, and as many new ones
    follow some of the others. Clustered, all of that happens in whole folders.
    """
    for start in range(0, n, CHUNK_ROWS):
        numbers = np.arange(start, min(start + CHUNK_ROWS, n))
        folders = numbers // _IMAGES_PER_FOLDER
        period = round(1 / changed) if changed else n + 1
        place = (folders if clustered else numbers) % period
        version = np.where(place == 2, 1, 0) if changed else np.zeros(len(numbers), int)
        size = 150_000 + numbers % 9973
        is_new = np.zeros(len(numbers), bool)
        if changed:
            kept, new = np.flatnonzero(place != 1), np.flatnonzero(place == 3)
            order = np.sort(np.concatenate([kept * 2, new * 2 + 1]))
            rows, is_new = order // 2, order % 2 == 1
            numbers, folders, size = numbers[rows], folders[rows], size[rows]
            version = np.where(is_new, 2, version[rows])
        names = _join("s3://archive/photos/", _pad(folders // 100, 4), "/", _pad(folders, 6),
                      "/image-", _pad(numbers, 9))  # fmt: skip
        ends = pa.array(np.where(is_new, "-new.jpg", ".jpg"), pa.large_string())
        yield pa.table([_join(names, ends), pa.array(size), _etags(numbers, version)],
                       schema=Listing.schema)  # fmt: skip


def _pad(numbers: np.ndarray, width: int) -> pa.Array:
    return pc.utf8_lpad(pa.array(numbers).cast(pa.large_string()), width, "0")


def _join(*parts: pa.Array | str) -> pa.Array:
    texts = [pa.scalar(p, pa.large_string()) if isinstance(p, str) else p for p in parts]
    return pc.binary_join_element_wise(*texts, pa.scalar("", pa.large_string()))


def _etags(numbers: np.ndarray, version: np.ndarray) -> pa.Array:
    """32 hex digits that look random, as the MD5 of an image does."""
    halves = np.stack([numbers * 2 + 1 + (version << 40), numbers * 2 + (version << 40)], 1)
    mixed = halves.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    offsets = np.arange(len(numbers) + 1, dtype=np.int64) * 32
    data = pa.py_buffer(mixed.tobytes().hex().encode())
    return pa.LargeStringArray.from_buffers(len(numbers), pa.py_buffer(offsets), data)


def _shuffled(items: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The rows far out of order, in bounded memory: of 262,144 rows, every 64th, and so on."""
    while blocks := list(itertools.islice(items, 4)):
        table = pa.concat_tables(blocks)
        for start in range(64):
            yield table.take(pa.array(np.arange(start, table.num_rows, 64)))


class GeneratedStorage(Storage):
    """An archive of which only the listing exists."""

    def __init__(self, generate: Callable[[], Iterator[pa.Table]]) -> None:
        super().__init__()
        self._generate = generate
        self.listed = lambda: None

    def stat(self, uri: str) -> ObjectInfo:
        raise ObjectNotFound(f"{uri} does not exist.")

    def listing(self, prefix: str, *args: object, **kwargs: object) -> Listing:
        listing = Listing.from_tables(self._generate())
        self.listed()
        return listing


def plan_step(
    n: int, changed: float, clustered: bool, shuffled: bool, before: str, after: str, out: Any
) -> None:
    """Plan once, in a fresh process, and put the figures into the queue `out`."""
    times: dict[str, float] = {}
    at, own_memory = 0.0, PeakOfOwnMemory()

    def took(name: str) -> None:
        nonlocal at
        now = time.process_time()
        times[name], at = round(now - at, 1), now

    def generate() -> Iterator[pa.Table]:
        items = tables(n, changed, clustered)
        return _shuffled(items) if shuffled else items

    took("import")
    storage = GeneratedStorage(generate)
    storage.listed = lambda: took("list")  # type: ignore[method-assign]
    source = open_source("s3://archive/photos/", SourceOptions(), storage)
    took("select")
    previous = None
    if before:
        with open(before, "rb") as file:
            previous = decode_plan(file, before)
    took("load")
    plan = make_plan(source, UnitLimits(), previous)
    del source
    took("plan")
    Storage().write_with(after, partial(write_plan, plan))
    took("save")
    previous_ids = set(previous.units.ids()) if previous else set()
    kept = previous_ids & set(plan.units.ids())
    counts = summarize_plan(plan, kept | plan.carried.keys())
    assert len(remaining_units(plan.units, kept | plan.carried.keys())) == counts.todo_units
    took("count")
    out.put(
        {
            "images": counts.images,
            "units": counts.units,
            "units_kept": len(kept),
            "units_carried": len(plan.carried),
            "units_stale": len(previous_ids - kept),
            "images_to_do": counts.todo_images,
            "plan_bytes": Path(after).stat().st_size,
            "cpu_seconds": times,
            "peak_rss_mb": memory_mb("VmHWM"),
            "peak_own_mb": own_memory.mb,
        }
    )


def measure(n: int, changed: float, shuffled: bool = False) -> dict[str, dict[str, Any]]:
    """The figures of the three steps, which are also printed."""
    context = multiprocessing.get_context("spawn")
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        first = f"{folder}/first.parquet"
        for name, share, clustered, before in (
            ("first", 0.0, False, ""),
            ("changed evenly", changed, False, first),
            ("changed in folders", changed, True, first),
        ):
            out = context.Queue()
            after = first if not before else f"{folder}/second.parquet"
            step = (n, share, clustered, shuffled, before, after, out)
            process = context.Process(target=plan_step, args=step)
            process.start()
            while process.is_alive() and out.empty():
                process.join(0.2)
            assert not out.empty(), f"planning ended with exit code {process.exitcode}"
            figures[name] = out.get()
            process.join()
            print(json.dumps({name: figures[name]}), flush=True)
    return figures


def main() -> None:
    """Measure, and print one JSON object for each step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--changed", type=float, default=0.01, help="share of changed images")
    parser.add_argument("--shuffled", action="store_true", help="names come out of order")
    options = parser.parse_args()
    measure(options.images, options.changed, options.shuffled)


if __name__ == "__main__":
    main()
