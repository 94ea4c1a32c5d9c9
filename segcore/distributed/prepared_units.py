"""Units that are read, on their way from the readers to the workers with the model.

Pixels are written once into one buffer, which Ray copies into its object store and workers map: in
columns of Python objects they would be pickled into the block, and each worker would unpickle a
copy of its own.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

_ALIGNMENT = 64  # bytes: of arrays of any type


def objects_to_table(objects: Sequence[Any]) -> pa.Table:
    """One row for each object; arrays within the objects are not pickled, but laid side by side."""
    parts = [_pack(value) for value in objects]
    return pa.table(
        {
            "header": pa.array([header for header, _, _ in parts], pa.large_binary()),
            "ends": pa.array([ends for _, ends, _ in parts], pa.list_(pa.int64())),
            "arrays": _binary_column([arrays for _, _, arrays in parts]),
        }
    )


def objects_from_table(table: pa.Table) -> Iterator[Any]:
    """The objects; their arrays are views of the table's memory, and read-only."""
    rows = zip(table["header"], table["ends"], _buffers(table["arrays"]), strict=True)
    for header, ends, arrays in rows:
        spans = pairwise([0, *ends.as_py()])
        buffers = [arrays[_aligned(start) : end] for start, end in spans]
        yield pickle.loads(header.as_py(), buffers=buffers)  # noqa: S301


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """Arrays that lie otherwise in memory than their axes say, such as pixels with channels
        last, are not contiguous for numpy, and it would pickle a copy of them.
        """
        if type(value) is not np.ndarray or value.flags.forc or value.dtype.hasobject:
            return NotImplemented
        axes = sorted(range(value.ndim), key=lambda axis: -value.strides[axis])
        as_stored = value.transpose(axes)
        if not as_stored.flags.c_contiguous:
            return NotImplemented
        return np.transpose, (as_stored, np.argsort(axes).tolist())


class _Bytes:
    """A file that keeps what is written."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, piece: bytes) -> int:
        self.pieces.append(bytes(piece))
        return len(piece)


def _pack(value: Any) -> tuple[bytes, list[int], np.ndarray]:
    """The pickled object without its arrays, where each of these ends, and all of them."""
    buffers: list[pickle.PickleBuffer] = []
    header = _Bytes()
    _Pickler(header, protocol=5, buffer_callback=buffers.append).dump(value)
    views = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]
    ends, end = [], 0
    for view in views:
        end = _aligned(end) + view.size
        ends.append(end)
    arrays = np.empty(end, np.uint8)
    for view, stop in zip(views, ends, strict=True):
        arrays[stop - view.size : stop] = view
    return b"".join(header.pieces), ends, arrays


def _buffers(column: pa.ChunkedArray) -> Iterator[pa.Buffer]:
    """The memory of each row; a scalar of pyarrow would be a copy."""
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        ends = np.frombuffer(offsets, np.int64)[chunk.offset :]
        for row in range(len(chunk)):
            yield data.slice(ends[row], ends[row + 1] - ends[row])


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def _binary_column(rows: Sequence[np.ndarray]) -> pa.ChunkedArray:
    """A column with a chunk for each row, which is its memory and no copy."""
    chunks = [
        pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), 1, [None, pa.py_buffer(np.array([0, row.size])), pa.py_buffer(row)]
        )
        for row in rows
    ]
    return pa.chunked_array(chunks, pa.large_binary())
