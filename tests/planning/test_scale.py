"""A small version of `tests.measure.planning`, which takes minutes for ten million images."""

from __future__ import annotations

import pytest

from tests.measure.planning import measure


@pytest.mark.faults
@pytest.mark.slow
def test_planning_stays_small_and_leaves_only_new_and_changed_images() -> None:
    n = 200_000
    steps = measure(n, changed=0.01)
    for step in steps.values():
        assert step["peak_rss_mb"] < 450  # a process that only imports all of this takes 190
        assert step["plan_bytes"] < 30 * n
    assert steps["first"]["images_to_do"] == n
    for name in ("changed evenly", "changed in folders"):
        assert steps[name]["images"] == n
        assert steps[name]["images_to_do"] == 2 * n // 100  # 1 % changed and 1 % new
    assert steps["changed in folders"]["units_kept"] > 0.95 * steps["first"]["units"]
