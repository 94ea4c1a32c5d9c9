"""Jobs that get `kill -9` again and again: see `tests.faults.kills`."""

from __future__ import annotations

import pytest

from tests.faults.kills import KillCounts, kill

FEW, THOUSAND = 12, 1000


def _check(counts: KillCounts, kills: int) -> None:
    print(counts.summary())  # for people, with -s
    assert counts.kills.total() >= kills
    assert counts.jobs > 0


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(FEW, marks=pytest.mark.faults),
        pytest.param(THOUSAND, marks=pytest.mark.chaos),
    ],
)
def test_a_job_without_ray_that_is_killed_has_the_same_bytes_at_its_end(kills: int) -> None:
    _check(kill(kills, seed=kills, pool=False), kills)


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(6 * 3600)
def test_a_pool_that_is_killed_a_thousand_times_has_the_same_bytes_at_its_end() -> None:
    counts = kill(THOUSAND, seed=1, pool=True)
    _check(counts, THOUSAND)
    assert {name.split()[0] for name in counts.kills} == {"driver", "worker"}
