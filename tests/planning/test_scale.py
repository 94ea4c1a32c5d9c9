"""A small version of `measure_planning`; ten million images take minutes and are run by hand."""

from __future__ import annotations

from tests.measure.planning import measure


def test_planning_stays_small_and_leaves_only_new_and_changed_images() -> None:
    n = 200_000
    found = measure(n, changed=0.01)
    for step in found.values():
        assert step["peak_rss_mb"] < 450  # a process that only imports all this has 190
        assert step["plan_bytes"] < 30 * n
    assert found["first"]["images_to_do"] == n
    for name in ("changed evenly", "changed in folders"):
        assert found[name]["images"] == n
        assert found[name]["images_to_do"] == 2 * n // 100  # 1 % changed and 1 % new
    assert found["changed in folders"]["units_kept"] > 0.95 * found["first"]["units"]
