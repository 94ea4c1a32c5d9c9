"""Where masks begin and end, found on a torch device; the method of `segcore.masks.numba_kernel`.

All instances of a chunk are one ragged array, so that each step is one kernel for all of them.
Sizes of ragged arrays are known on the host or read once for a chunk (`Scan.sizes`); nothing is
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

from segcore.masks.device.plan import Sizes

NOTHING = 2**62  # in place of a key, behind all keys


class Axes(NamedTuple):
    """Tables of all axes of a chunk (`segcore.masks.bilinear.Axis`), one after another.

    Attributes:
        low, high, weight_low, weight_high: For each result pixel; see `Crops.row_at`, `column_at`.
        first: For each source row and the end; see `Crops.first_at`.
    """

    low: Tensor
    high: Tensor
    weight_low: Tensor
    weight_high: Tensor
    first: Tensor


class Crops(NamedTuple):
    """Crops with at least one pixel, (M,) int64 each. Source means samples of the window.

    Attributes:
        plane, stride: Where the logits of the mask begin, and samples in a row of them.
        top, left: Of the window in the (upsampled) logits.
        height, pixels: Of the canvas.
        x0, x1, y0, y1: Result pixels [x0, x1) x [y0, y1).
        r0, c0: First source row and column that they use.
        rows, columns: How many they use.
        pairs: Neighbouring source columns between which result columns lie.
        row_at, column_at: Axis of the result's rows and columns in `Axes`.
        first_at: The same in `Axes.first`, for rows.
        up_row_at, up_column_at: Axes of the upsampling.
        key_at: First key (see `edges`); rises by `pixels` + 1 from crop to crop.
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
    first_at: Tensor
    up_row_at: Tensor
    up_column_at: Tensor
    key_at: Tensor
    block_at: Tensor
    grid_at: Tensor
    line_at: Tensor


class Lines(NamedTuple):
    """Result columns of all crops, in order: (L,) int64.

    Attributes:
        crop: Whose it is.
        x: Which one.
        axis: Its place in `Axes`.
        grid: First grid position of its pair of source columns.
        first, many: Candidates of that pair.
        ends: Sum of `many` so far.
    """

    crop: Tensor
    x: Tensor
    axis: Tensor
    grid: Tensor
    first: Tensor
    many: Tensor
    ends: Tensor


class Scan(NamedTuple):
    """Where the sign may change.

    Attributes:
        block: (S,) float32 samples of each crop, column by column.
        found: (G,) int64 candidates up to and with each grid position: pair of source columns by
            rows k = 0..rows, where k stands for the border between rows k - 1 and k.
        lines: Result columns.
        sizes: (3,) int64 candidates, candidates over all result columns, and 1 where all samples
            are finite, else 0.
    """

    block: Tensor
    found: Tensor
    lines: Lines
    sizes: Tensor


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


def scan(logits: Tensor, axes: Axes, crops: Crops, sizes: Sizes) -> Scan:
    """Samples of each crop, and where between them the sign may change.

    Only where the four samples around a border between two rows disagree can the sign of any
    mixture of the two columns change there.

    Args:
        logits: (T,) float32; planes as `crops` say.
        axes, crops, sizes: Of one chunk.
    """
    block = _samples(logits, axes, crops, sizes)
    positive = block > 0
    crop = _repeated(crops.pairs * (crops.rows + 1), sizes.grid)
    rows = crops.rows[crop]
    place = _count(sizes.grid, logits) - crops.grid_at[crop]
    pair = place // (rows + 1)
    k = place - pair * (rows + 1)
    left = crops.block_at[crop] + pair * rows + torch.minimum(k, rows - 1)
    right = left + torch.where(pair + 1 < crops.columns[crop], rows, 0)
    a, b, inside = positive[left], positive[right], k < rows
    some, both = (a | b) & inside, a & b & inside
    # k = rows is no row and says False: so what stands before k = 0 of the next pair does, too.
    some[1:] |= some[:-1].clone()
    both[1:] &= both[:-1].clone()
    both[:1] = False
    found = (some & ~both).cumsum(0)
    lines = _lines(found, axes, crops, sizes)
    numbers = torch.stack((found[-1], lines.ends[-1], torch.isfinite(block).all().long()))
    return Scan(block, found, lines, numbers)


