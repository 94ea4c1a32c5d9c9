"""The run-length packing of Label Studio's brush: rle-pack of thi.ng/umbrella, on RGBA pixels.

A header of 32 bits with the number of values, 5 bits with their width less one, and four times 4
bits with the widths, less one, of the four kinds of lengths. Then blocks: one bit (1: a value that
is repeated, 0: values one by one), two bits with the kind of length, the length less one, and the
value or values. All numbers begin with their highest bit; the end is filled up to a byte.
"""

from __future__ import annotations

import numpy as np

_WORD_BITS = 8
_LENGTH_BITS = np.array([3, 4, 8, 16])
_LONGEST = 1 << 16
_CHANNELS = 4
_HEADER_BITS = 32 + 5 + 4 * 4


def pack_mask(runs: np.ndarray) -> bytes:
    """Runs of a mask, row by row, zeros first -> packed RGBA of 0 and 255.

    Args:
        runs: (K,) pixels; only the first may be 0.
    """
    lengths = runs.astype(np.int64) * _CHANNELS
    values = np.where(np.arange(runs.size) % 2 == 1, 255, 0)
    values, lengths = values[lengths > 0], lengths[lengths > 0]
    n_blocks = -(-lengths // _LONGEST)
    values = np.repeat(values, n_blocks)
    blocks = np.full(values.size, _LONGEST)
    last = np.cumsum(n_blocks) - 1
    blocks[last] = lengths - (n_blocks - 1) * _LONGEST
    kinds = np.searchsorted(1 << _LENGTH_BITS, blocks)  # the shortest that holds the length less 1
    widths = _LENGTH_BITS[kinds]
    numbers = (((0b100 | kinds) << widths | (blocks - 1)) << _WORD_BITS) | values
    n_bits = 3 + widths + _WORD_BITS
    header = int(lengths.sum())
    for width, number in ((5, _WORD_BITS - 1), *((4, int(bits) - 1) for bits in _LENGTH_BITS)):
        header = header << width | number
    return _join_bits(np.concatenate(([header], numbers)), np.concatenate(([_HEADER_BITS], n_bits)))


def unpack_mask(data: bytes, max_values: int) -> np.ndarray:
    """Packed RGBA -> the alpha channel as (N,) uint8, N pixels.

    Raises:
        ValueError: It is no such packing, ends too early, or has over `max_values` values.
    """
    bits = _Bits(data)
    n_values, width = bits.take(32), bits.take(5) + 1
    lengths = [bits.take(4) + 1 for _ in range(4)]
    if n_values > max_values:
        raise ValueError(f"a brush mask of {n_values:,} values, more than its image has")
    values = np.zeros(n_values, np.uint8)
    place = 0
    while place < n_values:
        is_run = bits.take(1)
        length = bits.take(lengths[bits.take(2)]) + 1
        stop = min(place + length, n_values)
        if is_run:
            values[place:stop] = bits.take(width) & 0xFF
        else:
            values[place:stop] = [bits.take(width) & 0xFF for _ in range(stop - place)]
        place = stop
    if n_values % _CHANNELS:
        raise ValueError(f"a brush mask of {n_values} values, which are no RGBA pixels")
    return values[_CHANNELS - 1 :: _CHANNELS]


def _join_bits(numbers: np.ndarray, n_bits: np.ndarray) -> bytes:
    """Numbers of different widths, one behind the other, highest bit first."""
    ends = np.cumsum(n_bits)
    place = np.arange(int(ends[-1])) - np.repeat(ends - n_bits, n_bits)
    shift = np.repeat(n_bits, n_bits) - 1 - place
    bits = np.repeat(numbers, n_bits) >> shift & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


class _Bits:
    """Reads numbers from bytes, highest bit first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def take(self, n_bits: int) -> int:
        stop = self._place + n_bits
        if stop > 8 * len(self._data):
            raise ValueError("a brush mask that ends too early")
        first, last = self._place // 8, -(-stop // 8)
        number = int.from_bytes(self._data[first:last], "big") >> (8 * last - stop)
        self._place = stop
        return number & ((1 << n_bits) - 1)
