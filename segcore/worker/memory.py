"""Memory of this process: how much it may take, what it gives back, and signs that it ran out."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

# Parameter numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MAX_MMAP_THRESHOLD_BYTES = 4 * 1024 * 1024 * ctypes.sizeof(ctypes.c_long)  # glibc refuses more
_MAX_RETAINED_BYTES = 512 << 20

_SHARED_FRACTION = 0.9  # of the memory; the rest is for Ray and the system
_MIN_SHARE_BYTES = 3 << 30
_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")

_OUT_OF_MEMORY_PHRASES = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "insufficient memory",
)


def limit_memory(max_bytes: int) -> None:
    """Make allocations beyond `max_bytes` in total fail in this process.

    There they can be handled. Without a limit the machine runs out of memory, and the system kills
    some process.
    """
    import resource

    _, hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
    if hard_limit != resource.RLIM_INFINITY:
        max_bytes = min(max_bytes, hard_limit)
    resource.setrlimit(resource.RLIMIT_DATA, (max_bytes, hard_limit))


def share_of_memory(n_processes: int) -> int:
    """What each of `n_processes` on this machine may take: equal shares, and at least 3 GiB."""
    return max(_MIN_SHARE_BYTES, int(_SHARED_FRACTION * total_memory()) // max(n_processes, 1))


def total_memory() -> int:
    """Bytes of memory of this machine, or of the control group that this process may not leave."""
    machine_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine_bytes, *_cgroup_limits()])


def _cgroup_limits() -> list[int]:
    """The limits of this process's control group and of those above it, of both versions."""
    try:
        membership = _MEMBERSHIP.read_text().splitlines()
    except OSError:
        return []
    limits = []
    for line in membership:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = _CGROUPS, "memory.max"
        if controllers:  # version 1
            root, name = _CGROUPS / "memory", "memory.limit_in_bytes"
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            try:
                limits.append(int((folder / name).read_text()))
            except (OSError, ValueError):  # there is none, or it says `max`
                continue
    return limits


def limit_malloc_arenas() -> None:
    """Let glibc use 4 arenas in processes started from now on, unless the environment says else.

    The default is 8 for each core. Memory that a thread frees in its own arena is of no use to
    other threads, and each unit has new threads: an actor on two cores grew by 12 % over 20,000
    images.
    """
    os.environ.setdefault("MALLOC_ARENA_MAX", "4")


def keep_freed_memory() -> bool:
    """Keep up to 512 MiB of freed memory for the next image instead of returning it each time.

    A network on a CPU allocates the same tensors for every image. Where glibc returns them to the
    system in between (that depends on the order of allocations), each image pays for thousands of
    page faults: 5 to 20 % of its time, measured. Without glibc this does nothing.

    Returns:
        Whether it could be set.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another system, another C library
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    parameters = {
        _M_TRIM_THRESHOLD: _MAX_RETAINED_BYTES,
        _M_MMAP_THRESHOLD: _MAX_MMAP_THRESHOLD_BYTES,
    }
    return all(mallopt(parameter, value) == 1 for parameter, value in parameters.items())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library's exception says that memory, of the host or the device, ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    message = str(error).lower()
    return any(phrase in message for phrase in _OUT_OF_MEMORY_PHRASES)
