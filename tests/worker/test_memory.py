"""What a process does with its memory; each case in a process of its own, as settings stay."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from segcore.worker import memory

FREED = """
import ctypes, sys
from segcore.worker import memory
said = memory.keep_freed_memory() if sys.argv[1] == "keep" else None
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
c.free.argtypes = [ctypes.c_void_p]
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident()
block = c.malloc(24_000_000)
ctypes.memset(block, 1, 24_000_000)
c.free(block)
print(said, resident() - before)
"""


def ran(program: str, *args: str) -> list[str]:
    command = [sys.executable, "-c", program, *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_freed_memory_stays_with_the_process():
    said, kept = ran(FREED, "keep")
    assert said == "True"
    assert int(kept) > 20_000_000
    _, otherwise = ran(FREED, "as-it-is")
    assert int(otherwise) < 5_000_000  # what would be faulted in again for the next image


def test_another_c_library_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert memory.keep_freed_memory() is False


def test_more_memory_than_the_limit_is_an_error_and_not_the_end():
    program = (
        "from segcore.worker import memory\n"
        "memory.limit_memory(512 << 20)\n"
        "try:\n"
        "    bytearray(1 << 30)\n"
        "except MemoryError:\n"
        "    print('refused', len(bytearray(1 << 20)))\n"
    )
    assert ran(program) == ["refused", str(1 << 20)]


def test_a_number_of_arenas_in_the_environment_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    memory.limit_malloc_arenas()
    assert os.environ["MALLOC_ARENA_MAX"] == "1"
