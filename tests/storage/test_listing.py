from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from segcore.storage import listing
from segcore.storage.listing import Listing

rows = st.lists(
    st.tuples(st.text("abé/", max_size=3), st.integers(-1, 9), st.sampled_from(["", "e1", "e2"])),
    max_size=60,
)
small = st.tuples(st.integers(1, 7), st.integers(1, 4))  # rows of a chunk, chunks of a run


def _listing(items: list[tuple[str, int, str]], size: tuple[int, int]) -> Listing:
    with (
        patch.object(listing, "CHUNK_ROWS", size[0]),
        patch.object(listing, "_RUN_CHUNKS", size[1]),
        patch.object(listing, "_ROW_BATCH", 3),
    ):
        return Listing.from_rows(iter(items))


def _rows(found: Listing) -> list[tuple[str, int, str]]:
    return [(r["uri"], r["size"], r["etag"]) for r in found.to_table().to_pylist()]


@given(rows, small)
@example([("", 0, ""), ("", 0, "e1"), ("a", 0, ""), ("", 0, "")], (1, 1))
def test_rows_in_any_order_come_out_sorted_and_stable(
    items: list[tuple[str, int, str]], size: tuple[int, int]
) -> None:
    found = _listing(items, size)
    assert _rows(found) == sorted(items, key=lambda row: row[0].encode())
    assert found.num_rows == len(items)
    assert found.to_table().schema == listing.SCHEMA


@given(rows, small)
def test_unique_keeps_the_first_of_each(
    items: list[tuple[str, int, str]], size: tuple[int, int]
) -> None:
    found, repeated = _listing(items, size).unique()
    first: dict[str, tuple[str, int, str]] = {}
    for row in items:
        first.setdefault(row[0], row)
    assert _rows(found) == sorted(first.values(), key=lambda row: row[0].encode())
    assert repeated == len(items) - len(first)


@given(rows, small, st.data())
def test_filters(
    items: list[tuple[str, int, str]], size: tuple[int, int], data: st.DataObject
) -> None:
    found = _listing(items, size)
    kept = found.filter(lambda table: pc.equal(table["etag"], "e1"))
    assert _rows(kept) == [row for row in _rows(found) if row[2] == "e1"]
    chosen = data.draw(st.lists(st.booleans(), min_size=len(items), max_size=len(items)))
    taken = found.take_where(np.array(chosen, bool))
    assert _rows(taken) == [row for row, keep in zip(_rows(found), chosen, strict=True) if keep]


@pytest.mark.parametrize("order", ["listed", "shuffled"])
def test_a_million_names_stay_small(order: str) -> None:
    n = 200_000
    numbers = np.arange(n) if order == "listed" else np.random.default_rng(1).permutation(n)
    etags = np.random.default_rng(2).bytes(16 * n).hex()
    found = Listing.from_rows(
        (f"s3://bucket/photos/2024/{i // 1000:05}/image-{i:09}.jpg", 100_000 + i % 977,
         etags[32 * i : 32 * i + 32])
        for i in numbers.tolist()
    )  # fmt: skip
    assert found.num_rows == n
    assert sum(len(chunk.data) for chunk in found._chunks) < 32 * n
    assert found.to_table()["uri"][-1].as_py().endswith(f"{n - 1:09}.jpg")
