"""How fast `segcore verify` checks an output, and its memory: outputs are generated first.

    python -m tests.measure.verify [--units 40] [--images 256] [--instances 20] [--size photos]

CPU seconds are user and system of the process that checks, without its start; wall time says
something on a quiet machine only.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from segcore.inspection.verify import verify_output
from segcore.storage import Storage
from tests.support.generated_output import SIZES, write_output


def measure(output: str, threads: int) -> dict[str, float]:
    """Check an output in this process; figures as plain JSON values."""
    cpu = time.process_time()
    result = verify_output(Storage(), output, threads=threads)
    cpu = time.process_time() - cpu
    assert result.exit_code == 0, result.summary()
    return {
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
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary) / "output"
        if not folder.exists():
            counts = arguments.units, arguments.images, arguments.instances
            write_output(str(folder), *counts, arguments.size)
        print(json.dumps(measure(str(folder), arguments.threads), indent=2))


if __name__ == "__main__":
    main()
