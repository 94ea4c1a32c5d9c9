"""Logits -> COCO strings in six kernels by Triton; the method of `segcore.masks.device.edges`.

A program does one tile of one crop, or one crop, so that ragged crops need no search: a table says
which (`segcore.masks.device.triton_encode`). All of them are launched without contraction of
products and sums (`enable_fp_fusion=False`), so that every number that decides is rounded as in
`segcore.masks.bilinear`. Nothing depends on the order in which programs run.

Arguments that several have:
    fields: (fields of `DeviceCrops`, `n_crops`) int64.
    tiles: (`n_tiles`, 2) int64, the crop of each program and the number of its tile there.
    low, high, weight_low, weight_high, first_pixel: `DeviceAxes`.
    block: (S,) float32 samples of each crop, row by row.
    line_counts, line_ends: (L,) edges of each result column, and summed up to and including it.
"""

import triton
import triton.language as tl

from segcore.masks.device.edges import DeviceCrops

_FIELD = DeviceCrops._fields.index
PLANE, STRIDE = tl.constexpr(_FIELD("plane")), tl.constexpr(_FIELD("stride"))
TOP, LEFT = tl.constexpr(_FIELD("top")), tl.constexpr(_FIELD("left"))
HEIGHT, PIXELS = tl.constexpr(_FIELD("height")), tl.constexpr(_FIELD("pixels"))
X0, X1 = tl.constexpr(_FIELD("x0")), tl.constexpr(_FIELD("x1"))
Y0, Y1 = tl.constexpr(_FIELD("y0")), tl.constexpr(_FIELD("y1"))
R0, C0 = tl.constexpr(_FIELD("r0")), tl.constexpr(_FIELD("c0"))
ROWS, COLUMNS = tl.constexpr(_FIELD("rows")), tl.constexpr(_FIELD("columns"))
ROW_AT, COLUMN_AT = tl.constexpr(_FIELD("row_at")), tl.constexpr(_FIELD("column_at"))
FIRST_PIXEL_AT = tl.constexpr(_FIELD("first_pixel_at"))
UP_ROW_AT, UP_COLUMN_AT = tl.constexpr(_FIELD("up_row_at")), tl.constexpr(_FIELD("up_column_at"))
BLOCK_AT, LINE_AT = tl.constexpr(_FIELD("block_at")), tl.constexpr(_FIELD("line_at"))

# Not once more for a number that is 1, or a multiple of 16.
_compiled_once = triton.jit(do_not_specialize=["n_crops", "n_edges", "halvings", "max_chars"])


@triton.jit
def mix(low, w_low, high, w_high):
    """`segcore.masks.bilinear.mix`."""
    product = low.to(tl.float64) * w_low.to(tl.float64)
    addend = (high * w_high).to(tl.float64)
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    bits = total.to(tl.int64, bitcast=True)
    step = tl.where((error > 0) == (total > 0), 1, -1).to(tl.int64)
    odd = tl.where((error != 0) & ((bits & 1) == 0), bits + step, bits)
    return odd.to(tl.float64, bitcast=True).to(tl.float32)


@triton.jit
def mix_is_positive(low, w_low, high, w_high):
    """`segcore.masks.bilinear.mix_is_positive`."""
    product = low.to(tl.float64) * w_low.to(tl.float64)
    return product + (high * w_high).to(tl.float64) > 0


