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
_HEADER_REST = 0  # what follows the number of values
for _width, _number in ((5, _WORD_BITS - 1), *((4, int(bits) - 1) for bits in _LENGTH_BITS)):
    _HEADER_REST = _HEADER_REST << _width | _number


def pack_mask(runs: np.ndarray) -> bytes:
    """Runs of a mask, row by row, zeros first -> packed RGBA of 0 and 255.

    Args:
        runs: (K,) pixels; only the first and the last may be 0.
    """
    return pack_masks(runs, np.array([runs.size]))[0]


def pack_masks(runs: np.ndarray, n_runs: np.ndarray) -> list[bytes]:
    """As `pack_mask`, for many masks at once.

    Args:
        runs: Those of all masks, one behind the other.
        n_runs: (N,) how many each mask has, at least one.
    """
    first = np.cumsum(n_runs) - n_runs
    place = np.arange(runs.size) - np.repeat(first, n_runs)
    values = np.where(place % 2 == 1, 255, 0)
    lengths = runs.astype(np.int64) * _CHANNELS
    masks = np.repeat(np.arange(n_runs.size), n_runs)
    totals = np.add.reduceat(lengths, first)
    is_there = lengths > 0
    values, lengths, masks = values[is_there], lengths[is_there], masks[is_there]
    n_blocks = -(-lengths // _LONGEST)
    blocks = np.full(int(n_blocks.sum()), _LONGEST)
    blocks[np.cumsum(n_blocks) - 1] = lengths - (n_blocks - 1) * _LONGEST
    values, masks = np.repeat(values, n_blocks), np.repeat(masks, n_blocks)
    kinds = np.searchsorted(1 << _LENGTH_BITS, blocks)  # the shortest that holds the length less 1
    widths = _LENGTH_BITS[kinds]
    numbers = (((0b100 | kinds) << widths | (blocks - 1)) << _WORD_BITS) | values
    per_mask = np.bincount(masks, minlength=n_runs.size)
    starts = np.cumsum(per_mask) - per_mask
    numbers = np.insert(numbers, starts, totals << _HEADER_BITS - 32 | _HEADER_REST)
    n_bits = np.insert(3 + widths + _WORD_BITS, starts, _HEADER_BITS)
    return _join_bits(numbers, n_bits, per_mask + 1)


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


def _join_bits(numbers: np.ndarray, n_bits: np.ndarray, counts: np.ndarray) -> list[bytes]:
    """Numbers of at most `_HEADER_BITS` bits, one behind the other, highest bit first.

    Args:
        counts: (N,) how many numbers each text has; each begins with a byte of its own.
    """
    stops = np.cumsum(counts)
    ends = np.cumsum(n_bits)
    text_bits = np.diff(ends[stops - 1], prepend=0)
    n_bytes = -(-text_bits // 8)
    first_byte = np.cumsum(n_bytes) - n_bytes
    gaps = 8 * first_byte - (np.cumsum(text_bits) - text_bits)  # bits that fill up what is before
    starts = ends - n_bits + np.repeat(gaps, counts)
    byte, shift = starts // 8, starts % 8
    # Up to 7 + 53 bits: each number within 64 bits that begin with its first byte.
    window = numbers.astype(np.uint64) << (64 - n_bits - shift).astype(np.uint64)
    joined = np.zeros(int(n_bytes.sum()) + 8)
    for place in range(8):
        part = window >> np.uint64(56 - 8 * place) & np.uint64(255)
        rows = np.flatnonzero(part)
        # No two numbers share a bit, so that adding them joins them.
        joined += np.bincount(byte[rows] + place, weights=part[rows], minlength=joined.size)
    data = joined.astype(np.uint8).tobytes()
    last_byte = (first_byte + n_bytes).tolist()
    return [data[start:stop] for start, stop in zip(first_byte.tolist(), last_byte, strict=True)]


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
