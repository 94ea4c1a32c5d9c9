"""Time and money of a run, by a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcore.config.schema import RunOptions
from segcore.run.budget import Budget

phases = st.lists(st.tuples(st.integers(0, 500), st.floats(0, 10_000)), max_size=5)


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@given(phases, st.floats(0.01, 50), st.floats(0.01, 5000))
def test_money_is_that_of_all_workers_over_all_time(
    workers: list[tuple[int, float]], price: float, limit: float
) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segcore.run.budget.time", clock)
        budget = Budget.of(RunOptions(max_cost=limit, worker_price=price))
        clock.now += 500  # before there are workers, nothing is paid
        expected = 0.0
        for number, seconds in workers:
            budget.pay_workers(number)
            clock.now += seconds
            expected += price * number * seconds / 3600
            assert budget.cost() == pytest.approx(expected)
            if abs(expected - limit) > 1e-6 * limit:
                assert budget.is_over() == (expected > limit)
        budget.pay_workers(0)
        clock.now += 10_000
        assert budget.cost() == pytest.approx(expected)


def test_money_needs_a_price() -> None:
    with pytest.raises(ValueError, match=r"needs run\.worker_price"):
        RunOptions(max_cost=1.0)
    assert Budget.of(RunOptions()).cost() == 0.0
    assert not Budget.of(RunOptions(worker_price=3.0)).is_over()
