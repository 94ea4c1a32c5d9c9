"""The learning rate over a run."""

from __future__ import annotations

import pytest

from segcore.training.config import OptimizerConfig
from segcore.training.optimizer import learning_rate

CONFIG = OptimizerConfig()


def _rates(n_steps: int) -> list[float]:
    return [learning_rate(CONFIG, step, step / n_steps) for step in range(n_steps)]


@pytest.mark.parametrize("n_steps", [10, 30, 300, 2500])
def test_every_run_reaches_nearly_the_highest_rate_and_ends_low(n_steps: int) -> None:
    rates = _rates(n_steps)
    assert 0.9 * CONFIG.lr <= max(rates) <= CONFIG.lr
    assert rates.index(max(rates)) <= n_steps / 8 + 1
    assert rates[-1] < 0.1 * CONFIG.lr


def test_a_long_run_warms_up_for_as_many_steps_as_are_set() -> None:
    rates = _rates(20_000)
    for step in (0, 50, 199):
        assert rates[step] == pytest.approx(CONFIG.lr * (step + 1) / 200, rel=1e-3)


def test_no_warm_up() -> None:
    config = OptimizerConfig(warmup_steps=0)
    assert learning_rate(config, 0, 0.0) == config.lr
