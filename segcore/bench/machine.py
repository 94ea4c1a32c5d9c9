"""What the measurement ran on, and how much memory processes took."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segcore.models import torch_runtime

_PACKAGES = ("segcore", "torch", "numpy", "numba", "ray", "simplejpeg", "opencv-python-headless")
_PROC = Path("/proc")
_EVERY = 2.0  # seconds between looks, which cost a core 10 ms each; the kernel keeps the peaks


@dataclass(frozen=True)
class Machine:
    """Hardware and versions, for the reader of a result."""

    cpu: str
    cores: int
    gpu: str
    system: str
    python: str
    versions: dict[str, str] = field(default_factory=dict)


def describe() -> Machine:
    """This machine; packages that are not installed say so."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return Machine(
        cpu=_cpu_model(),
        cores=cores(),
        gpu=torch_runtime.cuda_device_name(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        versions=versions,
    )


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        for line in (_PROC / "cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def own_peak_mb() -> float:
    """Largest resident memory of this process so far, MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


class ProcessWatch:
    """Memory and CPU time of this process and all below it, looked up in /proc now and then.

    Attributes:
        actor_peak_mb: Largest resident memory of one of Ray Data's actors, MB; 0 when not known.
    """

    def __init__(self) -> None:
        self.actor_peak_mb = 0.0
        self._cpu: dict[int, float] = {}  # of each process, also of those that have ended
        self._samples: list[tuple[float, float]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look for the length of the block."""
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(done,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    def cpu_seconds(self, start: float, stop: float) -> float:
        """CPU seconds spent between two times of `time.time`; 0 when not known."""
        if not self._samples:
            return 0.0
        times, spent = zip(*self._samples, strict=True)
        first, last = np.interp((start, stop), times, spent)
        return float(last - first)

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(_EVERY):
            for process in _below(os.getpid()):
                self._cpu[process.pid] = process.cpu_seconds
                if b"UnitActor" in process.command:
                    self.actor_peak_mb = max(self.actor_peak_mb, process.peak_mb)
            if self._cpu:
                self._samples.append((time.time(), sum(self._cpu.values())))


class _Process(NamedTuple):
    pid: int
    parent: int
    command: bytes
    peak_mb: float
    cpu_seconds: float


def _below(root: int) -> list[_Process]:
    """The process `root` and all that came from it; none where there is no /proc."""
    found: dict[int, _Process] = {}
    for folder in _PROC.glob("[0-9]*"):
        try:
            status = (folder / "status").read_text()
            command = (folder / "cmdline").read_bytes()
            # What follows the name in brackets: state, parent, ...; user and system ticks
            numbers = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        peak = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        ticks = int(numbers[11]) + int(numbers[12])
        pid = int(folder.name)
        found[pid] = _Process(
            pid=pid,
            parent=int(numbers[1]),
            command=command,
            peak_mb=int(peak[1]) * 1024 / 1e6 if peak else 0.0,
            cpu_seconds=ticks / os.sysconf("SC_CLK_TCK"),
        )
    below = []
    for process in found.values():
        above = process
        while above.pid != root and above.parent in found:
            above = found[above.parent]
        if above.pid == root:
            below.append(process)
    return below