@_compiled_once
def gather_samples(
    logits, block, is_finite, fields, n_crops, tiles, low, high, weight_low, weight_high,
    UPSAMPLED: tl.constexpr, SAMPLES: tl.constexpr,
):  # fmt: skip
    """Samples of the window, upsampled where it asks for it; `is_finite` becomes 0 if one is not.

    A program fills `SAMPLES` places of a crop.
    """
    tile = tl.program_id(0)
    crop, number = tl.load(tiles + 2 * tile), tl.load(tiles + 2 * tile + 1)
    columns = tl.load(fields + COLUMNS * n_crops + crop)
    n_samples = columns * tl.load(fields + ROWS * n_crops + crop)
    place = number * SAMPLES + tl.arange(0, SAMPLES)
    used = place < n_samples
    row_of_crop = place // columns
    row = (
        row_of_crop + tl.load(fields + TOP * n_crops + crop) + tl.load(fields + R0 * n_crops + crop)
    )
    column = place - row_of_crop * columns
    column += tl.load(fields + LEFT * n_crops + crop) + tl.load(fields + C0 * n_crops + crop)
    stride = tl.load(fields + STRIDE * n_crops + crop)
    plane = logits + tl.load(fields + PLANE * n_crops + crop)
    if UPSAMPLED:
        row += tl.load(fields + UP_ROW_AT * n_crops + crop)
        column += tl.load(fields + UP_COLUMN_AT * n_crops + crop)
        x_low = tl.load(low + column, mask=used, other=0)
        x_high = tl.load(high + column, mask=used, other=0)
        w_low = tl.load(weight_low + column, mask=used, other=0)
        w_high = tl.load(weight_high + column, mask=used, other=0)
        upper_row = plane + tl.load(low + row, mask=used, other=0) * stride
        lower_row = plane + tl.load(high + row, mask=used, other=0) * stride
        upper = mix(
            tl.load(upper_row + x_low, mask=used, other=0), w_low,
            tl.load(upper_row + x_high, mask=used, other=0), w_high,
        )  # fmt: skip
        lower = mix(
            tl.load(lower_row + x_low, mask=used, other=0), w_low,
            tl.load(lower_row + x_high, mask=used, other=0), w_high,
        )  # fmt: skip
        row_weight_low = tl.load(weight_low + row, mask=used, other=0)
        row_weight_high = tl.load(weight_high + row, mask=used, other=0)
        sample = mix(upper, row_weight_low, lower, row_weight_high)
    else:
        sample = tl.load(plane + row * stride + column, mask=used, other=0)
    tl.store(block + tl.load(fields + BLOCK_AT * n_crops + crop) + place, sample, mask=used)
    # A number that is not finite has no difference from itself, or one that is not 0.
    wrong = used & ((sample - sample) != 0)
    tl.store(is_finite + tl.zeros_like(place), tl.zeros_like(place), mask=wrong)


@triton.jit
def _lines(fields, n_crops, crop, number, low, high, weight_low, weight_high, LINES: tl.constexpr):
    """The result columns of a tile: which, whether they exist, their samples and weights."""
    x = tl.load(fields + X0 * n_crops + crop) + number * LINES + tl.arange(0, LINES)
    exists = x < tl.load(fields + X1 * n_crops + crop)
    axis = tl.load(fields + COLUMN_AT * n_crops + crop) + x
    first = tl.load(fields + BLOCK_AT * n_crops + crop) - tl.load(fields + C0 * n_crops + crop)
    left = first + tl.load(low + axis, mask=exists, other=0)
    right = first + tl.load(high + axis, mask=exists, other=0)
    w_low = tl.load(weight_low + axis, mask=exists, other=0)
    w_high = tl.load(weight_high + axis, mask=exists, other=0)
    return x, exists, left, right, w_low, w_high


@triton.jit
def _is_set(block, row, rows, columns, exists, left, right, w_low, w_high):
    """Whether the mask is set at source rows of result columns; outside the crop it is not."""
    used = (row >= 0) & (row < rows) & exists[None, :]
    left_sample = tl.load(block + row * columns + left[None, :], mask=used, other=0)
    right_sample = tl.load(block + row * columns + right[None, :], mask=used, other=0)
    return used & mix_is_positive(left_sample, w_low[None, :], right_sample, w_high[None, :])


@_compiled_once
def count_edges(
    block, line_counts, fields, n_crops, tiles, low, high, weight_low, weight_high,
    LINES: tl.constexpr, BORDERS: tl.constexpr,
):  # fmt: skip
    """How often each result column changes between source rows, the borders of the crop included.

    A program does `LINES` columns, and `BORDERS` borders between rows at a time.
    """
    tile = tl.program_id(0)
    crop, number = tl.load(tiles + 2 * tile), tl.load(tiles + 2 * tile + 1)
    rows, columns = (
        tl.load(fields + ROWS * n_crops + crop),
        tl.load(fields + COLUMNS * n_crops + crop),
    )
    x, exists, left, right, w_low, w_high = _lines(
        fields, n_crops, crop, number, low, high, weight_low, weight_high, LINES
    )
    count = tl.zeros((LINES,), tl.int32)
    for start in range(0, rows.to(tl.int32) + 1, BORDERS):
        k = (start + tl.arange(0, BORDERS)).to(tl.int64)[:, None]
        above = _is_set(block, k - 1, rows, columns, exists, left, right, w_low, w_high)
        below = _is_set(block, k, rows, columns, exists, left, right, w_low, w_high)
        count += tl.sum((above != below).to(tl.int32), axis=0)
    line = tl.load(fields + LINE_AT * n_crops + crop) + x - tl.load(fields + X0 * n_crops + crop)
    tl.store(line_counts + line, count, mask=exists)


