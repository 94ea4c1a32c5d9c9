"""Whole jobs through Ray, one for each setting: images/s, and how busy the GPU is.

    python -m tests.measure.gpu.whole_job FOLDER [--model NAME] [--jobs default,four]
    python -m tests.measure.gpu.whole_job FOLDER --device cpu --jobs default

FOLDER is what `make_archive` wrote. Each job is the real command, `segcore segment`, on a Ray of
its own. Prints one JSON object for each job; the exit code is 1 if one failed or took too long.
The jobs are

    default   one actor for each GPU or, on a CPU, for each core
    four      four actors on the GPU
    eight     eight actors on the GPU
    one       a single actor on a CPU
    split     reading and decoding in processes of their own
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.measure.gpu.speed import MODEL
from tests.support.commands import SegmentCommand

_POLL_S = 0.25
# The settings of each job, by device.
JOBS: dict[str, dict[str, list[str]]] = {
    "cuda": {
        "default": [],
        "four": ["ray.gpus_per_actor=0.25"],
        "eight": ["ray.gpus_per_actor=0.125"],
        "fused": ["ray.layout=fused"],
        "split": ["ray.layout=split"],
    },
    "cpu": {"default": [], "one": ["ray.max_actors=1"], "split": ["ray.layout=split"]},
}


class GpuSampler:
    """How busy the GPUs are, by `nvidia-smi`; a context manager. Samples nothing without it."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []  # percent busy, MiB in use
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> GpuSampler:
        program = shutil.which("nvidia-smi")
        if program is not None:
            query = "--query-gpu=utilization.gpu,memory.used"
            period = f"--loop-ms={round(1e3 * _POLL_S)}"
            self._process = subprocess.Popen(
                [program, query, "--format=csv,noheader,nounits", period],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
            self._reader.start()
        return self

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            numbers = line.split(",")
            if len(numbers) == 2 and all(number.strip().isdigit() for number in numbers):
                self.samples.append((float(numbers[0]), float(numbers[1])))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._reader.join()
            self._process.communicate()

    def figures(self) -> dict[str, float] | None:
        """None where nothing was sampled."""
        if not self.samples:
            return None
        busy = [percent for percent, _ in self.samples if percent > 0]
        return {
            "busy_share_of_samples": round(len(busy) / len(self.samples), 3),
            "percent_where_busy": round(statistics.mean(busy), 1) if busy else 0.0,
            "peak_mib": max(mib for _, mib in self.samples),
        }


def run_job(
    name: str, shards: Path, work: Path, model: str, device: str, timeout_s: float
) -> dict[str, Any]:
    """One job; what it reported, or how it failed under "error"."""
    sets = ["model.max_det=50", *JOBS[device][name]]
    if device == "cuda":
        sets.append("model.precision=float16")
    options = [word for setting in sets for word in ("--set", setting)]
    arguments = [str(shards), str(work / f"output-{name}"), "--model", model, "--device", device]
    command = SegmentCommand([*arguments, "--json", *options], work / f"{name}.log")
    timed_out = False
    with GpuSampler() as sampler:
        try:
            deadline = command.started + timeout_s
            timed_out = command.wait_until(lambda: time.monotonic() > deadline, _POLL_S)
        finally:
            command.kill_all()
    code = command.process.wait()
    document: dict[str, Any] = {"job": name, "sets": sets, "gpu": sampler.figures()}
    if timed_out or code != 0:
        reason = f"not finished in {timeout_s:.0f} s" if timed_out else f"exit code {code}"
        return {**document, "error": reason, "stderr": command.stderr()[-2000:]}
    report = command.report()
    document |= {key: report[key] for key in ("images", "ok", "instances", "timings", "pool")}
    return {**document, "images_s": round(report["images"] / report["timings"]["segment"], 1)}


def main() -> int:
    """Run the jobs one after another; 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="what make_archive wrote")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--jobs", help="names with commas; all of the device by default")
    parser.add_argument("--timeout-s", type=float, default=90, help="for each job")
    parser.add_argument("--work", type=Path, help="folder for outputs and logs, on a real disk")
    options = parser.parse_args()
    jobs = JOBS[options.device]
    names = options.jobs.split(",") if options.jobs else list(jobs)
    if unknown := set(names) - set(jobs):
        parser.error(f"no such job on {options.device}: {', '.join(sorted(unknown))}")
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        for name in names:
            document = run_job(
                name,
                options.folder / "shards",
                work,
                options.model,
                options.device,
                options.timeout_s,
            )
            failed |= "error" in document
            print(json.dumps(document), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