def edges(scan: Scan, axes: Axes, crops: Crops, found: tuple[int, int], steps: int) -> Tensor:
    """Keys of all edges, ascending: `Crops.key_at` + x * H + y, as in `segcore.masks.edges`.

    Args:
        scan: Of the same chunk.
        axes, crops: Of the chunk.
        found: First two of `Scan.sizes`, both at least 1.
        steps: `Sizes.steps`.

    Returns:
        (E,) int64, E = found[1]; without places where edges cancel out; `NOTHING` behind the last.
    """
    candidates, total = found
    lines = scan.lines
    line = _repeated(lines.many, total)
    at = _count(total, line) - (lines.ends - lines.many - lines.first)[line]
    border = torch.searchsorted(scan.found, _count(candidates, line) + 1)  # of each candidate
    k = border[at] - lines.grid[line]
    crop, axis = lines.crop[line], lines.axis[line]
    rows, r0 = crops.rows[crop], crops.r0[crop]
    low = axes.low[axis]
    left = crops.block_at[crop] + (low - crops.c0[crop]) * rows
    right = left + (axes.high[axis] - low) * rows
    w_low, w_high = axes.weight_low[axis], axes.weight_high[axis]
    up, down = (k - 1).clamp(min=0), torch.minimum(k, rows - 1)
    above = scan.block[left + up], w_low, scan.block[right + up], w_high
    below = scan.block[left + down], w_low, scan.block[right + down], w_high
    was, now = (k > 0) & mix_is_positive(*above), (k < rows) & mix_is_positive(*below)
    segment = crops.first_at[crop] + r0 + up
    y = _crossing(
        mix(*above),
        mix(*below),
        (axes.first[segment], axes.first[segment + 1]),
        (axes, crops.row_at[crop], crops.height[crop]),
        steps,
    )
    y0, y1 = crops.y0[crop], crops.y1[crop]
    y = torch.minimum(torch.maximum(y, y0), y1)
    y = torch.where(k == 0, y0, torch.where(k == rows, y1, y))
    keys = crops.key_at[crop] + lines.x[line] * crops.height[crop] + y
    return _cancelled(_picked(keys, was != now))


def _samples(logits: Tensor, axes: Axes, crops: Crops, sizes: Sizes) -> Tensor:
    """(S,) float32: samples of the window, upsampled where it asks for it, column by column."""
    crop = _repeated(crops.columns * crops.rows, sizes.block)
    place = _count(sizes.block, logits) - crops.block_at[crop]
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


def _lines(found: Tensor, axes: Axes, crops: Crops, sizes: Sizes) -> Lines:
    crop = _repeated(crops.x1 - crops.x0, sizes.lines)
    x = _count(sizes.lines, found) - (crops.line_at - crops.x0)[crop]
    axis = crops.column_at[crop] + x
    borders = crops.rows[crop] + 1
    grid = crops.grid_at[crop] + (axes.low[axis] - crops.c0[crop]) * borders
    before = torch.where(grid > 0, found[(grid - 1).clamp(min=0)], 0)
    many = found[grid + borders - 1] - before
    return Lines(crop, x, axis, grid, before, many, many.cumsum(0))


def _crossing(
    above: Tensor,
    below: Tensor,
    segment: tuple[Tensor, Tensor],
    rows: tuple[Axes, Tensor, Tensor],
    steps: int,
) -> Tensor:
    """First result row of a segment that has the sign of `below`; its end where none has.

    The exact formula is monotone there, so halving finds what `segcore.masks.from_logits._crossing`
    finds, in a number of steps known beforehand.
    """
    low, high = segment
    axes, at, height = rows
    target = below > 0
    last = at + height - 1
    for _ in range(steps):
        middle = (low + high) >> 1
        row = torch.minimum(at + middle, last)  # beyond it only where the search has ended
        sign = mix_is_positive(above, axes.weight_low[row], below, axes.weight_high[row]) == target
        searching = low < high
        high = torch.where(searching & sign, middle, high)
        low = torch.where(searching & ~sign, middle + 1, low)
    return low


def _cancelled(keys: Tensor) -> Tensor:
    """Ascending keys: those that occur an odd number of times, once each."""
    starts = torch.ones_like(keys, dtype=torch.bool)
    starts[1:] = keys[1:] != keys[:-1]
    size = len(keys)
    run = torch.searchsorted(starts.cumsum(0), _count(size + 1, keys) + 1)  # size behind the last
    odd = (run[1:] - run[:-1]) & 1 == 1
    return _picked(keys[run[:-1].clamp(max=size - 1)], odd)


def _picked(keys: Tensor, which: Tensor) -> Tensor:
    """The keys picked, moved to the front, `NOTHING` behind them: no wait for their number."""
    size = len(keys)
    at = torch.searchsorted(which.cumsum(0), _count(size, keys) + 1)
    return torch.where(at < size, keys[at.clamp(max=size - 1)], NOTHING)


def _repeated(counts: Tensor, total: int) -> Tensor:
    """Each index as many times as its count says; the total is known, so the host need not wait."""
    return torch.repeat_interleave(_count(len(counts), counts), counts, output_size=total)


def _count(size: int, like: Tensor) -> Tensor:
    return torch.arange(size, device=like.device)
