"""What metrics cost of a whole CPU job: CPU seconds of pairs of jobs, one with them, one without.

    python -m tests.cluster.tools                              # once: has ray[default]
    .venv-cluster/bin/python -m tests.measure.metrics_job --pairs 5

A job is `segcore segment` with a local Ray. Its CPU seconds are those of a control group, so every
process counts that it starts. Without metrics, recording is left out as well as the export.
Needs root and Linux.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext, suppress
from pathlib import Path

from segcore.models.base import Model, ModelOptions
from segcore.models.registry import load_model
from segcore.storage import Storage
from segcore.testing.synthetic_archive import write_archive
from segcore.worker.measures import Measures
from tests.support.paths import PYTHONPATH, ROOT

_OFF = "MEASURE_WITHOUT_METRICS"
_SET_UP_IMAGES = 8


def bundled_model(options: ModelOptions) -> Model:
    """The bundled model, in workers that record nothing where the environment says so."""
    if _OFF in os.environ:
        for name in ("stage", "wait", "in_model"):
            setattr(Measures, name, lambda *_: nullcontext())
        for name in ("add", "peak"):
            setattr(Measures, name, lambda *_: None)
    return load_model("nuclei-yolo11n", options)


class ControlGroup:
    """Counts the CPU time of the processes that are started in it; version 1 or 2 of Linux'."""

    def __init__(self) -> None:
        first = Path("/sys/fs/cgroup/cpuacct")
        root = first if first.is_dir() else Path("/sys/fs/cgroup")
        self._folder = root / f"segcore-measure-{os.getpid()}"
        self._folder.mkdir()

    def enter(self) -> None:
        """Move the calling process, and all that it starts, into the group."""
        (self._folder / "cgroup.procs").write_text(str(os.getpid()))

    def is_empty(self) -> bool:
        return not (self._folder / "cgroup.procs").read_text()

    def cpu_seconds(self) -> float:
        if (usage := self._folder / "cpuacct.usage").exists():
            return int(usage.read_text()) / 1e9
        fields = (self._folder / "cpu.stat").read_text().split()
        return int(fields[fields.index("usage_usec") + 1]) / 1e6

    def remove(self) -> None:
        with suppress(OSError):  # some process of an interrupted job is left in it
            self._folder.rmdir()


def job_cpu_seconds(archive: Path, output: Path, *, with_metrics: bool) -> float:
    """CPU seconds of a job, from its start until the last of its processes has ended."""
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    words = [
        "segment", str(archive), str(output), "--device", "cpu", "--quiet",
        "--model", "tests.measure.metrics_job:bundled_model",
        "--set", "run.max_failed_fraction=1", "--set", "plan.images=32",
    ]  # fmt: skip
    if not with_metrics:
        environment[_OFF] = "1"
        words += ["--set", "metrics.export=false"]
    group = ControlGroup()
    try:
        subprocess.run(
            [sys.executable, "-m", "segcore", *words],
            cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL,
            preexec_fn=group.enter,
        )  # fmt: skip
        while not group.is_empty():
            time.sleep(0.1)
        return group.cpu_seconds()
    finally:
        group.remove()


def main() -> None:
    """Print each pair, and the mean difference with its standard error."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    differences = []
    with tempfile.TemporaryDirectory(prefix="metrics") as name:
        folder = Path(name)
        write_archive(Storage(), str(folder / "in"), n_images=arguments.images, n_broken=0)
        write_archive(Storage(), str(folder / "few"), n_images=_SET_UP_IMAGES, n_broken=0)
        job_cpu_seconds(folder / "few/shards", folder / "warm-up", with_metrics=True)
        for pair in range(arguments.pairs):
            seconds = {}
            for with_metrics in (pair % 2 == 0, pair % 2 == 1):
                output = folder / f"out-{pair}-{with_metrics}"
                seconds[with_metrics] = job_cpu_seconds(
                    folder / "in/shards", output, with_metrics=with_metrics
                )
            difference = seconds[True] / seconds[False] - 1
            differences.append(difference)
            print(f"with {seconds[True]:.2f} s, without {seconds[False]:.2f} s: {difference:+.2%}",
                  flush=True)  # fmt: skip
    error = statistics.stdev(differences) / len(differences) ** 0.5
    print(f"mean {statistics.mean(differences):+.2%}, standard error {error:.2%}")


if __name__ == "__main__":
    main()
