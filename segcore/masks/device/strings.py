"""Edges of masks -> COCO strings on a torch device; format of `segcore.masks.rle`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from segcore.masks.device.edges import NO_KEY, DeviceCrops
from segcore.masks.rle import MAX_CHARS


class DeviceStrings(NamedTuple):
    """Strings of M masks, on the device.

    Attributes:
        chars: (B,) uint8, the strings in order; there may be gaps between them.
        starts: (M,) int64 places of their first characters.
        lengths: (M,) int64; 0 for a mask without a pixel.
        areas: (M,) int64 set pixels.
    """

    chars: Tensor
    starts: Tensor
    lengths: Tensor
    areas: Tensor


class _Numbers(NamedTuple):
    """Numbers to write: `value` as `length` characters (0: not at all) from `at` on."""

    value: Tensor
    length: Tensor
    at: Tensor


def empty_strings(n_masks: int, device: torch.device) -> DeviceStrings:
    """Of masks without a pixel."""
    zeros = torch.zeros(n_masks, dtype=torch.int64, device=device)
    return DeviceStrings(torch.zeros(0, dtype=torch.uint8, device=device), *[zeros] * 3)


def max_chars_of_numbers(pixels: int) -> int:
    """Most characters of a number in the string of a mask with so many pixels."""
    return 1 + sum(pixels >= 1 << (5 * k - 1) for k in range(1, MAX_CHARS))


def write_strings(keys: Tensor, crops: DeviceCrops, max_pixels: int) -> DeviceStrings:
    """Strings of the masks that have these edges. Waits once, for their total length.

    Args:
        keys: (E,) as `segcore.masks.device.edges.find_edges` returns them; E at least 1.
        crops: The masks.
        max_pixels: Of the largest canvas.
    """
    key_end = crops.key_at + crops.pixels + 1
    begin, end = torch.searchsorted(keys, crops.key_at), torch.searchsorted(keys, key_end)
    crop = torch.searchsorted(key_end, keys, right=True).clamp(max=len(key_end) - 1)
    is_edge = keys != NO_KEY
    position = torch.where(is_edge, keys - crops.key_at[crop], 0)
    index = torch.arange(len(keys), device=keys.device) - begin[crop]  # of the edge in its mask
    runs = position - torch.where(index > 0, _shift(position, 1), 0)
    value = runs - torch.where(index > 2, _shift(runs, 2), 0)
    length = torch.where(is_edge, _count_chars(value), 0)

    # Zeros up to the end of the canvas follow where the last edge is not there.
    last = position[(end - 1).clamp(min=0)]
    tail = crops.pixels - last
    tail_value = tail - torch.where(end - begin > 2, runs[(end - 2).clamp(min=0)], 0)
    has_tail = (end > begin) & (tail > 0)
    tail_length = torch.where(has_tail, _count_chars(tail_value), 0)

    char_ends = _prefix_sums(length)
    before_tail = char_ends[end] - char_ends[begin]
    lengths = before_tail + tail_length
    start = lengths.cumsum(0) - lengths
    at = (start - char_ends[begin])[crop] + char_ends[:-1]
    signed = _prefix_sums(torch.where(index & 1 == 1, position, -position))
    areas = signed[end] - signed[begin]
    numbers = (_Numbers(value, length, at), _Numbers(tail_value, tail_length, start + before_tail))
    total = int(lengths.sum())
    chars = _write_chars(_Numbers(*map(torch.cat, zip(*numbers, strict=True))), total, max_pixels)
    return DeviceStrings(chars, start, lengths, areas)


def _write_chars(numbers: _Numbers, total: int, max_pixels: int) -> Tensor:
    """(total,) uint8: groups of five bits, each with a bit that says whether more follow."""
    chars = torch.zeros(total + 1, dtype=torch.uint8, device=numbers.at.device)
    for group in range(max_chars_of_numbers(max_pixels)):
        digit = (numbers.value >> (5 * group)) & 0x1F
        digit += torch.where(group < numbers.length - 1, 0x20 + 48, 48)
        has_group = group < numbers.length
        # Numbers without this group write the same zero to the extra place at the end.
        place = torch.where(has_group, numbers.at + group, total)
        chars.scatter_(0, place, torch.where(has_group, digit, 0).to(torch.uint8))
    return chars[:total]


def _count_chars(values: Tensor) -> Tensor:
    """Characters of each number: k groups of five bits hold [-2**(5k-1), 2**(5k-1))."""
    magnitude = torch.where(values < 0, ~values, values)
    lengths = torch.ones_like(values)
    for k in range(1, MAX_CHARS):
        lengths += magnitude >= 1 << (5 * k - 1)
    return lengths


def _shift(values: Tensor, by: int) -> Tensor:
    """For each entry the one `by` places before it; 0 where there is none."""
    out = torch.zeros_like(values)
    out[by:] = values[:-by]
    return out


def _prefix_sums(values: Tensor) -> Tensor:
    """(n + 1,) sums of the first 0..n values."""
    out = torch.zeros(len(values) + 1, dtype=torch.int64, device=values.device)
    torch.cumsum(values, 0, out=out[1:])
    return out
