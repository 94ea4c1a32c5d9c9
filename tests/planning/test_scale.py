"""A small version of `tests.measure.planning`, which takes minutes for ten million images."""

from __future__ import annotations

import pyarrow as pa
import pytest

from segcore.planning.plan import make_plan
from segcore.sources import SourceOptions
from segcore.sources.tar import TarSource
from segcore.sources.units import UnitLimits
from segcore.storage import Storage
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


@pytest.mark.faults
def test_the_shards_of_a_large_archive_are_planned_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Storage, uri: str, *args: object) -> None:
        raise AssertionError(f"{uri} was opened")

    for name in ("open", "read", "read_range", "stat", "stream"):
        monkeypatch.setattr(Storage, name, refuse)
    numbers = range(100_000)
    columns = {
        "uri": pa.array([f"s3://bucket/{i:06d}.tar" for i in numbers], pa.large_string()),
        "size": pa.array([10**9] * len(numbers)),
        "etag": pa.array([f"{i:032x}" for i in numbers], pa.large_string()),
    }
    source = TarSource(
        input="s3://bucket", kind="tar", shards=pa.table(columns), storage=Storage(),
        options=SourceOptions(),
    )  # fmt: skip
    plan = make_plan(source, UnitLimits())
    assert len(plan.units) == 100_000
    assert make_plan(source, UnitLimits(), plan).run == plan.run
