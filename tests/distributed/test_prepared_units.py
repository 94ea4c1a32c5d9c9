"""What readers send to workers: equal objects, and arrays that are not copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from segcore.distributed.prepared_units import objects_from_table, objects_to_table

_TYPES = st.sampled_from([np.uint8, np.float32, np.float64, np.int16, np.bool_, ">i4", "U3"])
_ARRAYS = _TYPES.flatmap(
    lambda dtype: arrays.arrays(
        dtype, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    )
)
_VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | _ARRAYS,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children),
    max_leaves=8,
)


def _assert_equal(first: Any, second: Any) -> None:
    assert type(first) is type(second)
    if isinstance(first, np.ndarray):
        assert first.dtype == second.dtype
        assert first.shape == second.shape
        assert first.tobytes() == second.tobytes()
    elif isinstance(first, list):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            _assert_equal(a, b)
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            _assert_equal(first[key], second[key])
    else:
        assert first == second


@given(st.lists(_VALUES, max_size=4))
def test_objects_come_out_as_they_went_in(objects):
    for first, second in zip(objects, objects_from_table(objects_to_table(objects)), strict=True):
        _assert_equal(first, second)


@given(st.permutations(range(3)), st.booleans(), st.integers(1, 3))
def test_any_order_of_axes(axes, flipped, step):
    array = np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5).transpose(axes)
    array = array[::-1, ::step] if flipped else array
    (result,) = objects_from_table(objects_to_table([array]))
    _assert_equal(array, result)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_arrays_lie_in_the_column_and_are_not_copied_out_of_it(axes):
    array = np.arange(60, dtype=np.uint8).reshape(3, 4, 5).transpose(axes)
    table = objects_to_table([{"pixels": array, "again": [array.astype(np.float64)]}])
    assert table["arrays"].nbytes >= 60 + 480
    assert len(table["header"][0].as_py()) < 600
    (result,) = objects_from_table(table)
    column = np.frombuffer(table["arrays"].chunk(0).buffers()[2], np.uint8)
    for value in (result["pixels"], result["again"][0]):
        assert np.shares_memory(value, column)
        assert not value.flags.writeable
        assert value.ctypes.data % value.itemsize == 0


def test_rows_that_were_sliced_off_a_table():
    table = objects_to_table([np.full(5, value) for value in range(4)])
    (result,) = objects_from_table(table.slice(2, 1).combine_chunks())
    assert result.tolist() == [2] * 5
