"""What a process does with its memory.

Each case has a process of its own, because the settings cannot be undone.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from segcore.worker import memory

MEASURE_FREED_MEMORY = """
import ctypes, sys
from segcore.worker import memory
was_set = memory.keep_freed_memory() if sys.argv[1] == "keep" else None
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def resident_bytes():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident_bytes()
block = libc.malloc(24_000_000)
ctypes.memset(block, 1, 24_000_000)
libc.free(block)
print(was_set, resident_bytes() - before)
"""


def _run(program: str, *args: str) -> list[str]:
    command = [sys.executable, "-c", program, *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_freed_memory_stays_with_the_process():
    was_set, retained_bytes = _run(MEASURE_FREED_MEMORY, "keep")
    assert was_set == "True"
    assert int(retained_bytes) > 20_000_000
    _, retained_bytes = _run(MEASURE_FREED_MEMORY, "default")
    assert int(retained_bytes) < 5_000_000  # the rest is faulted in again for the next image


def test_without_glibc_nothing_is_set(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert memory.keep_freed_memory() is False


def test_more_memory_than_the_limit_is_an_error_that_the_process_survives():
    program = (
        "from segcore.worker import memory\n"
        "memory.limit_memory(512 << 20)\n"
        "try:\n"
        "    bytearray(1 << 30)\n"
        "except MemoryError:\n"
        "    print('refused', len(bytearray(1 << 20)))\n"
    )
    assert _run(program) == ["refused", str(1 << 20)]


@pytest.mark.parametrize(
    ("n_processes", "total_gib", "share_gib"),
    [(1, 20, 18), (2, 20, 9), (4, 20, 4.5), (16, 20, 3), (1, 2, 3), (0, 20, 18)],
)
def test_a_share_is_nine_tenths_divided_and_at_least_3_gib(
    monkeypatch, n_processes, total_gib, share_gib
):
    monkeypatch.setattr(memory, "total_memory", lambda: total_gib << 30)
    assert memory.share_of_memory(n_processes) == int(share_gib * 2**30)


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {"memory.max": "5000\n"}, 5000),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "7000"}, 7000),
        ("0::/a/b\n", {"a/b/memory.max": "6000\n", "a/memory.max": "7000"}, 6000),
        ("0::/a/b\n", {}, None),
        ("3:cpu:/x\n2:memory:/a\n", {"memory/a/memory.limit_in_bytes": "8000"}, 8000),
        ("2:memory:/gone\n", {"memory/memory.limit_in_bytes": "9000"}, 9000),
        ("2:memory:/\n", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, None),
        (None, {"memory.max": "5000"}, None),
    ],
)
def test_the_limit_of_the_container_counts(monkeypatch, tmp_path, membership, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    if membership is not None:
        (tmp_path / "membership").write_text(membership)
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_MEMBERSHIP", tmp_path / "membership")
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory.total_memory() == (expected or machine)


def test_a_number_of_arenas_that_the_environment_sets_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    memory.limit_malloc_arenas()
    assert os.environ["MALLOC_ARENA_MAX"] == "1"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (ValueError("image file is truncated"), False),
    ],
)
def test_exceptions_of_libraries_show_whether_memory_ran_out(error, expected):
    assert memory.is_out_of_memory(error) is expected
