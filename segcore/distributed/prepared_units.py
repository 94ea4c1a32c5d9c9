"""Units that are read, on their way from the readers to the workers with the model.

As its images are decoded, the arrays of a unit are written into one buffer, which Ray copies into
its object store and workers map: in columns of Python objects they would be pickled into the block,
and each worker would unpickle a copy of its own. Canvases are freed at once, so the next ones find
memory that is mapped and still in the cache of the CPU.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

_ALIGNMENT = 64  # bytes: of arrays of any type
_GROWTH = 2


class Packer:
    """Packs objects into tables; arrays within them are not pickled, but laid side by side.

    Its buffer is used again once nothing holds the last table any more. Not thread-safe.
    """

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)
        self._references_when_free = sys.getrefcount(self._buffer)

    def pack(self, objects: Iterable[Any]) -> pa.Table:
        """A table of one row with all objects; each is asked for when the one before is packed.

        Raises:
            Exception: Whatever `objects` raises; the packer can be used again.
        """
        if sys.getrefcount(self._buffer) > self._references_when_free:
            self._buffer = np.empty_like(self._buffer)
        headers, ends, end = [], [], 0
        for value in objects:
            header, arrays = _pickle_without_arrays(value)
            headers.append(header)
            ends.append([end := self._append(array, end) for array in arrays])
        columns = {
            "headers": pa.array([headers], pa.list_(pa.large_binary())),
            "ends": pa.array([ends], pa.list_(pa.list_(pa.int64()))),
            "arrays": _binary_column(self._buffer[:end]),
        }
        return pa.table(columns)

    def _append(self, array: np.ndarray, end: int) -> int:
        """Write the array behind what ends at `end`; returns where it ends."""
        start = _aligned(end)
        stop = start + array.size
        if stop > self._buffer.size:
            larger = np.empty(max(stop, _GROWTH * self._buffer.size), np.uint8)
            larger[:end] = self._buffer[:end]
            self._buffer = larger
        self._buffer[start:stop] = array
        return stop


def unpack(table: pa.Table) -> Iterator[Any]:
    """The objects of a table of `Packer`; their arrays are views of its memory, and read-only.

    Raises:
        ValueError: It has not exactly one row.
    """
    if table.num_rows != 1:
        raise ValueError(f"a table of {table.num_rows} rows, not of one")
    memory = _memory_of_value(table["arrays"])
    end = 0
    for header, ends in zip(table["headers"][0].values, table["ends"][0].as_py(), strict=True):
        buffers = [memory[_aligned(start) : stop] for start, stop in pairwise([end, *ends])]
        end = ends[-1] if ends else end
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


def _pickle_without_arrays(value: Any) -> tuple[bytes, list[np.ndarray]]:
    """The pickled object without its arrays, and the bytes of these."""
    buffers: list[pickle.PickleBuffer] = []
    header = _Bytes()
    _Pickler(header, protocol=5, buffer_callback=buffers.append).dump(value)
    return b"".join(header.pieces), [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]


def _memory_of_value(column: pa.ChunkedArray) -> pa.Buffer:
    """The memory of a column of one value; a scalar of pyarrow would be a copy."""
    (chunk,) = (chunk for chunk in column.chunks if len(chunk))
    _, offsets, data = chunk.buffers()
    start, stop = np.frombuffer(offsets, np.int64)[chunk.offset :][:2]
    return data.slice(start, stop - start)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def _binary_column(value: np.ndarray) -> pa.Array:
    """A column of one value, which is its memory and no copy."""
    offsets = pa.py_buffer(np.array([0, value.size]))
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), 1, [None, offsets, pa.py_buffer(value)]
    )
