"""Rows that are sorted in runs come out as if they had been sorted at once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segcore.run import sorted_rows
from segcore.run.sorted_rows import RowSorter

_KEYS = [("category", "ascending"), ("score", "descending"), ("index", "ascending")]


def _rows(n: int, seed: int) -> pa.Table:
    random = np.random.default_rng(seed)
    return pa.table(
        {
            "category": random.choice(["a", "b", "cc"], n),
            "score": random.integers(0, 4, n).astype(np.float32),
            "index": random.permutation(n),
            "counts": [("x" * int(length)) or None for length in random.integers(0, 9, n)],
            "warnings": [["w"] * int(length) for length in random.integers(0, 3, n)],
        }
    )


@pytest.mark.slow
@settings(
    max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    st.integers(0, 120),
    st.integers(0, 9),
    st.integers(1, 80),
    st.integers(1, 4000),
    st.integers(1, 40),
)
def test_rows_are_sorted_whatever_the_runs_are(
    monkeypatch: pytest.MonkeyPatch, n: int, seed: int, piece_rows: int, run_bytes: int, page: int
) -> None:
    monkeypatch.setattr(sorted_rows, "RUN_BYTES", run_bytes)
    monkeypatch.setattr(sorted_rows, "_PAGE_ROWS", page)
    rows = _rows(n, seed)
    sorter = RowSorter(rows.schema, _KEYS)
    for start in range(0, n, 13):
        sorter.add(rows.slice(start, 13))
    pieces = list(sorter.sorted_pieces(piece_rows))
    assert [piece.num_rows for piece in pieces[:-1]] == [piece_rows] * (len(pieces) - 1)
    assert pa.concat_tables([rows.schema.empty_table(), *pieces]).equals(rows.sort_by(_KEYS))
