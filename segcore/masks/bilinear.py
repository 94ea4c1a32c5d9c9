"""Bilinear resampling (align_corners=False) to the last bit of torch's fp32 CPU kernel.

Formula, found by comparison with `torch.nn.functional.interpolate` on contiguous NCHW tensors
(AVX2 and AVX-512 builds; `fma` rounds once):

    scale  = in / out                                (fp32)
    source = max(fma(scale, dst + 0.5, -0.5), 0)
    i0, l1 = int(source), source - int(source);  i1 = min(i0 + 1, in - 1);  l0 = 1 - l1
    row    = fma(v[i0], l0, v[i1] * l1)              along x first, then the same along y

torch itself uses another order of summation for three channels, for outputs with H + W <= 128 and
on CPUs without AVX2. The orders differ in the last bit: only pixels whose logit is 0 within
rounding can differ. This module has one formula for all shapes, so that a mask depends on its
logits alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class ResampledAxis:
    """How each of the `size_out` pixels of one axis is mixed from two of its `size_in` samples.

    Attributes:
        low, high: (size_out,) int64 indices of the two samples; ascending.
        weight_low, weight_high: (size_out,) float32.
        first_pixel: (size_in + 1,) int64; pixels first_pixel[i]..first_pixel[i + 1] have
            `low == i`.
    """

    size_in: int
    size_out: int
    low: np.ndarray
    high: np.ndarray
    weight_low: np.ndarray
    weight_high: np.ndarray
    first_pixel: np.ndarray


def resample_axis(size_in: int, size_out: int) -> ResampledAxis:
    """Weights for one axis; read-only, and cached because images of an archive share sizes."""
    if size_out <= _MAX_CACHED_PIXELS:
        return _resample_axis_cached(size_in, size_out)
    return _resample_axis(size_in, size_out)


def _resample_axis(size_in: int, size_out: int) -> ResampledAxis:
    if size_in == size_out:
        low = high = np.arange(size_out)
        weight_high = np.zeros(size_out, np.float32)
    else:
        scale = np.float64(np.float32(size_in) / np.float32(size_out))
        centre = (np.arange(size_out, dtype=np.float32) + np.float32(0.5)).astype(np.float64)
        # float64 holds the product and, where the result is positive, the sum: one rounding
        source = np.maximum((scale * centre - 0.5).astype(np.float32), np.float32(0))
        low = np.minimum(source.astype(np.int64), size_in - 1)
        high = np.minimum(low + 1, size_in - 1)
        weight_high = np.clip(source - low.astype(np.float32), np.float32(0), np.float32(1))
    weight_low = np.float32(1) - weight_high
    first_pixel = np.searchsorted(low, np.arange(size_in + 1))
    for array in (low, high, weight_low, weight_high, first_pixel):
        array.setflags(write=False)
    return ResampledAxis(size_in, size_out, low, high, weight_low, weight_high, first_pixel)


_MAX_CACHED_PIXELS = 65_535  # longer sides are rare, and their tables should not stay in memory
_resample_axis_cached = lru_cache(maxsize=64)(_resample_axis)


def mix(low: np.ndarray, w_low: np.ndarray, high: np.ndarray, w_high: np.ndarray) -> np.ndarray:
    """fp32 fma(low, w_low, high * w_high), correctly rounded.

    The product is exact in float64. Rounding the sum to odd there makes the second rounding, to
    float32, the only one that counts (Boldo and Melquiond, 2008).
    """
    product = low.astype(np.float64) * w_low
    addend = (high * w_high).astype(np.float64)
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    bits = total.view(np.int64)
    step = np.where((error > 0) == (total > 0), 1, -1)
    odd = np.where((error != 0) & (bits & 1 == 0), bits + step, bits)
    return odd.view(np.float64).astype(np.float32)


def mix_is_positive(
    low: np.ndarray, w_low: np.ndarray, high: np.ndarray, w_high: np.ndarray
) -> np.ndarray:
    """Whether `mix(...)` > 0, without rounding it: the float64 sum has the right sign."""
    total = np.multiply(low, w_low, dtype=np.float64)
    total += high * w_high
    return np.asarray(total > 0)
