"""Jobs that get `kill -9` again and again: see `tests.faults.kills`.

It forks jobs from its own process, which may not have the threads of this one.
"""

from __future__ import annotations

import re

import pytest

from tests.support.commands import run_module

FEW, THOUSAND = 12, 1000


def _kill(kills: int, *options: str) -> str:
    """Kill so many times; the summary, which names who was killed."""
    done = run_module("tests.faults.kills", "--kills", str(kills), *options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    summary = done.stdout.splitlines()[-1]
    print(summary)  # for people, with -s
    match = re.match(r"([\d,]+) kills", summary)
    assert match, summary
    assert int(match[1].replace(",", "")) >= kills
    return summary


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(FEW, marks=pytest.mark.faults),
        pytest.param(THOUSAND, marks=pytest.mark.chaos),
    ],
)
def test_a_job_without_ray_that_is_killed_has_the_same_bytes_at_its_end(kills: int) -> None:
    assert "driver at a file operation" in _kill(kills)


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(6 * 3600)
def test_a_pool_that_is_killed_a_thousand_times_has_the_same_bytes_at_its_end() -> None:
    summary = _kill(THOUSAND, "--pool")
    assert "driver at" in summary
    assert "worker at" in summary
