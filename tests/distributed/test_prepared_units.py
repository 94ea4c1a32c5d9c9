"""What readers send to workers: equal objects, and arrays that are not copied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from segcore.distributed.prepared_units import Packer, unpack

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


@given(st.lists(st.lists(_VALUES, max_size=4), min_size=1, max_size=3))
def test_objects_come_out_as_they_went_in(rows):
    packer = Packer()
    for objects in rows:
        for first, second in zip(objects, unpack(packer.pack(objects)), strict=True):
            _assert_equal(first, second)


@given(st.permutations(range(3)), st.booleans(), st.integers(1, 3))
def test_any_order_of_axes(axes, flipped, step):
    array = np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5).transpose(axes)
    array = array[::-1, ::step] if flipped else array
    (result,) = unpack(Packer().pack([array]))
    _assert_equal(array, result)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_arrays_lie_in_the_column_and_are_not_copied_out_of_it(axes):
    array = np.arange(60, dtype=np.uint8).reshape(3, 4, 5).transpose(axes)
    table = Packer().pack([{"pixels": array}, [array.astype(np.float64)]])
    assert table["arrays"].nbytes >= 60 + 480
    assert sum(len(header.as_py()) for header in table["headers"][0].values) < 900
    pixels, again = unpack(table)
    column = np.frombuffer(table["arrays"].chunk(0).buffers()[2], np.uint8)
    for value in (pixels["pixels"], again[0]):
        assert np.shares_memory(value, column)
        assert not value.flags.writeable
        assert value.ctypes.data % value.itemsize == 0


def test_a_row_that_was_sliced_off_a_table():
    packer = Packer()
    tables = [packer.pack([np.full(5, value), np.full(3, value)]) for value in range(4)]
    table = pa.concat_tables(tables).combine_chunks().slice(2, 1)
    assert [array.tolist() for array in unpack(table)] == [[2] * 5, [2] * 3]
    with pytest.raises(ValueError, match="a table of 4 rows"):
        next(unpack(pa.concat_tables(tables)))


def test_an_array_may_change_once_the_next_object_is_asked_for():
    """So a reader may free or reuse the memory of each image."""
    array = np.zeros(1000, np.uint8)

    def objects() -> Iterator[np.ndarray]:
        for value in range(20):
            array[:] = value
            yield array

    unpacked = unpack(Packer().pack(objects()))
    assert [set(result.tolist()) for result in unpacked] == [{value} for value in range(20)]


def test_the_buffer_is_used_again_only_when_nothing_holds_it():
    packer = Packer()
    first = packer.pack([np.zeros(1000, np.uint8)])
    second = packer.pack([np.ones(1000, np.uint8)])  # the first is held
    (array,) = unpack(second)
    address = second["arrays"].chunk(0).buffers()[2].address
    assert set(next(unpack(first)).tolist()) == {0}
    del first, second
    third = packer.pack([np.full(1000, 3, np.uint8)])  # a view of the second is held
    assert set(array.tolist()) == {1}
    del array, third
    addresses = {packer.pack([np.zeros(1000)])["arrays"].chunk(0).buffers()[2].address}
    assert address not in addresses
    again = {packer.pack([np.zeros(900)])["arrays"].chunk(0).buffers()[2].address}
    assert again == addresses


def test_a_packer_survives_objects_that_fail():
    packer = Packer()

    def failing() -> Iterator[np.ndarray]:
        yield np.ones(100, np.uint8)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        packer.pack(failing())
    (result,) = unpack(packer.pack(["what happened"]))
    assert result == "what happened"