@_compiled_once
def list_edges(
    block, line_counts, line_ends, edge_crop, edge_x, edge_border,
    fields, n_crops, tiles, low, high, weight_low, weight_high,
    LINES: tl.constexpr, BORDERS: tl.constexpr,
):  # fmt: skip
    """Crop, result column and border of each edge that `count_edges` counted, in order."""
    tile = tl.program_id(0)
    crop, number = tl.load(tiles + 2 * tile), tl.load(tiles + 2 * tile + 1)
    rows, columns = (
        tl.load(fields + ROWS * n_crops + crop),
        tl.load(fields + COLUMNS * n_crops + crop),
    )
    x, exists, left, right, w_low, w_high = _lines(
        fields, n_crops, crop, number, low, high, weight_low, weight_high, LINES
    )
    line = tl.load(fields + LINE_AT * n_crops + crop) + x - tl.load(fields + X0 * n_crops + crop)
    at = tl.load(line_ends + line, mask=exists, other=0)
    at -= tl.load(line_counts + line, mask=exists, other=0)
    for start in range(0, rows.to(tl.int32) + 1, BORDERS):
        k = (start + tl.arange(0, BORDERS)).to(tl.int64)[:, None]
        above = _is_set(block, k - 1, rows, columns, exists, left, right, w_low, w_high)
        below = _is_set(block, k, rows, columns, exists, left, right, w_low, w_high)
        changes = above != below
        rank = tl.cumsum(changes.to(tl.int32), axis=0)
        place = at[None, :] + rank - 1
        zeros = tl.zeros_like(place)
        tl.store(edge_crop + place, (zeros + crop).to(tl.int32), mask=changes)
        tl.store(edge_x + place, (zeros + x[None, :]).to(tl.int32), mask=changes)
        tl.store(edge_border + place, (zeros + k).to(tl.int32), mask=changes)
        at += tl.sum(changes.to(tl.int32), axis=0)


@_compiled_once
def place_edges(
    block, keys, n_edges, edge_crop, edge_x, edge_border,
    fields, n_crops, low, high, weight_low, weight_high, first_pixel, halvings,
    EDGES: tl.constexpr,
):  # fmt: skip
    """Position x * H + y of each edge: the first result row that has the sign below the border.

    A program does `EDGES` edges; `halvings` is that of `ChunkSizes`.
    """
    edge = tl.program_id(0).to(tl.int64) * EDGES + tl.arange(0, EDGES)
    exists = edge < n_edges
    crop = tl.load(edge_crop + edge, mask=exists, other=0).to(tl.int64)
    x = tl.load(edge_x + edge, mask=exists, other=0).to(tl.int64)
    k = tl.load(edge_border + edge, mask=exists, other=0).to(tl.int64)
    rows, columns = (
        tl.load(fields + ROWS * n_crops + crop),
        tl.load(fields + COLUMNS * n_crops + crop),
    )
    axis = tl.where(exists, tl.load(fields + COLUMN_AT * n_crops + crop) + x, 0)
    first = tl.load(fields + BLOCK_AT * n_crops + crop) - tl.load(fields + C0 * n_crops + crop)
    inner = exists & (k > 0) & (k < rows)
    left, right = first + tl.load(low + axis), first + tl.load(high + axis)
    w_low, w_high = tl.load(weight_low + axis), tl.load(weight_high + axis)
    above_row, below_row = block + (k - 1) * columns, block + k * columns
    above = mix(
        tl.load(above_row + left, mask=inner, other=0), w_low,
        tl.load(above_row + right, mask=inner, other=0), w_high,
    )  # fmt: skip
    below = mix(
        tl.load(below_row + left, mask=inner, other=0), w_low,
        tl.load(below_row + right, mask=inner, other=0), w_high,
    )  # fmt: skip
    segment = first_pixel + tl.load(fields + FIRST_PIXEL_AT * n_crops + crop)
    segment += tl.load(fields + R0 * n_crops + crop) + k
    start = tl.load(segment - 1, mask=inner, other=0)
    stop = tl.load(segment, mask=inner, other=0)
    row_at, height = (
        tl.load(fields + ROW_AT * n_crops + crop),
        tl.load(fields + HEIGHT * n_crops + crop),
    )
    target = below > 0
    for _ in range(halvings):
        middle = (start + stop) // 2
        searching = inner & (start < stop)
        weight_above = tl.load(weight_low + row_at + middle, mask=searching, other=0)
        weight_below = tl.load(weight_high + row_at + middle, mask=searching, other=0)
        found = mix_is_positive(above, weight_above, below, weight_below) == target
        stop = tl.where(searching & found, middle, stop)
        start = tl.where(searching & (found == 0), middle + 1, start)
    y0, y1 = tl.load(fields + Y0 * n_crops + crop), tl.load(fields + Y1 * n_crops + crop)
    y = tl.minimum(tl.maximum(start, y0), y1)
    y = tl.where(k == 0, y0, tl.where(k == rows, y1, y))
    tl.store(keys + edge, x * height + y, mask=exists)


