"""How fast `segcore verify` checks an output, and its memory: outputs are generated first.

    python -m tests.measure.verify [--units 40] [--images 256] [--instances 20] [--size photos]
    python -m tests.measure.verify --cluster [--repeat 2]

CPU seconds are user and system of the process that checks, without its start; wall time says
something on a quiet machine only. With --cluster, a real Ray cluster of two nodes with one CPU each
checks, as `segcore verify --address` lets it: the first check starts its workers, and CPU seconds
are those of the driver.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segcore.config import load_config
from segcore.inspection.verify import verify_output
from segcore.run.verify import verify
from segcore.storage import Storage
from tests.faults.chaos_cluster import RealCluster
from tests.support.generated_output import SIZES, write_output
from tests.support.paths import PYTHONPATH


def measure(
    output: str, threads: int, cluster: RealCluster | None = None
) -> dict[str, float | str]:
    """Check an output in this process or on a cluster; figures as plain JSON values."""
    cpu = time.process_time()
    if cluster is None:
        result = verify_output(Storage(), output, threads=threads)
    else:
        sets = [f"ray.address={cluster.address}", "ray.shared_paths=true"]
        config = load_config(sets=sets)
        result = verify(config, output, threads=threads, progress=lambda *counts: None)
    cpu = time.process_time() - cpu
    assert result.exit_code == 0, result.summary()
    return {
        "where": "this process" if cluster is None else "cluster of 2 nodes with 1 CPU",
        "units": result.units,
        "instances": result.instances,
        "seconds": round(result.seconds, 2),
        "instances_per_second": round(result.instances_per_second),
        "cpu_seconds": round(cpu, 2),
        "instances_per_cpu_second": round(result.instances / cpu),
        "cpu_ms_per_unit": round(1000 * cpu / result.units, 2),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=40)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--instances", type=int, default=20)
    parser.add_argument("--size", choices=sorted(SIZES), default="nuclei")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="Keep the output here, or take it from here.")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--cluster", action="store_true", help="on a Ray cluster")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary) / "output"
        if not folder.exists():
            counts = arguments.units, arguments.images, arguments.instances
            write_output(str(folder), *counts, arguments.size)
        with _started_cluster(Path(temporary), wanted=arguments.cluster) as cluster:
            for _ in range(arguments.repeat):
                print(json.dumps(measure(str(folder), arguments.threads, cluster)), flush=True)


@contextmanager
def _started_cluster(folder: Path, *, wanted: bool) -> Iterator[RealCluster | None]:
    if not wanted:
        yield None
        return
    cluster = RealCluster({"PYTHONPATH": PYTHONPATH}, folder / "cluster.log")
    os.environ.update(cluster.environment)
    try:
        yield cluster
    finally:
        cluster.stop()


if __name__ == "__main__":
    main()
