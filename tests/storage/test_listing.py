from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from segcore.storage import listing
from segcore.storage.listing import Listing

Row = tuple[str, int, str]  # uri, size, etag

listing_rows = st.lists(
    st.tuples(st.text("abé/", max_size=3), st.integers(-1, 9), st.sampled_from(["", "e1", "e2"])),
    max_size=60,
)
# (rows in a chunk, unsorted chunks that are sorted together)
chunk_sizes = st.tuples(st.integers(1, 7), st.integers(1, 4))


def _build(rows: list[Row], chunk_sizes: tuple[int, int]) -> Listing:
    with (
        patch.object(listing, "CHUNK_ROWS", chunk_sizes[0]),
        patch.object(listing, "_RUN_CHUNKS", chunk_sizes[1]),
        patch.object(listing, "_ROW_BATCH", 3),
    ):
        return Listing.from_rows(iter(rows))


def _rows_of(built: Listing) -> list[Row]:
    return [(row["uri"], row["size"], row["etag"]) for row in built.to_table().to_pylist()]


@pytest.mark.slow
@given(listing_rows, chunk_sizes)
@example([("", 0, ""), ("", 0, "e1"), ("a", 0, ""), ("", 0, "")], (1, 1))
def test_rows_in_any_order_come_out_sorted_and_stable(
    rows: list[Row], chunk_sizes: tuple[int, int]
) -> None:
    built = _build(rows, chunk_sizes)
    assert _rows_of(built) == sorted(rows, key=lambda row: row[0].encode())
    assert built.num_rows == len(rows)
    assert built.to_table().schema == listing.SCHEMA


@given(listing_rows, chunk_sizes)
def test_unique_keeps_the_first_row_of_each_uri(
    rows: list[Row], chunk_sizes: tuple[int, int]
) -> None:
    unique, n_repeated = _build(rows, chunk_sizes).unique()
    first_rows: dict[str, Row] = {}
    for row in rows:
        first_rows.setdefault(row[0], row)
    assert _rows_of(unique) == sorted(first_rows.values(), key=lambda row: row[0].encode())
    assert n_repeated == len(rows) - len(first_rows)


@pytest.mark.slow
@given(listing_rows, chunk_sizes, st.data())
def test_filters_keep_the_selected_rows(
    rows: list[Row], chunk_sizes: tuple[int, int], data: st.DataObject
) -> None:
    built = _build(rows, chunk_sizes)
    filtered = built.filter(lambda table: pc.equal(table["etag"], "e1"))
    assert _rows_of(filtered) == [row for row in _rows_of(built) if row[2] == "e1"]
    mask = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    selected = built.take_where(np.array(mask, bool))
    assert _rows_of(selected) == [
        row for row, is_selected in zip(_rows_of(built), mask, strict=True) if is_selected
    ]


@pytest.mark.slow
@pytest.mark.parametrize("order", ["listed", pytest.param("shuffled", marks=pytest.mark.faults)])
def test_a_listing_takes_less_than_32_bytes_per_object(order: str) -> None:
    n = 200_000
    numbers = np.arange(n) if order == "listed" else np.random.default_rng(1).permutation(n)
    etags = np.random.default_rng(2).bytes(16 * n).hex()
    built = Listing.from_rows(
        (f"s3://bucket/photos/2024/{i // 1000:05}/image-{i:09}.jpg", 100_000 + i % 977,
         etags[32 * i : 32 * i + 32])
        for i in numbers.tolist()
    )  # fmt: skip
    assert built.num_rows == n
    assert sum(chunk.length for chunk in built._chunks) < 32 * n
    assert built.to_table()["uri"][-1].as_py().endswith(f"{n - 1:09}.jpg")
