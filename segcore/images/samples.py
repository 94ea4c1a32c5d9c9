"""Samples of more than 8 bits as 8 bits."""

from __future__ import annotations

from typing import Literal

import numpy as np

from segcore.images.pixels import bands

WideRange = Literal["high_byte", "min_max", "percentile"] | tuple[int, int]

_NARROW_PART = 1 / 8  # of the range
_PERCENTILES = (0.1, 99.9)


def to_8_bits(samples: np.ndarray, bits: int, wide_range: WideRange) -> tuple[np.ndarray, bool]:
    """Samples of 9 to 16 bits as 8 bits, and whether they use only a small part of their range.

    Args:
        samples: (H, W) or (H, W, C) uint16 in any byte order, of at most `bits` bits each; of
            channels without colour only where they share the range.
        wide_range: See `DecodeOptions`.

    Returns:
        uint8 of the same shape, and whether 99.8 % of the samples lie within an eighth of the
        range, but are not all the same.
    """
    histogram = _histogram(samples)
    low, high = _percentile_range(histogram)
    is_narrow = 0 < high - low < _NARROW_PART * (1 << bits)
    if wide_range == "min_max":
        used = np.flatnonzero(histogram)
        low, high = int(used[0]), int(used[-1])
    elif not isinstance(wide_range, str):
        low, high = wide_range
    if wide_range == "high_byte":
        table = np.minimum(np.arange(1 << 16) >> (bits - 8), 255).astype(np.uint8)
    else:
        table = _linear_table(low, high)
    eight_bits = np.empty(samples.shape, np.uint8)
    for top, bottom in bands(*samples.shape[:2]):
        eight_bits[top:bottom] = table[samples[top:bottom]]
    return eight_bits, is_narrow


def is_narrow_8_bits(high_bytes: np.ndarray) -> bool:
    """Whether samples of which only the high bytes are known use a small part of their range."""
    histogram = np.zeros(256, np.int64)
    for top, bottom in bands(*high_bytes.shape[:2]):
        histogram += np.bincount(high_bytes[top:bottom].ravel(), minlength=256)
    low, high = _percentile_range(histogram)
    return 0 < high - low < _NARROW_PART * 256


def _histogram(samples: np.ndarray) -> np.ndarray:
    histogram = np.zeros(1 << 16, np.int64)
    for top, bottom in bands(*samples.shape[:2]):
        histogram += np.bincount(samples[top:bottom].ravel(), minlength=1 << 16)
    return histogram


def _percentile_range(histogram: np.ndarray) -> tuple[int, int]:
    """The samples at the two percentiles: the least that as large a part does not exceed."""
    cumulated = np.cumsum(histogram)
    ranks = (np.array(_PERCENTILES) / 100 * cumulated[-1]).astype(np.int64)
    low, high = np.searchsorted(cumulated, np.maximum(ranks, 1))
    return int(low), int(high)


def _linear_table(low: int, high: int) -> np.ndarray:
    """Sample -> 8 bits, `low` to 0 and `high` to 255, rounded; all 0 where both are the same."""
    width = max(high - low, 1)
    above_low = np.clip(np.arange(1 << 16) - low, 0, width if high > low else 0)
    return ((above_low * 510 + width) // (2 * width)).astype(np.uint8)
