"""Time and peak memory of planning millions of loose images, first and after changes.

    python -m tests.measure.planning [--images 10000000] [--changed 0.01] [--shuffled]

Each step runs in a process of its own, as a run would. The first lists, plans and saves. Then 1 %
of the images are changed, 1 % new and 1 % deleted, spread evenly or in one folder in a hundred, and
the next step lists, loads the previous plan, plans and saves. The archive is a generator of names,
sizes and etags as S3 gives them.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import multiprocessing
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segcore.planning.plan import make_plan, remaining_units, summarize_plan
from segcore.planning.plan_files import decode_plan, encode_plan
from segcore.sources.objects import ObjectsSource
from segcore.sources.units import UnitLimits
from segcore.storage.listing import Listing

_IMAGES_PER_FOLDER = 1000


def peak_rss_mb() -> int:
    """Of this process alone; getrusage would count what its parent held when it was started."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match, "peak memory is read from /proc, which this machine lacks"
    return int(match[1]) // 1024


def rows(n: int, changed: float, clustered: bool) -> Iterator[tuple[str, int, str]]:
    """(uri, size, etag) of an archive in the order of its names.

    A share `changed` of the images have another etag, as many are gone, and as many new ones
    follow some of the others. Clustered, all of that happens in whole folders.
    """
    period = round(1 / changed) if changed else 0
    for i in range(n):
        folder = i // _IMAGES_PER_FOLDER
        name = f"s3://archive/photos/{folder // 100:04}/{folder:06}/image-{i:09}.jpg"
        etag = hashlib.md5(b"%d" % i, usedforsecurity=False).hexdigest()
        place = (folder if clustered else i) % period if period else -1
        if place == 1:
            continue  # deleted
        yield name, 150_000 + i % 9973, etag[::-1] if place == 2 else etag
        if place == 3:
            yield name.replace(".jpg", "-new.jpg"), 150_000, etag[1:] + "0"


def _shuffled(items: Iterator[tuple[str, int, str]]) -> Iterator[tuple[str, int, str]]:
    """The rows far out of order, in bounded memory: of 262,144 rows, every 64th, and so on."""
    while block := list(itertools.islice(items, 1 << 18)):
        for start in range(64):
            yield from block[start::64]


def plan_step(
    n: int, changed: float, clustered: bool, shuffled: bool, before: str, after: str, out: Any
) -> None:
    """Plan once, in a fresh process, and put the figures into the queue `out`."""
    times: dict[str, float] = {}

    def timed(name: str, began: float) -> float:
        times[name] = round(time.monotonic() - began, 1)
        return time.monotonic()

    at = time.monotonic()
    items = rows(n, changed, clustered)
    listing = Listing.from_rows(_shuffled(items) if shuffled else items)
    at = timed("list", at)
    previous = decode_plan(Path(before).read_bytes(), before) if before else None
    at = timed("load", at)
    source = ObjectsSource(input="s3://archive/photos", kind="images", listing=listing)
    del listing
    plan = make_plan(source, UnitLimits(), previous)
    del source
    at = timed("plan", at)
    data = encode_plan(plan)
    Path(after).write_bytes(data)
    at = timed("save", at)
    previous_ids = set(previous.units.ids()) if previous else set()
    kept = previous_ids & set(plan.units.ids())
    counts = summarize_plan(plan, kept | plan.carried.keys())
    assert len(remaining_units(plan, kept | plan.carried.keys())) == counts.todo_units
    timed("count", at)
    out.put(
        {
            "images": counts.images,
            "units": counts.units,
            "units_kept": len(kept),
            "units_carried": len(plan.carried),
            "units_stale": len(previous_ids - kept),
            "images_to_do": counts.todo_images,
            "plan_bytes": len(data),
            "seconds": times,
            "peak_rss_mb": peak_rss_mb(),
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
