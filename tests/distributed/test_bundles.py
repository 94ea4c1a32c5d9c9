"""Bundles: every unit is in one, and none keeps the other workers waiting."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcore.distributed.bundles import (
    MAX_BUNDLE_UNITS,
    Bundles,
    bundle_sizes,
    max_bundle_units,
)


@given(st.integers(0, 5000), st.integers(1, 200), st.integers(1, 64))
def test_sizes_sum_up_and_fall(n_units: int, slots: int, max_units: int) -> None:
    sizes = bundle_sizes(n_units, slots, max_units)
    assert sum(sizes) == n_units
    assert sizes == sorted(sizes, reverse=True)
    assert all(1 <= size <= max_units for size in sizes)
    left = n_units
    for size in sizes:  # a worker with the largest bundle never holds more than an eighth share
        assert size == 1 or size * slots * 8 <= left
        left -= size


@pytest.mark.parametrize(("n_units", "slots"), [(1, 1), (15, 1), (31, 2), (8 * 64, 64)])
def test_few_units_go_one_by_one(n_units: int, slots: int) -> None:
    sizes = bundle_sizes(n_units, slots, MAX_BUNDLE_UNITS)
    assert sizes[0] <= 1 + n_units // (slots * 8)
    assert sizes[-1] == 1


def test_many_units_cost_few_tasks() -> None:
    assert len(bundle_sizes(100_000, 64, 16)) < 100_000 / 10


@given(st.lists(st.one_of(st.none(), st.integers(0, 10_000)), max_size=20))
def test_large_bundles_hold_few_images(images: list[int | None]) -> None:
    most = max_bundle_units(pa.table({"n_images": pa.array(images, pa.int64())}))
    assert 16 <= most <= MAX_BUNDLE_UNITS
    if most > 16:
        known = [count for count in images if count is not None]
        assert known
        assert len(known) == len(images)
        assert most * max(known) <= 256


def test_units_of_one_image_come_in_large_bundles() -> None:
    assert max_bundle_units(pa.table({"n_images": [1, 1, 1]})) == MAX_BUNDLE_UNITS
    assert max_bundle_units(pa.table({"n_images": [1, 256, 1]})) == 16


def test_bundles_hold_all_rows_in_order() -> None:
    table = pa.table({"unit": [f"{i}" for i in range(100)], "members": [b""] * 100})
    bundles = Bundles(table, bundle_sizes(100, 2, 16))
    assert len(list(bundles)) == len(bundles) > 16
    for _ in range(2):  # Ray Data takes them twice
        assert pa.concat_tables(bundles).equals(table)
