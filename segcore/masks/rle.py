"""COCO run-length encoding and its compressed strings, vectorised.

Format (Lin et al., COCO API, `maskApi.c`): runs of a column-major bitmap, zeros first; each run
after the third is stored as its difference to the run two before; each number is written as
little-endian groups of five bits with a continuation bit and sign extension, one printable
character per group.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

MAX_CANVAS = 2**32 - 1  # pixels; pycocotools holds runs as uint32
MAX_CHARS = 7  # of one number: 35 bits hold every difference of two runs of such a canvas


def encode(mask: np.ndarray) -> bytes:
    """Bitmap -> compressed RLE string.

    Args:
        mask: (H, W) bool or integer; every value other than 0 is set.

    Raises:
        ValueError: `mask` is not two-dimensional, or has no pixel.
    """
    if mask.ndim != 2 or mask.size == 0:
        raise ValueError(f"a mask has shape (H, W) with at least one pixel, got {mask.shape}")
    flat = (mask != 0).ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat[0]:
        edges = np.concatenate(([0], edges))
    return counts_to_string(np.diff(edges, prepend=0, append=flat.size))


def decode(counts: bytes | str, height: int, width: int) -> np.ndarray:
    """Compressed RLE string -> (height, width) uint8 bitmap of 0 and 1, Fortran-ordered.

    Raises:
        ValueError: The string is malformed or does not fill the canvas exactly.
    """
    runs = _checked_runs(counts, height, width)
    values = np.zeros(runs.size, np.uint8)
    values[1::2] = 1
    return np.repeat(values, runs).reshape((height, width), order="F")


def decode_columns(
    counts: bytes | str, height: int, width: int, left: int, right: int
) -> np.ndarray:
    """Columns [left, right) of what `decode` gives, without making the others.

    Raises:
        ValueError: The string is malformed, does not fill the canvas exactly, or the columns are
            not inside it.
    """
    if not 0 <= left <= right <= width:
        raise ValueError(f"columns {left}..{right} are not inside a canvas of {width}")
    ends = np.clip(np.cumsum(_checked_runs(counts, height, width)), left * height, right * height)
    values = np.zeros(ends.size, np.uint8)
    values[1::2] = 1
    flat = np.repeat(values, np.diff(ends, prepend=left * height))
    return flat.reshape((height, right - left), order="F")


def area(counts: bytes | str) -> int:
    """Number of set pixels of a compressed RLE string."""
    return int(string_to_counts(counts)[1::2].sum())


def bbox(counts: bytes | str, height: int, width: int) -> tuple[int, int, int, int]:
    """Tight box x, y, w, h of the set pixels; (0, 0, 0, 0) for an empty mask."""
    runs = _checked_runs(counts, height, width)
    ends = np.cumsum(runs)
    first, last = (ends - runs)[1::2], ends[1::2] - 1
    not_empty = last >= first
    if not not_empty.any():
        return 0, 0, 0, 0
    x0, y0 = np.divmod(first[not_empty], height)
    x1, y1 = np.divmod(last[not_empty], height)
    left, right = int(x0[0]), int(x1[-1])
    if (x0 != x1).any():  # a run that continues in the next column touches both borders
        return left, 0, right - left + 1, height
    top, bottom = int(y0.min()), int(y1.max())
    return left, top, right - left + 1, bottom - top + 1


def counts_to_string(counts: np.ndarray) -> bytes:
    """(K,) run lengths, zeros first -> compressed RLE string.

    Raises:
        ValueError: A run is negative or longer than the format holds.
    """
    runs = np.asarray(counts, dtype=np.int64)
    if runs.size and (runs.min() < 0 or runs.max() > MAX_CANVAS):
        raise ValueError(f"run lengths lie in [0, {MAX_CANVAS}]")
    return counts_to_strings(runs, np.array([runs.size]))[0]


def counts_to_strings(runs: np.ndarray, lengths: np.ndarray) -> list[bytes]:
    """Run lengths of many masks -> their compressed RLE strings.

    Args:
        runs: (R,) integer runs of all masks, one after another; each in [0, MAX_CANVAS].
        lengths: (K,) how many of these runs each mask has.
    """
    starts = np.cumsum(lengths) - lengths
    place = np.arange(runs.size) - np.repeat(starts, lengths)  # in its mask
    numbers = runs.astype(np.int64)
    numbers[2:] -= np.where(place[2:] > 2, runs[:-2], 0)
    # k groups of five bits hold [-2**(5k-1), 2**(5k-1))
    magnitude = np.where(numbers < 0, ~numbers, numbers)
    chars = np.ones(numbers.size, np.int64)
    for k in range(1, MAX_CHARS):
        needs_more = magnitude >= 1 << (5 * k - 1)
        if not needs_more.any():
            break
        chars += needs_more
    group = np.arange(chars.max(initial=1))
    digits = (numbers[:, None] >> (5 * group)) & 0x1F
    digits += np.where(group < chars[:, None] - 1, 0x20 + 48, 48)
    text = digits[group < chars[:, None]].astype(np.uint8).tobytes()
    ends = np.concatenate(([0], np.cumsum(chars)))
    borders = ends[np.concatenate((starts, [runs.size]))].tolist()
    return [text[start:end] for start, end in pairwise(borders)]


def string_to_counts(counts: bytes | str) -> np.ndarray:
    """Compressed RLE string -> (K,) int64 run lengths, zeros first.

    Raises:
        ValueError: `counts_to_string` cannot have written this string.
    """
    try:
        raw = counts.encode("ascii") if isinstance(counts, str) else bytes(counts)
    except UnicodeEncodeError:
        raise ValueError("RLE string has characters outside ASCII") from None
    codes = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if codes.size == 0:
        return np.zeros(0, np.int64)
    if codes.min() < 0 or codes.max() > 63:
        where = int(np.flatnonzero((codes < 0) | (codes > 63))[0])
        raise ValueError(f"RLE string has byte {raw[where]} at {where}, outside '0'..'o'")
    ends = np.flatnonzero((codes & 0x20) == 0)
    if ends.size == 0 or ends[-1] != codes.size - 1:
        raise ValueError("RLE string ends inside a number")
    starts = np.concatenate(([0], ends[:-1] + 1))
    chars = ends - starts + 1
    if chars.max() > MAX_CHARS:
        raise ValueError(f"RLE string has a number of {chars.max()} characters, over {MAX_CHARS}")
    shift = 5 * (np.arange(codes.size) - np.repeat(starts, chars))
    runs = np.add.reduceat((codes & 0x1F) << shift, starts)
    runs -= np.where(codes[ends] & 0x10, np.int64(1) << (5 * chars), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    if runs.min() < 0 or runs.max() > MAX_CANVAS:
        raise ValueError(f"RLE string has a run outside [0, {MAX_CANVAS}]")
    return runs


def _checked_runs(counts: bytes | str, height: int, width: int) -> np.ndarray:
    """Runs that fill the canvas exactly; ValueError otherwise."""
    if height < 1 or width < 1 or height * width > MAX_CANVAS:
        raise ValueError(f"canvas {height}x{width} is outside 1..{MAX_CANVAS} pixels")
    runs = string_to_counts(counts)
    total = int(runs.sum())
    if total != height * width:
        raise ValueError(f"RLE runs sum to {total}, but the canvas {height}x{width} differs")
    return runs
