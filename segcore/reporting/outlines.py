"""Masks as SVG paths along the edges of their pixels: exact, with holes and parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segcore.masks.bitmaps import to_bitmaps
from segcore.masks.polygons import boundary_pixels

# Characters of an RLE string and pixels of a box: tracing takes time with both.
_MAX_CHARS, _MAX_BOX = 40_000, 1 << 25


def outline_path(counts: str, box: Sequence[float], height: int, width: int) -> str | None:
    """The path of a mask in pixels of its canvas, to be filled by the even-odd rule.

    Args:
        counts: COCO compressed RLE string.
        box: x, y, width, height; it tells what a mask costs before it is decoded.
        height, width: The canvas.

    Returns:
        None for a mask that is empty or malformed, or too intricate to be drawn in a report.
    """
    if len(counts) > _MAX_CHARS or not box[2] * box[3] <= _MAX_BOX:
        return None
    bitmap = to_bitmaps([counts], height, width)[0]
    if bitmap is None:
        return None
    rings = boundary_pixels(bitmap.pixels)
    return "".join(ring_path(np.add(ring, (bitmap.left, bitmap.top))) for ring in rings)


def ring_path(ring: np.ndarray) -> str:
    """A closed ring of edges that alternate between horizontal, the first, and vertical.

    Args:
        ring: (K, 2) int64 x, y.
    """
    xs, ys = np.diff(ring[::2, 0], append=ring[0, 0]), np.diff(ring[::2, 1])
    first_x, first_y = ring[0].tolist()
    steps = [f"M{first_x} {first_y}"]
    for across, down in zip(xs.tolist(), [*ys.tolist(), None], strict=True):
        steps.append(f"h{across}" if down is None else f"h{across}v{down}")
    return "".join(steps) + "z"