@_compiled_once
def cancel_edges(
    keys, kept_keys, kept_counts, line_counts, line_ends, fields, n_crops, EDGES: tl.constexpr
):
    """Keys of a crop that occur an odd number of times, once each, from its first place on.

    A program does one crop, `EDGES` edges at a time; equal keys are neighbours.
    """
    crop = tl.program_id(0)
    first_line = tl.load(fields + LINE_AT * n_crops + crop)
    n_lines = tl.load(fields + X1 * n_crops + crop) - tl.load(fields + X0 * n_crops + crop)
    begin = tl.load(line_ends + first_line) - tl.load(line_counts + first_line)
    n_edges = (tl.load(line_ends + first_line + n_lines - 1) - begin).to(tl.int32)
    kept = tl.zeros((1,), tl.int32)
    for start in range(0, n_edges, EDGES):
        edge = start + tl.arange(0, EDGES)
        own = keys + begin + edge
        exists = edge < n_edges
        key = tl.load(own, mask=exists, other=-1)
        before = tl.load(own - 1, mask=exists & (edge > 0), other=-1)
        is_odd = exists & (key != before)  # the first of its equals
        step = 1
        after = tl.load(own + step, mask=is_odd & (edge + step < n_edges), other=-1)
        has_equal = is_odd & (after == key)
        while tl.max(has_equal.to(tl.int32), axis=0) > 0:
            is_odd = is_odd ^ has_equal
            step += 1
            after = tl.load(own + step, mask=has_equal & (edge + step < n_edges), other=-1)
            has_equal = has_equal & (after == key)
        place = begin + kept + tl.cumsum(is_odd.to(tl.int32), axis=0) - 1
        tl.store(kept_keys + place, key, mask=is_odd)
        kept += tl.sum(is_odd.to(tl.int32), axis=0)
    tl.store(kept_counts + crop + tl.arange(0, 1), kept)


@_compiled_once
def write_strings(
    kept_keys, kept_counts, chars, numbers, line_counts, line_ends, fields, n_crops, max_chars,
    EDGES: tl.constexpr, MAX_CHARS: tl.constexpr,
):  # fmt: skip
    """The string of each crop, and (start, length, area) of it in `numbers`, (M, 3) int64.

    Strings have gaps between them: `max_chars`, at most `MAX_CHARS`, places for each edge and one
    more number. A program does one crop, `EDGES` numbers at a time.
    """
    crop = tl.program_id(0)
    first_line = tl.load(fields + LINE_AT * n_crops + crop)
    begin = tl.load(line_ends + first_line) - tl.load(line_counts + first_line)
    pixels = tl.load(fields + PIXELS * n_crops + crop)
    own = kept_keys + begin
    n_edges = tl.load(kept_counts + crop)
    last = tl.load(own + n_edges - 1, mask=n_edges > 0, other=0)
    # Zeros up to the end of the canvas follow where the last edge is not there.
    n_numbers = n_edges + ((n_edges > 0) & (last < pixels)).to(tl.int32)
    text = (begin + crop) * max_chars
    length = tl.zeros((1,), tl.int64)
    area = tl.zeros((1,), tl.int64)
    for start in range(0, n_numbers, EDGES):
        index = start + tl.arange(0, EDGES)
        exists = index < n_numbers
        key = tl.load(own + index, mask=index < n_edges, other=0)
        end = tl.where(index < n_edges, key, pixels)
        run = end - tl.load(own + index - 1, mask=exists & (index > 0), other=0)
        earlier = tl.load(own + index - 2, mask=exists & (index > 2), other=0)
        earlier -= tl.load(own + index - 3, mask=exists & (index > 2), other=0)
        value = run - earlier
        magnitude = tl.where(value < 0, -1 - value, value)
        n_chars = exists.to(tl.int32)
        for group in tl.static_range(1, MAX_CHARS):
            n_chars += (exists & (magnitude >= (1 << (5 * group - 1)))).to(tl.int32)
        place = text + length + tl.cumsum(n_chars, axis=0) - n_chars
        for group in tl.static_range(MAX_CHARS):
            digit = ((value >> (5 * group)) & 31) + tl.where(group < n_chars - 1, 80, 48)
            tl.store(chars + place + group, digit.to(tl.uint8), mask=group < n_chars)
        length += tl.sum(n_chars, axis=0)
        signed = tl.where((index & 1) == 1, key, -key)
        area += tl.sum(tl.where(index < n_edges, signed, 0), axis=0)
    out = numbers + crop * 3 + tl.arange(0, 1)
    tl.store(out, text + tl.zeros((1,), tl.int64))
    tl.store(out + 1, length)
    tl.store(out + 2, area)
