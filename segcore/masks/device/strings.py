"""Edges of masks -> COCO strings on a torch device; format of `segcore.masks.rle`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from segcore.masks.device.edges import NOTHING, Crops

_MAX_CHARS = 7  # of one number, as in `segcore.masks.rle`


class Text(NamedTuple):
    """Strings of M masks, on the device.

    Attributes:
        chars: (B,) uint8, the strings one after another.
        lengths: (M,) int64; 0 for a mask without a pixel.
        areas: (M,) int64 set pixels.
    """

    chars: Tensor
    lengths: Tensor
    areas: Tensor


class _Numbers(NamedTuple):
    """What is written: `value` in `length` characters (0: not at all) from `at` on of its mask."""

    value: Tensor
    length: Tensor
    at: Tensor


def no_text(masks: int, device: torch.device) -> Text:
    """Of masks that are all empty."""
    zeros = torch.zeros(masks, dtype=torch.int64, device=device)
    return Text(torch.zeros(0, dtype=torch.uint8, device=device), zeros, zeros)


def write(keys: Tensor, crops: Crops, most_pixels: int) -> Text:
    """Strings of the masks that have these edges. Waits once, for their total length.

    Args:
        keys: (E,) as `segcore.masks.device.edges.edges` gives them; E at least 1.
        crops: The masks.
        most_pixels: Of the largest canvas.
    """
    after = crops.key_at + crops.pixels + 1
    begin, end = torch.searchsorted(keys, crops.key_at), torch.searchsorted(keys, after)
    crop = torch.searchsorted(after, keys, right=True).clamp(max=len(after) - 1)
    real = keys != NOTHING
    place = torch.where(real, keys - crops.key_at[crop], 0)
    index = torch.arange(len(keys), device=keys.device) - begin[crop]
    runs = place - torch.where(index > 0, _shifted(place, 1), 0)
    value = runs - torch.where(index > 2, _shifted(runs, 2), 0)
    length = torch.where(real, _lengths(value), 0)

    # Zeros up to the end of the canvas follow where the last edge is not there.
    last = place[(end - 1).clamp(min=0)]
    tail = crops.pixels - last
    tail_value = tail - torch.where(end - begin > 2, runs[(end - 2).clamp(min=0)], 0)
    open_end = (end > begin) & (tail > 0)
    tail_length = torch.where(open_end, _lengths(tail_value), 0)

    ends = _sums(length)
    before = ends[end] - ends[begin]
    lengths = before + tail_length
    start = lengths.cumsum(0) - lengths
    at = (start - ends[begin])[crop] + ends[:-1]
    signed = _sums(torch.where(index & 1 == 1, place, -place))
    areas = signed[end] - signed[begin]
    numbers = (_Numbers(value, length, at), _Numbers(tail_value, tail_length, start + before))
    total = int(lengths.sum())
    chars = _digits(_Numbers(*map(torch.cat, zip(*numbers, strict=True))), total, most_pixels)
    return Text(chars, lengths, areas)


def _digits(numbers: _Numbers, total: int, most_pixels: int) -> Tensor:
    """(total,) uint8: groups of five bits, each with a bit that says whether more follow."""
    chars = torch.zeros(total + 1, dtype=torch.uint8, device=numbers.at.device)
    most = 1 + sum(most_pixels >= 1 << (5 * k - 1) for k in range(1, _MAX_CHARS))
    for group in range(most):
        digit = (numbers.value >> (5 * group)) & 0x1F
        digit += torch.where(group < numbers.length - 1, 0x20 + 48, 48)
        here = group < numbers.length
        # Numbers that are over write the same zero to the place behind the last.
        place = torch.where(here, numbers.at + group, total)
        chars.scatter_(0, place, torch.where(here, digit, 0).to(torch.uint8))
    return chars[:total]


def _lengths(values: Tensor) -> Tensor:
    """Characters of each number: k groups of five bits hold [-2**(5k-1), 2**(5k-1))."""
    magnitude = torch.where(values < 0, ~values, values)
    lengths = torch.ones_like(values)
    for k in range(1, _MAX_CHARS):
        lengths += magnitude >= 1 << (5 * k - 1)
    return lengths


def _shifted(values: Tensor, by: int) -> Tensor:
    """Each entry's predecessor `by` places before; 0 where there is none."""
    out = torch.zeros_like(values)
    out[by:] = values[:-by]
    return out


def _sums(values: Tensor) -> Tensor:
    """(n + 1,) sums of the first 0..n values."""
    out = torch.zeros(len(values) + 1, dtype=torch.int64, device=values.device)
    torch.cumsum(values, 0, out=out[1:])
    return out
