"""Memory of this process: how much it may take, and what it gives back."""

from __future__ import annotations

import ctypes
import os

# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 4 * 1024 * 1024 * ctypes.sizeof(ctypes.c_long)  # glibc refuses more
_KEPT_BYTES = 512 << 20


def limit_memory(size: int) -> None:
    """Let allocations over `size` bytes in all fail in this process, where they can be handled,
    instead of bringing the machine to where something is killed.
    """
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        size = min(size, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (size, hard))


def limit_malloc_arenas() -> None:
    """Let glibc in processes started from now on use 4 arenas, if the environment names no number.

    By default they are 8 for each core. What a thread frees in its own is of no use to others, and
    each unit has new threads: an actor on two cores grew by 12 % over 20,000 images.
    """
    os.environ.setdefault("MALLOC_ARENA_MAX", "4")


def keep_freed_memory() -> bool:
    """Keep freed memory, up to 512 MB, for the next image instead of giving it back each time.

    A network on a CPU allocates the same tensors for every image. Where glibc hands them back to
    the system in between (it depends on the order of allocations), each image pays for thousands
    of page faults: 5 to 20 % of its time, measured. Does nothing without glibc.

    Returns:
        Whether it could be set.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another system, another C library
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    thresholds = {_M_TRIM_THRESHOLD: _KEPT_BYTES, _M_MMAP_THRESHOLD: _LARGEST_MMAP_THRESHOLD}
    return all(mallopt(name, value) == 1 for name, value in thresholds.items())
