"""The members of units as packed values: one by one, and many at once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcore.sources.packed_members import (
    MemberColumns,
    pack_all,
    pack_members,
    set_aside,
    unpack_all,
    unpack_members,
)

_members = st.lists(
    st.tuples(
        st.one_of(st.none(), st.text(max_size=3)),
        st.one_of(st.text(max_size=9), st.just("a" * 99)),
        st.text(max_size=4),
        st.integers(-1, 2**62),
    ),
    max_size=4,
)


def _rows(packed: bytes) -> list[list[object]]:
    """The columns of packed members as lists."""
    return [column.to_pylist() for column in unpack_members(packed).columns()]


def _columns(rows: list[tuple[str | None, str, str, int]]) -> MemberColumns:
    texts = [pa.array([row[i] for row in rows], pa.large_string()) for i in range(3)]
    return MemberColumns(*texts, pa.array([row[3] for row in rows], pa.int64()))


@pytest.mark.parametrize("small_bytes", [0, 70, 512])
@given(units=st.lists(_members, max_size=6), have_ids=st.booleans(), is_aside=st.booleans())
def test_all_at_once_are_those_one_by_one(
    small_bytes: int,
    units: list[list[tuple[str | None, str, str, int]]],
    have_ids: bool,
    is_aside: bool,
) -> None:
    with pytest.MonkeyPatch.context() as patch:  # with 0 and 70, some units are compressed
        patch.setattr("segcore.sources.packed_members._SMALL_BYTES", small_bytes)
        _check_all_at_once(units, have_ids, is_aside)


def _check_all_at_once(
    units: list[list[tuple[str | None, str, str, int]]], have_ids: bool, is_aside: bool
) -> None:
    columns = [_columns(unit) for unit in units]
    if not have_ids:
        columns = [MemberColumns.of_images(*unit.columns()[1:]) for unit in columns]
    packed = [pack_members(unit) for unit in columns]
    offsets = 2 + np.cumsum([0, *map(len, columns)])  # of a slice of a longer column
    whole = MemberColumns.concat([_columns([("a", "ä", "b", 1)] * 2), *columns])
    if not have_ids:
        whole = MemberColumns.of_images(*whole.columns()[1:])
    assert [_rows(value) for value in pack_all(whole, offsets).to_pylist()] == [
        _rows(value) for value in packed
    ]
    if is_aside:
        packed = [set_aside(value) if value else value for value in packed]
    found, counts = unpack_all(pa.array(packed, pa.large_binary()))
    assert counts.tolist() == [len(unit) for unit in units]
    expected = MemberColumns.concat([unpack_members(value) for value in packed])
    for column, other, own in zip(
        found.columns(),
        expected.columns(),
        MemberColumns.concat(columns).columns(),
        strict=True,
    ):
        assert column.to_pylist() == other.to_pylist() == own.to_pylist()
