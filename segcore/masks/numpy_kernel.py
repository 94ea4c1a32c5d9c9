"""Crops of mask logits -> RLE strings in NumPy; definition and method: `segcore.masks.from_logits`.

Crops are cut into vertical strips, strips of similar shape are padded to one shape and computed
together, so that the number of NumPy calls does not grow with the number of masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from segcore.errors import NotFinite
from segcore.masks.bilinear import ResampledAxis, mix, mix_is_positive, resample_axis
from segcore.masks.crops import Crops, Grid
from segcore.masks.edges import EncodedMasks, encode_edges
from segcore.masks.window import NOT_FINITE, Window

_GROUP_SAMPLES = 1 << 17  # interpolated at once: a few MB, so that they stay in cache
_BATCH_SAMPLES = 1 << 20  # whose edges are held at once: at worst some tens of MB
_TOLERATED_PADDING = 1 << 12  # samples; computing them costs less than another round of calls


def encode_crops(logits: np.ndarray, crops: Crops, grid: Grid, window: Window) -> EncodedMasks:
    """Strings of the crops that have a pixel.

    Args:
        logits: (N, h, w) float32.
        crops: On the result.
        grid: Rows and columns of the result, from those of the window.
        window: Part of the logits that shows the image.

    Raises:
        NotFinite: A logit is not.
    """
    counts: list[bytes] = []
    areas, keep = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    pixels = grid.rows.size_out * grid.columns.size_out
    for batch in _split_into_batches(crops):
        edges = [_find_edges(logits, group, grid, window) for group in _group_strips(batch)]
        encoded = encode_edges(np.concatenate(edges), pixels)
        counts += encoded.counts
        areas.append(encoded.areas)
        keep.append(encoded.keep)
    return EncodedMasks(counts, np.concatenate(areas), np.concatenate(keep))


def _split_into_batches(crops: Crops) -> Iterator[Crops]:
    """Consecutive crops whose edges, at worst one for each sample, fit in `_BATCH_SAMPLES`."""
    ends = np.cumsum(crops.samples)
    start = 0
    while start < ends.size:
        max_end = (ends[start - 1] if start else 0) + _BATCH_SAMPLES
        stop = max(start + 1, int(np.searchsorted(ends, max_end, side="right")))
        yield crops.take(slice(start, stop))
        start = stop


def _group_strips(crops: Crops) -> Iterator[Crops]:
    """Strips of similar shape, at most `_GROUP_SAMPLES` when padded to their largest."""
    height = crops.r1 - crops.r0 + 2
    strip_width = np.maximum(_GROUP_SAMPLES // height, 1)
    n_strips = -(-(crops.x1 - crops.x0) // strip_width)
    crop = np.repeat(np.arange(n_strips.size), n_strips)
    strip_in_crop = np.arange(crop.size) - np.repeat(np.cumsum(n_strips) - n_strips, n_strips)
    strips = crops.take(crop)
    x0 = strips.x0 + strip_width[crop] * strip_in_crop
    strips = replace(strips, x0=x0, x1=np.minimum(strips.x1, x0 + strip_width[crop]))
    strips = strips.take(np.argsort(strips.samples, kind="stable"))
    widths, heights = (strips.x1 - strips.x0).tolist(), (strips.r1 - strips.r0 + 2).tolist()
    start = 0
    max_width = max_height = used_samples = 0
    for stop, (w, h) in enumerate(zip(widths, heights, strict=True)):
        max_width, max_height = max(max_width, w), max(max_height, h)
        used_samples += w * h
        padded_samples = max_width * max_height * (stop + 1 - start)
        limit = min(_GROUP_SAMPLES, 2 * used_samples + _TOLERATED_PADDING)
        if stop > start and padded_samples > limit:
            yield strips.take(slice(start, stop))
            start, max_width, max_height, used_samples = stop, w, h, w * h
    yield strips.take(slice(start, len(widths)))


def _find_edges(logits: np.ndarray, crops: Crops, grid: Grid, window: Window) -> np.ndarray:
    """Where masks begin and end: mask * (H * W + 1) + x * H + y, ascending within each strip."""
    rows, columns = grid
    x = np.minimum(crops.x0[:, None] + np.arange(np.max(crops.x1 - crops.x0)), crops.x1[:, None])
    inside = x < crops.x1[:, None]
    x = np.minimum(x, columns.size_out - 1)
    c0, c1 = columns.low[crops.x0], columns.high[crops.x1 - 1]
    block = _gather_samples(logits, crops, (c0, c1), window)
    n_crops, n_columns, n_rows = block.shape
    block = block.reshape(n_crops * n_columns, n_rows)
    # Lines are result columns of all crops; low and high are the block's columns they lie between.
    block_column = np.arange(n_crops)[:, None] * n_columns - c0[:, None]
    last_column = block_column + c1[:, None]
    low = np.minimum(columns.low[x] + block_column, last_column).ravel()
    high = np.minimum(columns.high[x] + block_column, last_column).ravel()
    w_low, w_high = columns.weight_low[x].ravel(), columns.weight_high[x].ravel()
    n_used_rows = crops.r1 - crops.r0 + 1
    positive = np.zeros((low.size, n_rows + 2), bool)  # with a row of zeros above and one below
    positive[:, 1:-1] = mix_is_positive(
        block.take(low, axis=0), w_low[:, None], block.take(high, axis=0), w_high[:, None]
    )
    if n_crops > 1 or not inside.all():
        used = inside[:, :, None] & (np.arange(n_rows) < n_used_rows[:, None])[:, None, :]
        positive[:, 1:-1] &= used.reshape(low.size, n_rows)
    # Border k lies between source rows k - 1 and k of the crop.
    line, k = np.divmod(np.flatnonzero(positive[:, 1:] != positive[:, :-1]), n_rows + 1)
    crop = line // x.shape[1]
    y = np.where(k == 0, crops.y0[crop], crops.y1[crop])
    inner = np.flatnonzero((k > 0) & (k < n_used_rows[crop]))
    inner_line, inner_k, inner_crop = line[inner], k[inner], crop[inner]
    above, below = (
        mix(
            block[low[inner_line], row],
            w_low[inner_line],
            block[high[inner_line], row],
            w_high[inner_line],
        )
        for row in (inner_k - 1, inner_k)
    )
    crossing = _find_crossings(above, below, crops.r0[inner_crop] + inner_k - 1, rows)
    y[inner] = np.clip(crossing, crops.y0[inner_crop], crops.y1[inner_crop])
    pixels = rows.size_out * columns.size_out
    return np.asarray(crops.index[crop] * (pixels + 1) + x.ravel()[line] * rows.size_out + y)


def _gather_samples(
    logits: np.ndarray, crops: Crops, columns: tuple[np.ndarray, np.ndarray], window: Window
) -> np.ndarray:
    """(crops, columns, rows) float32: samples of the window that the crops use.

    Crops with fewer columns or rows than the largest repeat their last one.

    Args:
        columns: First and last source column of each crop; its rows are r0..r1.
    """
    first, last = columns
    column = np.minimum(first[:, None] + np.arange(np.max(last - first) + 1), last[:, None])
    row = np.minimum(
        crops.r0[:, None] + np.arange(np.max(crops.r1 - crops.r0) + 1), crops.r1[:, None]
    )
    column, row = (column + window.left)[:, :, None], (row + window.top)[:, None, :]
    index = crops.index[:, None, None]
    if window.upsample == 1:
        block = logits[index, row, column]
    else:
        ys = resample_axis(logits.shape[1], logits.shape[1] * window.upsample)
        xs = resample_axis(logits.shape[2], logits.shape[2] * window.upsample)
        upper, lower = (
            mix(
                logits[index, source[row], xs.low[column]],
                xs.weight_low[column],
                logits[index, source[row], xs.high[column]],
                xs.weight_high[column],
            )
            for source in (ys.low, ys.high)
        )
        block = mix(upper, ys.weight_low[row], lower, ys.weight_high[row])
    if not np.isfinite(block).all():
        raise NotFinite(NOT_FINITE)
    return np.asarray(block)


def _find_crossings(
    above: np.ndarray, below: np.ndarray, row: np.ndarray, rows: ResampledAxis
) -> np.ndarray:
    """First result row between source rows `row` and `row + 1` that has the sign of `below`.

    `above` and `below` are the fp32 logits there, exactly one of them > 0. Where no result row of
    the segment has that sign, the result is the row after the segment.
    """
    target = below > 0
    first, stop = rows.first_pixel[row], rows.first_pixel[row + 1]
    source = row + above / (above.astype(np.float64) - below)
    guess = np.ceil((source + 0.5) * (rows.size_out / rows.size_in) - 0.5)
    y = np.clip(guess.astype(np.int64), first, stop)

    def has_sign(at: np.ndarray, which: np.ndarray) -> np.ndarray:
        positive = mix_is_positive(
            above[which], rows.weight_low[at], below[which], rows.weight_high[at]
        )
        return np.asarray(positive == target[which])

    moving = np.flatnonzero(y > first)
    while moving.size:  # up, while the row before has the sign already
        moving = moving[has_sign(y[moving] - 1, moving)]
        y[moving] -= 1
        moving = moving[y[moving] > first[moving]]
    moving = np.flatnonzero(y < stop)
    while moving.size:  # down, while this row does not have it yet
        moving = moving[~has_sign(y[moving], moving)]
        y[moving] += 1
        moving = moving[y[moving] < stop[moving]]
    return y
