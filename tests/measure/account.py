"""A run with nothing to do, and `segcore status`, over hundreds of thousands of units.

    python -m tests.measure.account [--units 390000]

The archive has a file for each unit. The output is that of a run whose workers wrote parts of one
byte, whose counts are in the cache, so that its size is that of a large archive and making it
takes minutes. Then the real run and the real `status` look at it, each in a process of its own.
Prints one JSON object: seconds by the clock, CPU seconds, MB; `list_input` and `list_images` are
what listing the archive and the table `images` takes alone. Parts that were lost with the cache are
not measured here: their footers are read.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from segcore.bench import scale
from segcore.output.layout import EditionLayout
from segcore.storage import Storage
from tests.measure.nothing_to_do import write_archive, write_parts
from tests.support import serial_run


def make_output(values: dict[str, str], units: int) -> dict[str, Any]:
    """The first run, whose parts hold nothing."""
    with pytest.MonkeyPatch.context() as patch:
        serial_run.without_ray(patch, write_parts)
        return asdict(scale.drive(values, units))


def time_listing(folder: str) -> tuple[int, float, float]:
    """Files below a folder; seconds and CPU seconds of listing them."""
    began, cpu = time.monotonic(), time.process_time()
    n_files = sum(1 for _ in Storage().list(folder))
    return n_files, round(time.monotonic() - began, 1), round(time.process_time() - cpu, 1)


def measure(folder: Path, units: int) -> dict[str, Any]:
    """Make it all, look at it, and say what that took."""
    write_archive(folder / "in", units)
    values = {"input": str(folder / "in"), "output": str(folder / "out")}
    first = _in_own_process(make_output, values, units)
    nothing_to_do = asdict(_in_own_process(scale.drive, values, units))
    status_s, status_mb = _in_own_process(scale.time_status, values["output"], units)
    images = EditionLayout(nothing_to_do["prefix"]).parts_folder("images")
    return {
        "units": units,
        "first": first["steps"],
        "list_input": _in_own_process(time_listing, values["input"]),
        "list_images": _in_own_process(time_listing, images),
        "nothing_to_do": {name: nothing_to_do[name] for name in ("seconds", "cpu_s", "peak_mb")},
        "steps": nothing_to_do["steps"],
        "status": {"seconds": status_s, "peak_mb": status_mb},
    }


def _in_own_process(function: Callable[..., Any], *args: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", type=int, default=390_000)
    units = parser.parse_args().units
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(measure(Path(name), units)), flush=True)


if __name__ == "__main__":
    main()
