"""What a unit costs the driver of a run: CPU and memory, with workers that do nothing.

    python -m tests.measure.driver --units 1000,10000 [--images 1] [--actors 2] [--bare]

Real Ray and the real pipeline; a worker reports each unit as a real one does, and neither reads nor
writes. Prints one JSON object for each number of units. The slopes are between the first tenth of
the outcomes and the last but one, so that they hold neither the start nor the end of a graph.
CPU is that of the driver's process alone, all its threads; what workers take is not in it. Ray
Data's own loop takes some 3 % of a core whatever there is to do, so a slope that is measured while
workers wait for a busy machine is too high: `driver_share_of_core` says what share of the clock it
was. With --bare, the same blocks go through Ray Data alone afterwards, with actors that return one
number for each row, and `ratio` is what our pipeline takes of that.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from typing import Any

import psutil
import pyarrow as pa

from segcore.config import RayOptions
from segcore.distributed import cluster, pipeline
from segcore.distributed.actors import (
    complete_unit,
    outcomes_to_columns,
    register_current_actor,
)
from segcore.distributed.bundles import Bundles, bundle_sizes, max_bundle_units
from segcore.distributed.pool import size_pool
from segcore.distributed.progress import ProgressReporter
from segcore.output.part_counts import PartCounts
from segcore.planning.plan import Units
from segcore.sources.unit_tables import units_from_table, units_to_table
from segcore.sources.units import Member, Unit

Marks = list[tuple[int, float, float, float]]  # units, CPU s, seconds, bytes


class NullActor:
    """Takes the place of `UnitActor`: every unit is done at once."""

    def __init__(self, spec: None, progress: Any, retry_failed: bool) -> None:
        self._node = register_current_actor(progress)
        self._progress = ProgressReporter(progress, 2)

    def __call__(self, batch: pa.Table) -> dict[str, list]:
        """The outcomes of a bundle."""
        outcomes = []
        for unit in units_from_table(batch):
            self._progress.report(unit.unit, unit.n_images or 0, 0, 0)
            counts = PartCounts(unit.unit, unit.n_images or 0, 0, 0)
            outcomes.append(complete_unit(self._progress, unit, counts, self._node))
        self._progress.flush()
        return outcomes_to_columns(outcomes)


def make_units(n: int, n_images: int) -> Units:
    """Units of so many loose images each."""

    def make(number: int) -> Unit:
        uris = [f"s3://bucket/photos/{number:06d}/{image:06d}.jpg" for image in range(n_images)]
        members = tuple(
            Member(uri, uri, f"{number:016x}{image:016x}", 100_000)
            for image, uri in enumerate(uris)
        )
        n_bytes = n_images * 100_000
        return Unit(f"{number:020x}", "objects", "", "", 0, n_images, n_images, n_bytes, members)

    return Units(units_to_table(make(number) for number in range(n)))


def measure(n_units: int, n_images: int, actors: int) -> dict[str, Any]:
    """Run so many units; costs in ms of CPU, MB and kB."""
    driver = psutil.Process()
    units = make_units(n_units, n_images)
    options = RayOptions(address="local", max_actors=actors)
    marks: Marks = []
    with cluster.connected(options):
        pool = size_pool(options, "cpu", n_units, cluster.live_nodes())
        cpu_before, started = time.process_time(), time.monotonic()
        outcomes = pipeline.Pipeline(None, pool).run(units)  # type: ignore[arg-type]
        for number, outcome in enumerate(outcomes, 1):
            assert outcome.ok == n_images, outcome
            if number % max(1, n_units // 10) == 0:
                memory = driver.memory_full_info().uss
                marks.append((number, time.process_time(), time.monotonic(), memory))
        cpu_s, seconds = time.process_time() - cpu_before, time.monotonic() - started
        assert number == n_units
        helpers: Counter[str] = Counter()
        for process in driver.children(recursive=True):
            times = process.cpu_times()
            helpers[process.name()] += times.user + times.system
    return {
        "units": n_units,
        "images_of_unit": n_images,
        "actors": actors,
        **_costs(marks, n_units, cpu_s, seconds),
        "cpu_s_of_others": {name: round(cpu, 1) for name, cpu in helpers.most_common(8)},
    }


def _costs(marks: Marks, n_units: int, cpu_s: float, seconds: float) -> dict[str, Any]:
    first, last = marks[0], marks[-2]
    n_between = last[0] - first[0]
    return {
        "driver_ms_per_unit": round(1e3 * cpu_s / n_units, 3),
        "driver_ms_per_unit_slope": round(1e3 * (last[1] - first[1]) / n_between, 3),
        "seconds_per_unit_slope": round((last[2] - first[2]) / n_between, 5),
        "driver_kb_per_unit_slope": round((last[3] - first[3]) / 1e3 / n_between, 3),
        "driver_mb": round(last[3] / 1e6),
        "driver_share_of_core": round((last[1] - first[1]) / (last[2] - first[2]), 3),
        "seconds": round(seconds, 1),
    }


class BareActor:
    """What Ray Data calls when nothing of segcore is between."""

    def __call__(self, batch: pa.Table) -> dict[str, list]:
        """A number for each row."""
        return {"done": [1] * batch.num_rows}


def measure_bare(n_units: int, n_images: int, actors: int) -> dict[str, Any]:
    """The same blocks through Ray Data alone; costs as those of `measure`."""
    import ray

    units = make_units(n_units, n_images)
    options = RayOptions(address="local", max_actors=actors)
    marks: Marks = []
    with cluster.connected(options):
        sizes = bundle_sizes(n_units, actors, max_bundle_units(units.table))
        blocks = list(Bundles(units.table, sizes))
        context = ray.data.DataContext.get_current()
        context.target_max_block_size = None
        context.enable_progress_bars = context.print_on_execution_start = False
        cpu_before, started = time.process_time(), time.monotonic()
        pool = ray.data.ActorPoolStrategy(
            min_size=actors, max_size=actors, max_tasks_in_flight_per_actor=1
        )
        dataset = ray.data.from_blocks(blocks).map_batches(
            BareActor, batch_size=1, batch_format="pyarrow", compute=pool, num_cpus=1
        )
        number = 0
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            for _ in range(table.num_rows):
                number += 1
                if number % max(1, n_units // 10) == 0:
                    memory = psutil.Process().memory_full_info().uss
                    marks.append((number, time.process_time(), time.monotonic(), memory))
        cpu_s, seconds = time.process_time() - cpu_before, time.monotonic() - started
        assert number == n_units
    return {"bare": True, "blocks": len(sizes), **_costs(marks, n_units, cpu_s, seconds)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", default="1000,10000", help="numbers of units")
    parser.add_argument("--images", type=int, default=1, help="of each unit")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--bare", action="store_true", help="Ray Data alone afterwards")
    options = parser.parse_args()
    pipeline.UnitActor = NullActor  # type: ignore[misc, assignment]
    for n_units in map(int, options.units.split(",")):
        ours = measure(n_units, options.images, options.actors)
        print(json.dumps(ours), flush=True)
        if options.bare:
            bare = measure_bare(n_units, options.images, options.actors)
            names = ("driver_ms_per_unit", "driver_ms_per_unit_slope")
            ratios = {name: round(ours[name] / bare[name], 2) for name in names if bare[name]}
            print(json.dumps(bare | {"ratio": ratios}), flush=True)


if __name__ == "__main__":
    main()
