"""Damaged checkpoints: whatever is wrong, one sentence, soon, and within bounds of memory.

``pytest -m chaos tests/models/test_mutants.py`` tries 20,000 of them in processes with a limit of
memory and prints the counts; the fast suite tries some 300.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import pytest
import torch

from segcore.errors import CheckpointError, SegcoreError
from segcore.models.base import ModelOptions
from segcore.models.registry import load_model, parse_checkpoint
from tests.models.test_wrappers import YOLO_NAMES
from tests.support.checkpoint_files import torch_file
from tests.support.checkpoint_mutants import FORMATS, Mutants
from tests.support.paths import PYTHONPATH

MANY = 20_000
PROCESSES = 2
LIMIT_S = 10.0  # of CPU time, for one file
MAX_BYTES = 1 << 30  # of memory that all files together may take beside what is loaded before


def read_any_checkpoint() -> None:
    """What torch imports when it makes its first network does not count."""
    with pytest.raises(CheckpointError, match="do not match any"):
        parse_checkpoint(torch_file({name: torch.ones(1) for name in YOLO_NAMES}), "x")


def try_mutants(numbers: range) -> dict[str, Any]:
    """Reads mutants; counts of outcomes by format, the longest time, what should not happen."""
    mutants = Mutants()
    read_any_checkpoint()
    counts: Counter[str] = Counter()
    foreign: list[str] = []
    longest = (0.0, -1)
    for number in numbers:
        kind, data = mutants.make(number)
        started = time.process_time()  # the machine may be busy
        try:
            parse_checkpoint(data, "some/file.bin")
            load_model("some/file.bin", ModelOptions(device="cpu"), data)
            outcome = "read"
        except CheckpointError as error:
            outcome = "refused"
            if not error.message.startswith("some/file.bin ") or not error.message.isprintable():
                foreign.append(f"{number} {kind}: message {error.message!r:.300}")
        except SegcoreError as error:
            foreign.append(f"{number} {kind}: {error!r:.300}")
        except BaseException as error:  # a panic of a library is not an Exception
            foreign.append(f"{number} {kind}: {type(error).__name__}: {error!s:.300}")
            outcome = "foreign"
        longest = max(longest, (time.process_time() - started, number))
        counts[f"{kind}: {outcome}"] += 1
    return {"counts": counts, "longest": longest, "foreign": foreign}


@pytest.mark.faults
def test_damaged_files_are_refused_in_one_sentence() -> None:
    result = try_mutants(range(300))
    assert not result["foreign"]
    assert result["longest"][0] < LIMIT_S
    assert {kind.partition(":")[0] for kind in result["counts"]} == set(FORMATS)


@pytest.mark.chaos
@pytest.mark.timeout(7200)
def test_many_damaged_files_are_refused_within_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.models.test_mutants", str(i), str(PROCESSES), str(MANY)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(PROCESSES)
    ]
    results = [json.loads(child.communicate()[0]) for child in children]
    assert [child.returncode for child in children] == [0] * PROCESSES
    counts: Counter[str] = Counter()
    for result in results:
        counts.update(result["counts"])
    with capsys.disabled():
        print(f"\n{dict(sorted(counts.items()))}")
        print(f"longest: {[result['longest'] for result in results]}")
        print(f"memory: {[result['bytes'] >> 20 for result in results]} MiB")
    assert sum(counts.values()) == MANY
    assert not [line for result in results for line in result["foreign"]]
    assert max(result["longest"][0] for result in results) < LIMIT_S


def main(first: int, step: int, count: int) -> None:
    """One process of the long test: memory is limited, what is read before does not count."""
    try_mutants(range(100))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    pages = int(open("/proc/self/statm").read().split()[0])  # noqa: SIM115
    limit = pages * resource.getpagesize() + MAX_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    result = try_mutants(range(first, count, step))
    result["bytes"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before
    print(json.dumps(result))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
