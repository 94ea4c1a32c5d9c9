"""Where masks begin and end, found on a torch device; the method of `segcore.masks.numba_kernel`.

All instances of a chunk are one ragged array, so that each step is one kernel for all of them.
Sizes of ragged arrays are known on the host or read once for a chunk (`Scan.totals`); nothing is
looked at for each image.

Rounding. Every number that decides is rounded as in `segcore.masks.bilinear`. A compiler for CUDA
may contract a product and a sum to one rounding, inside a kernel; the steps here are eager
operations, each a kernel of its own. Where one kernel has both, as `add` with its factor of 1, or
would have after fusion, the product is exact, being of two float32 in float64, so that nothing
changes; the one product that must be rounded to float32 is converted to float64 before it is
added, which no contraction may skip. Comparisons, searches, sums of integers and gathers have one
result on every device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from segcore.masks.device.plan import ChunkSizes

NO_KEY = 2**62  # fills the end of arrays of keys; larger than any key


class DeviceAxes(NamedTuple):
    """Tables of all axes of a group (`segcore.masks.bilinear.ResampledAxis`), one after another.

    Attributes:
        low, high, weight_low, weight_high: For each result pixel; see `DeviceCrops.row_at`,
            `column_at`.
        first_pixel: For each source row and the end; see `DeviceCrops.first_pixel_at`.
    """

    low: Tensor
    high: Tensor
    weight_low: Tensor
    weight_high: Tensor
    first_pixel: Tensor


class DeviceCrops(NamedTuple):
    """Crops with at least one pixel, (M,) int64 each. Source means samples of the window.

    Attributes:
        plane, stride: Where the logits of the mask begin, and samples in a row of them.
        top, left: Of the window in the (upsampled) logits.
        height, pixels: Of the canvas.
        x0, x1, y0, y1: Result pixels [x0, x1) x [y0, y1).
        r0, c0: First source row and column that they use.
        rows, columns: How many they use.
        pairs: Neighbouring source columns between which result columns lie.
        row_at, column_at: Axis of the result's rows and columns in `DeviceAxes`.
        first_pixel_at: The same in `DeviceAxes.first_pixel`, for rows.
        up_row_at, up_column_at: Axes of the upsampling.
        key_at: First key (see `find_edges`); rises by `pixels` + 1 from crop to crop.
        block_at, grid_at, line_at: First entry in the ragged arrays of samples, of grid positions
            and of result columns.
    """

    plane: Tensor
    stride: Tensor
    top: Tensor
    left: Tensor
    height: Tensor
    pixels: Tensor
    x0: Tensor
    x1: Tensor
    y0: Tensor
    y1: Tensor
    r0: Tensor
    c0: Tensor
    rows: Tensor
    columns: Tensor
    pairs: Tensor
    row_at: Tensor
    column_at: Tensor
    first_pixel_at: Tensor
    up_row_at: Tensor
    up_column_at: Tensor
    key_at: Tensor
    block_at: Tensor
    grid_at: Tensor
    line_at: Tensor


class Lines(NamedTuple):
    """Result columns of all crops, in order: (L,) int64.

    Attributes:
        crop: The crop that it belongs to.
        x: Its column of the canvas.
        axis: Its place in `DeviceAxes`.
        grid: First grid position of its pair of source columns.
        first_candidate, n_candidates: Candidates of that pair.
        candidate_ends: Sum of `n_candidates` so far.
    """

    crop: Tensor
    x: Tensor
    axis: Tensor
    grid: Tensor
    first_candidate: Tensor
    n_candidates: Tensor
    candidate_ends: Tensor


class Scan(NamedTuple):
    """Where the sign may change.

    A grid position is a pair of source columns and a border k = 0..rows between source rows k - 1
    and k. It is a candidate where the sign may change there.

    Attributes:
        block: (S,) float32 samples of each crop, column by column.
        candidates_so_far: (G,) int64 candidates up to and including each grid position.
        lines: Result columns.
        totals: (3,) int64 candidates summed over all result columns, 1 where all samples are
            finite, else 0, and candidates.
    """

    block: Tensor
    candidates_so_far: Tensor
    lines: Lines
    totals: Tensor


def mix(low: Tensor, w_low: Tensor, high: Tensor, w_high: Tensor) -> Tensor:
    """`segcore.masks.bilinear.mix`: fp32 fma(low, w_low, high * w_high), correctly rounded."""
    product = low.double() * w_low
    addend = (high * w_high).double()
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    bits = total.view(torch.int64)
    step = torch.where((error > 0) == (total > 0), 1, -1)
    odd = torch.where((error != 0) & (bits & 1 == 0), bits + step, bits)
    return odd.view(torch.float64).float()


def mix_is_positive(low: Tensor, w_low: Tensor, high: Tensor, w_high: Tensor) -> Tensor:
    """`segcore.masks.bilinear.mix_is_positive`: whether `mix(...)` > 0, without rounding it."""
    return low.double() * w_low + (high * w_high).double() > 0


def scan_samples(logits: Tensor, axes: DeviceAxes, crops: DeviceCrops, sizes: ChunkSizes) -> Scan:
    """Samples of each crop, and where between them the sign may change.

    Only where the four samples around a border between two rows disagree can the sign of any
    mix of the two columns change there.

    Args:
        logits: (T,) float32; planes as `crops` say.
        axes, crops, sizes: Of one chunk.
    """
    block = _gather_samples(logits, axes, crops, sizes)
    positive = block > 0
    crop = _repeat_indices(crops.pairs * (crops.rows + 1), sizes.grid)
    rows = crops.rows[crop]
    place = _arange(sizes.grid, logits) - crops.grid_at[crop]
    pair = place // (rows + 1)
    k = place - pair * (rows + 1)
    left = crops.block_at[crop] + pair * rows + torch.minimum(k, rows - 1)
    right = left + torch.where(pair + 1 < crops.columns[crop], rows, 0)
    left_positive, right_positive, is_row = positive[left], positive[right], k < rows
    any_positive = (left_positive | right_positive) & is_row
    all_positive = left_positive & right_positive & is_row
    # k = rows is not a row and says False, and so does what precedes k = 0 of the next pair.
    any_positive[1:] |= any_positive[:-1].clone()
    all_positive[1:] &= all_positive[:-1].clone()
    all_positive[:1] = False
    candidates_so_far = (any_positive & ~all_positive).cumsum(0)
    lines = _list_lines(candidates_so_far, axes, crops, sizes)
    is_finite = torch.isfinite(block).all().long()
    totals = torch.stack((lines.candidate_ends[-1], is_finite, candidates_so_far[-1]))
    return Scan(block, candidates_so_far, lines, totals)


def find_edges(
    scan: Scan, axes: DeviceAxes, crops: DeviceCrops, totals: tuple[int, int], halvings: int
) -> Tensor:
    """Keys of all edges, ascending: `DeviceCrops.key_at` + x * H + y; see `segcore.masks.edges`.

    Args:
        scan: Of the same chunk.
        axes, crops: Of the chunk.
        totals: Candidates, and these summed over all result columns, both at least 1.
        halvings: `ChunkSizes.halvings`.

    Returns:
        (E,) int64, E = totals[1]; without positions where edges cancel out; `NO_KEY` after the
        last.
    """
    n_candidates, n_line_candidates = totals
    lines = scan.lines
    line = _repeat_indices(lines.n_candidates, n_line_candidates)
    candidate = (
        _arange(n_line_candidates, line)
        - (lines.candidate_ends - lines.n_candidates - lines.first_candidate)[line]
    )
    grid_of_candidate = torch.searchsorted(scan.candidates_so_far, _arange(n_candidates, line) + 1)
    k = grid_of_candidate[candidate] - lines.grid[line]
    crop, axis = lines.crop[line], lines.axis[line]
    rows, r0 = crops.rows[crop], crops.r0[crop]
    low = axes.low[axis]
    left = crops.block_at[crop] + (low - crops.c0[crop]) * rows
    right = left + (axes.high[axis] - low) * rows
    w_low, w_high = axes.weight_low[axis], axes.weight_high[axis]
    row_above, row_below = (k - 1).clamp(min=0), torch.minimum(k, rows - 1)
    above = scan.block[left + row_above], w_low, scan.block[right + row_above], w_high
    below = scan.block[left + row_below], w_low, scan.block[right + row_below], w_high
    positive_above = (k > 0) & mix_is_positive(*above)
    positive_below = (k < rows) & mix_is_positive(*below)
    segment = crops.first_pixel_at[crop] + r0 + row_above
    y = _find_crossings(
        mix(*above),
        mix(*below),
        (axes.first_pixel[segment], axes.first_pixel[segment + 1]),
        (axes, crops.row_at[crop], crops.height[crop]),
        halvings,
    )
    y0, y1 = crops.y0[crop], crops.y1[crop]
    y = torch.minimum(torch.maximum(y, y0), y1)
    y = torch.where(k == 0, y0, torch.where(k == rows, y1, y))
    keys = crops.key_at[crop] + lines.x[line] * crops.height[crop] + y
    return _cancel_pairs(_select(keys, positive_above != positive_below))


def _gather_samples(
    logits: Tensor, axes: DeviceAxes, crops: DeviceCrops, sizes: ChunkSizes
) -> Tensor:
    """(S,) float32: samples of the window, upsampled where it asks for it, column by column."""
    crop = _repeat_indices(crops.columns * crops.rows, sizes.block)
    place = _arange(sizes.block, logits) - crops.block_at[crop]
    column = place // crops.rows[crop]
    row = place - column * crops.rows[crop]
    row += (crops.top + crops.r0)[crop]
    column += (crops.left + crops.c0)[crop]
    plane, stride = crops.plane[crop], crops.stride[crop]
    if not sizes.upsampled:
        return logits[plane + row * stride + column]
    row += crops.up_row_at[crop]
    column += crops.up_column_at[crop]
    x_low, x_high = axes.low[column], axes.high[column]
    w_low, w_high = axes.weight_low[column], axes.weight_high[column]
    upper, lower = (
        mix(logits[start + x_low], w_low, logits[start + x_high], w_high)
        for start in (plane + source[row] * stride for source in (axes.low, axes.high))
    )
    return mix(upper, axes.weight_low[row], lower, axes.weight_high[row])


def _list_lines(
    candidates_so_far: Tensor, axes: DeviceAxes, crops: DeviceCrops, sizes: ChunkSizes
) -> Lines:
    """The result columns of all crops, and the candidates of each."""
    crop = _repeat_indices(crops.x1 - crops.x0, sizes.lines)
    x = _arange(sizes.lines, candidates_so_far) - (crops.line_at - crops.x0)[crop]
    axis = crops.column_at[crop] + x
    borders = crops.rows[crop] + 1
    grid = crops.grid_at[crop] + (axes.low[axis] - crops.c0[crop]) * borders
    first = torch.where(grid > 0, candidates_so_far[(grid - 1).clamp(min=0)], 0)
    n_candidates = candidates_so_far[grid + borders - 1] - first
    return Lines(crop, x, axis, grid, first, n_candidates, n_candidates.cumsum(0))


def _find_crossings(
    above: Tensor,
    below: Tensor,
    segment: tuple[Tensor, Tensor],
    rows: tuple[DeviceAxes, Tensor, Tensor],
    halvings: int,
) -> Tensor:
    """First result row of each segment that has the sign of `below`; its end where none has.

    The exact formula is monotone there, so halving finds what
    `segcore.masks.numpy_kernel._find_crossings` finds, in a number of steps known beforehand.

    Args:
        above, below: Logits at the source rows around the segment.
        segment: First result row, and the one after the last.
        rows: Axes, place of the axis of the result's rows in them, and how many rows it has.
        halvings: Steps that suffice for the longest segment.
    """
    low, high = segment
    axes, row_at, height = rows
    target = below > 0
    last = row_at + height - 1
    for _ in range(halvings):
        middle = (low + high) >> 1
        row = torch.minimum(row_at + middle, last)  # beyond it only where the search has ended
        sign = mix_is_positive(above, axes.weight_low[row], below, axes.weight_high[row]) == target
        searching = low < high
        high = torch.where(searching & sign, middle, high)
        low = torch.where(searching & ~sign, middle + 1, low)
    return low


def _cancel_pairs(keys: Tensor) -> Tensor:
    """Ascending keys: those that occur an odd number of times, once each."""
    starts = torch.ones_like(keys, dtype=torch.bool)
    starts[1:] = keys[1:] != keys[:-1]
    size = len(keys)
    # First index of each run of equal keys; `size` after the last run.
    run = torch.searchsorted(starts.cumsum(0), _arange(size + 1, keys) + 1)
    is_odd = (run[1:] - run[:-1]) & 1 == 1
    return _select(keys[run[:-1].clamp(max=size - 1)], is_odd)


def _select(keys: Tensor, selection: Tensor) -> Tensor:
    """The selected keys moved to the front, `NO_KEY` after them: no wait for their number."""
    size = len(keys)
    index = torch.searchsorted(selection.cumsum(0), _arange(size, keys) + 1)
    return torch.where(index < size, keys[index.clamp(max=size - 1)], NO_KEY)


def _repeat_indices(counts: Tensor, total: int) -> Tensor:
    """Each index as many times as its count says; the total is known, so the host need not wait."""
    return torch.repeat_interleave(_arange(len(counts), counts), counts, output_size=total)


def _arange(size: int, like: Tensor) -> Tensor:
    return torch.arange(size, device=like.device)
