"""What the measurement ran on, and how much memory processes took."""

from __future__ import annotations

import os
import platform
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

_PACKAGES = ("segcore", "torch", "numpy", "numba", "ray", "simplejpeg", "opencv-python-headless")
_PROC = Path("/proc")
_EVERY = 0.5  # seconds between looks; the kernel keeps the peaks itself


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
    import torch

    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return Machine(
        cpu=_cpu_model(),
        cores=cores(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else "",
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


class ActorMemory:
    """Largest resident memory among Ray's actor processes below this one; 0 when not known."""

    def __init__(self) -> None:
        self.peak_mb = 0.0

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

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(_EVERY):
            for status in _actors(os.getpid()):
                self.peak_mb = max(
                    self.peak_mb, int(status.get("VmHWM", "0 kB").split()[0]) / 976.6
                )


def _actors(root: int) -> Iterator[dict[str, str]]:
    """/proc status of the processes below `root` that run Ray Data's actors."""
    found: dict[int, tuple[int, bytes, dict[str, str]]] = {}
    for folder in _PROC.glob("[0-9]*"):
        try:
            lines = (folder / "status").read_text().splitlines()
            command = (folder / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        found[int(folder.name)] = (int(status["PPid"]), command, status)
    for pid, (_, command, status) in found.items():
        above = pid
        while above in found and above != root:
            above = found[above][0]
        if above == root and b"UnitActor" in command:
            yield status
