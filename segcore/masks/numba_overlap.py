"""Pixels that pairs of masks have in common, compiled by numba; see `segcore.masks.overlap`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from segcore.masks.numba_jit import jit

_TEXT = types.Array(types.uint8, 1, "C", readonly=True)
_POSITIONS = types.Tuple([types.int64[::1], types.int64[::1]])


@jit(_POSITIONS(_TEXT, types.int64[::1]))
def _decode(text, offsets):  # type: ignore[no-untyped-def]
    """Begin and end of each run of set pixels, one after another; and where each mask's begin.

    Returns:
        (2 R,) int64 positions, and (N + 1,) int64 offsets into them.
    """
    n = offsets.size - 1
    n_numbers = 0
    for at in range(offsets[0], offsets[n]):
        n_numbers += not (np.int64(text[at]) - 48) & 0x20
    positions = np.empty(n_numbers + n, np.int64)
    starts = np.zeros(n + 1, np.int64)
    count = 0
    for row in range(n):
        number: Any = 0
        n_chars = 0
        before: Any = 0  # the last run, and
        before_that: Any = 0  # the one before it
        position: Any = 0
        place = 0
        for at in range(offsets[row], offsets[row + 1]):
            code: Any = np.int64(text[at]) - 48
            number |= (code & 0x1F) << (5 * n_chars)
            n_chars += 1
            if code & 0x20:
                continue
            if code & 0x10:
                number -= 1 << (5 * n_chars)
            run = number + before_that if place > 2 else number
            if place & 1 and run > 0:
                positions[count], positions[count + 1] = position, position + run
                count += 2
            before_that, before = before, run
            position, place, number, n_chars = position + run, place + 1, 0, 0
        starts[row + 1] = count
    return positions[:count], starts


@jit(
    types.void(
        _TEXT,
        types.int64[::1],
        _TEXT,
        types.int64[::1],
        types.int64[::1],
        types.int64[::1],
        types.int64[::1],
    )
)
def intersect(text, offsets, other_text, other_offsets, rows, columns, common):  # type: ignore[no-untyped-def]
    """`segcore.masks.overlap.intersect_masks` of valid strings.

    Args:
        text, offsets: (B,) uint8 and (N + 1,) int64.
        other_text, other_offsets: The same of the second masks.
        rows, columns: (P,) int64 places in the first and the second masks.
        common: (P,) int64, written to.
    """
    runs, starts = _decode(text, offsets)
    other_runs, other_starts = _decode(other_text, other_offsets)
    for pair in range(rows.size):
        i, stop = starts[rows[pair]], starts[rows[pair] + 1]
        j, other_stop = other_starts[columns[pair]], other_starts[columns[pair] + 1]
        pixels = 0
        while i < stop and j < other_stop:
            begin = max(runs[i], other_runs[j])
            end = min(runs[i + 1], other_runs[j + 1])
            if end > begin:
                pixels += end - begin
            if runs[i + 1] < other_runs[j + 1]:
                i += 2
            else:
                j += 2
        common[pair] = pixels
