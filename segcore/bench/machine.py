"""The machine that a measurement ran on, and the memory and CPU time of processes."""

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

from segcore.evaluation.resources import n_cores
from segcore.models import torch_runtime

_PACKAGES = ("segcore", "torch", "numpy", "numba", "ray", "simplejpeg", "opencv-python-headless")
_PROC = Path("/proc")
_SAMPLE_INTERVAL_S = 2.0  # a sample costs a core 10 ms; the kernel keeps peaks between samples


@dataclass(frozen=True)
class Machine:
    """Hardware and versions, for those who read a result."""

    cpu: str
    cores: int
    gpu: str
    system: str
    python: str
    versions: dict[str, str] = field(default_factory=dict)


def describe_machine() -> Machine:
    """This machine; a package that is missing has the version ``not installed``."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return Machine(
        cpu=_cpu_model(),
        cores=n_cores(),
        gpu=torch_runtime.cuda_device_name(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        versions=versions,
    )


def _cpu_model() -> str:
    try:
        for line in (_PROC / "cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def own_peak_memory_mb() -> float:
    """Largest resident memory of this process so far, MB (10^6 bytes)."""
    # macOS gives bytes, Linux KiB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


class ProcessMonitor:
    """Memory and CPU time of this process and its descendants, sampled from /proc.

    Attributes:
        actor_peak_mb: Largest resident memory of one of Ray Data's actors, MB; 0 when not known.
    """

    def __init__(self) -> None:
        self.actor_peak_mb = 0.0
        self._cpu_seconds: dict[int, float] = {}  # by process id, also of those that have ended
        self._samples: list[tuple[float, float]] = []  # (time.time(), CPU seconds of them all)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Take samples for the length of the block."""
        done = threading.Event()
        sampler = threading.Thread(target=self._take_samples, args=(done,), daemon=True)
        sampler.start()
        try:
            yield
        finally:
            done.set()
            sampler.join()

    def cpu_seconds(self, start: float, stop: float) -> float:
        """CPU seconds spent between two times of `time.time`; 0 when not known."""
        if not self._samples:
            return 0.0
        times, cpu_seconds = zip(*self._samples, strict=True)
        at_start, at_stop = np.interp((start, stop), times, cpu_seconds)
        return float(at_stop - at_start)

    def _take_samples(self, done: threading.Event) -> None:
        while not done.wait(_SAMPLE_INTERVAL_S):
            for process in _process_tree(os.getpid()):
                self._cpu_seconds[process.pid] = process.cpu_seconds
                if b"UnitActor" in process.command:
                    self.actor_peak_mb = max(self.actor_peak_mb, process.peak_mb)
            if self._cpu_seconds:
                self._samples.append((time.time(), sum(self._cpu_seconds.values())))


class _Process(NamedTuple):
    pid: int
    parent: int
    command: bytes
    peak_mb: float
    cpu_seconds: float


def _process_tree(root: int) -> list[_Process]:
    """The process `root` and its descendants; empty where there is no /proc."""
    processes = _all_processes()
    tree = []
    for process in processes.values():
        ancestor = process
        while ancestor.pid != root and ancestor.parent in processes:
            ancestor = processes[ancestor.parent]
        if ancestor.pid == root:
            tree.append(process)
    return tree


def _all_processes() -> dict[int, _Process]:
    """All processes of this machine that can be read, by id."""
    processes: dict[int, _Process] = {}
    for folder in _PROC.glob("[0-9]*"):
        try:
            status = (folder / "status").read_text()
            command = (folder / "cmdline").read_bytes()
            # After the name in brackets: state, parent, ...; user and system ticks at 11 and 12
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # the process has ended
            continue
        peak = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        ticks = int(fields[11]) + int(fields[12])
        pid = int(folder.name)
        processes[pid] = _Process(
            pid=pid,
            parent=int(fields[1]),
            command=command,
            peak_mb=int(peak[1]) * 1024 / 1e6 if peak else 0.0,
            cpu_seconds=ticks / os.sysconf("SC_CLK_TCK"),
        )
    return processes
