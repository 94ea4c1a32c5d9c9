"""Area and tight box of many COCO RLE strings at once, and which of them are malformed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segcore.masks.rle import MAX_CANVAS, MAX_CHARS


@dataclass(frozen=True)
class MaskMeasures:
    """What N strings describe.

    Attributes:
        valid: (N,) bool; well-formed and filling the canvas exactly. The rest is 0 where not.
        areas: (N,) int64 set pixels.
        boxes: (N, 4) int64 x, y, w, h of the set pixels, tight; zeros for an empty mask.
    """

    valid: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray


def measure_masks(
    text: np.ndarray, offsets: np.ndarray, heights: np.ndarray, widths: np.ndarray
) -> MaskMeasures:
    """Measure N strings without making a bitmap of any.

    Args:
        text: (B,) uint8, all strings one after another.
        offsets: (N + 1,) where each begins, and the end of the last; ascending.
        heights, widths: (N,) canvas of each, pixels.
    """
    n = len(offsets) - 1
    valid = (heights >= 1) & (widths >= 1) & (np.diff(offsets) > 0)
    valid &= heights.astype(np.int64) * widths <= MAX_CANVAS
    areas, boxes = np.zeros(n, np.int64), np.zeros((n, 4), np.int64)
    starts, stops = offsets[:-1].astype(np.int64), offsets[1:].astype(np.int64)
    codes = text.astype(np.int64) - 48
    valid &= _spans_without(np.flatnonzero((codes < 0) | (codes > 63)), starts, stops)
    so_far = np.flatnonzero(valid)
    valid[so_far] = (codes[stops[so_far] - 1] & 0x20) == 0  # else it ends inside a number
    number_ends = np.flatnonzero((codes & 0x20) == 0)
    number_starts = np.concatenate(([0], number_ends[:-1] + 1))[: len(number_ends)]
    too_long = number_ends[number_ends - number_starts >= MAX_CHARS]
    valid &= _spans_without(too_long, starts, stops)
    if not valid.any():
        return MaskMeasures(valid, areas, boxes)
    keep = np.flatnonzero(valid)
    codes, lengths = _gather_spans(codes, starts[keep], stops[keep])
    runs, mask = _decode_runs(codes, lengths)
    in_range = np.ones(len(keep), bool)
    in_range[mask[(runs < 0) | (runs > MAX_CANVAS)]] = False
    totals = np.bincount(mask, weights=runs, minlength=len(keep))
    fills_canvas = in_range & (totals == heights[keep].astype(np.int64) * widths[keep])
    valid[keep[~fills_canvas]] = False
    measurable = fills_canvas[mask]
    _measure_runs(runs[measurable], keep[mask[measurable]], heights, areas, boxes)
    return MaskMeasures(valid, areas, boxes)


def _spans_without(positions: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """For each span, whether none of the (ascending) positions lies in it."""
    return np.searchsorted(positions, starts) == np.searchsorted(positions, stops)


def _gather_spans(
    codes: np.ndarray, starts: np.ndarray, stops: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(codes of these spans one after another, length of each)."""
    lengths = stops - starts
    shift = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    return codes[np.arange(lengths.sum()) + shift], lengths


def _decode_runs(codes: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(all runs, the string of each) of well-formed strings; see `rle.string_to_counts`."""
    ends = np.flatnonzero((codes & 0x20) == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    chars = ends - starts + 1
    shift = 5 * (np.arange(codes.size) - np.repeat(starts, chars))
    numbers = np.add.reduceat((codes & 0x1F) << shift, starts)
    numbers -= np.where(codes[ends] & 0x10, np.int64(1) << (5 * chars), 0)
    string = np.searchsorted(np.cumsum(lengths), ends, side="right")
    first = np.searchsorted(string, np.arange(len(lengths)))
    place = np.arange(numbers.size) - first[string]  # in its string
    runs = np.where(place == 0, numbers, 0)
    # From the fourth number on, each is the difference to the one two before it.
    for selected in (place % 2 == 1, (place % 2 == 0) & (place > 0)):
        sums = np.cumsum(np.where(selected, numbers, 0))
        sum_before_string = np.where(first > 0, sums[first - 1], 0)
        runs += np.where(selected, sums - sum_before_string[string], 0)
    return runs, string


def _measure_runs(
    runs: np.ndarray, mask: np.ndarray, heights: np.ndarray, areas: np.ndarray, boxes: np.ndarray
) -> None:
    """Write the area and the box of each mask to `areas` and `boxes`.

    Args:
        runs: Those of one mask follow each other, zeros first.
        mask: Of each run.
        heights, areas, boxes: By mask.
    """
    if runs.size == 0:
        return
    first = np.flatnonzero(np.concatenate(([True], mask[1:] != mask[:-1])))
    n_runs = np.diff(np.concatenate((first, [runs.size])))
    place = np.arange(runs.size) - np.repeat(first, n_runs)  # in its mask
    sums = np.cumsum(runs)
    stop = sums - np.repeat(sums[first] - runs[first], n_runs)
    is_set = (place % 2 == 1) & (runs > 0)
    if not is_set.any():
        return
    mask, runs, stop = mask[is_set], runs[is_set], stop[is_set]
    height = heights[mask].astype(np.int64)
    left, top = np.divmod(stop - runs, height)
    right, bottom = np.divmod(stop - 1, height)
    wraps = right > left  # touches the lower edge of one column and the upper of the next
    top, bottom = np.where(wraps, 0, top), np.where(wraps, height - 1, bottom)
    first = np.flatnonzero(np.concatenate(([True], mask[1:] != mask[:-1])))
    rows = mask[first]
    areas[rows] = np.add.reduceat(runs, first)
    x, y = np.minimum.reduceat(left, first), np.minimum.reduceat(top, first)
    boxes[rows, 0], boxes[rows, 1] = x, y
    boxes[rows, 2] = np.maximum.reduceat(right, first) - x + 1
    boxes[rows, 3] = np.maximum.reduceat(bottom, first) - y + 1
