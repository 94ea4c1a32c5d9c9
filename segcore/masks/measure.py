"""Area and tight box of many COCO RLE strings at once, and which of them are malformed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segcore.masks.rle import MAX_CANVAS

_MAX_CHARS = 7  # 35 bits hold every difference of two runs of the largest canvas


@dataclass(frozen=True)
class MaskMeasures:
    """What N strings say.

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
        offsets: (N + 1,) where each begins, and the end of the last; rising.
        heights, widths: (N,) canvas of each, pixels.
    """
    n = len(offsets) - 1
    valid = (heights >= 1) & (widths >= 1) & (np.diff(offsets) > 0)
    valid &= heights.astype(np.int64) * widths <= MAX_CANVAS
    areas, boxes = np.zeros(n, np.int64), np.zeros((n, 4), np.int64)
    starts, stops = offsets[:-1].astype(np.int64), offsets[1:].astype(np.int64)
    codes = text.astype(np.int64) - 48
    valid &= _none_inside((codes < 0) | (codes > 63), starts, stops)
    last = np.flatnonzero(valid)
    valid[last] = (codes[stops[last] - 1] & 0x20) == 0  # else it ends inside a number
    ends = np.flatnonzero((codes & 0x20) == 0)
    begins = np.concatenate(([0], ends[:-1] + 1))[: len(ends)]
    valid &= _none_inside_at(ends[ends - begins >= _MAX_CHARS], starts, stops)
    if not valid.any():
        return MaskMeasures(valid, areas, boxes)
    keep = np.flatnonzero(valid)
    codes, lengths = _picked(codes, starts[keep], stops[keep])
    runs, of = _runs(codes, lengths)
    sound = np.ones(len(keep), bool)
    sound[of[(runs < 0) | (runs > MAX_CANVAS)]] = False
    totals = np.bincount(of, weights=runs, minlength=len(keep))
    sound &= totals == heights[keep].astype(np.int64) * widths[keep]
    valid[keep[~sound]] = False
    rows = sound[of]
    _fill(runs[rows], keep[of[rows]], heights, areas, boxes)
    return MaskMeasures(valid, areas, boxes)


def _none_inside(bad: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    return _none_inside_at(np.flatnonzero(bad), starts, stops)


def _none_inside_at(places: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """For each span, whether none of the (sorted) places lies in it."""
    return np.searchsorted(places, starts) == np.searchsorted(places, stops)


def _picked(
    codes: np.ndarray, starts: np.ndarray, stops: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(codes of these spans one after another, length of each)."""
    lengths = stops - starts
    shift = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    return codes[np.arange(lengths.sum()) + shift], lengths


def _runs(codes: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(all runs, the string each is of) of well-formed strings; see `rle.string_to_counts`."""
    ends = np.flatnonzero((codes & 0x20) == 0)
    begins = np.concatenate(([0], ends[:-1] + 1))
    chars = ends - begins + 1
    shift = 5 * (np.arange(codes.size) - np.repeat(begins, chars))
    numbers = np.add.reduceat((codes & 0x1F) << shift, begins)
    numbers -= np.where(codes[ends] & 0x10, np.int64(1) << (5 * chars), 0)
    of = np.searchsorted(np.cumsum(lengths), ends, side="right")
    first = np.searchsorted(of, np.arange(len(lengths)))
    place = np.arange(numbers.size) - first[of]
    runs = np.where(place == 0, numbers, 0)
    # from the fourth number on, each is the difference to the one two before it
    for chosen in (place % 2 == 1, (place % 2 == 0) & (place > 0)):
        summed = np.cumsum(np.where(chosen, numbers, 0))
        before = np.where(first > 0, summed[first - 1], 0)
        runs += np.where(chosen, summed - before[of], 0)
    return runs, of


def _fill(
    runs: np.ndarray, of: np.ndarray, heights: np.ndarray, areas: np.ndarray, boxes: np.ndarray
) -> None:
    """Write area and box of the strings `of`; runs of one string stand together, zeros first."""
    if runs.size == 0:
        return
    head = np.flatnonzero(np.concatenate(([True], of[1:] != of[:-1])))
    counts = np.diff(np.concatenate((head, [runs.size])))
    place = np.arange(runs.size) - np.repeat(head, counts)
    summed = np.cumsum(runs)
    stop = summed - np.repeat(summed[head] - runs[head], counts)
    ones = (place % 2 == 1) & (runs > 0)
    if not ones.any():
        return
    of, runs, stop = of[ones], runs[ones], stop[ones]
    height = heights[of].astype(np.int64)
    left, top = np.divmod(stop - runs, height)
    right, bottom = np.divmod(stop - 1, height)
    several = right > left  # touches the lower edge of one column and the upper of the next
    top, bottom = np.where(several, 0, top), np.where(several, height - 1, bottom)
    head = np.flatnonzero(np.concatenate(([True], of[1:] != of[:-1])))
    rows = of[head]
    areas[rows] = np.add.reduceat(runs, head)
    x, y = np.minimum.reduceat(left, head), np.minimum.reduceat(top, head)
    boxes[rows, 0], boxes[rows, 1] = x, y
    boxes[rows, 2] = np.maximum.reduceat(right, head) - x + 1
    boxes[rows, 3] = np.maximum.reduceat(bottom, head) - y + 1
