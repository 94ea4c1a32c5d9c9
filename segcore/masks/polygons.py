"""Polygons in COCO pixel-edge coordinates <-> RLE strings."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from pycocotools import mask as coco

from segcore.masks.rle import MAX_CANVAS, bbox, decode

_MAX_CANVASES_BEYOND = 8
_MAX_OUTLINE = 4_000_000  # pixels; pycocotools takes some 100 bytes for each
_MAX_SIDE = 40_000_000  # pixels; pycocotools holds a fifth of a pixel in 32 bits
_NUMBERS = (int, float, np.float64, np.float32, np.int64, np.int32)


def from_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> bytes:
    """Union of polygons -> compressed RLE string, rasterised as pycocotools does.

    Args:
        polygons: Each x0, y0, x1, y1, ... of at least three points, in pixels; (0, 0) is the outer
            corner of the top-left pixel. They may extend far beyond the canvas: `check_polygon`.
        height, width: The canvas.

    Raises:
        ValueError: A polygon is malformed, lies far outside the canvas or is too long.
    """
    if height < 1 or width < 1 or height * width > MAX_CANVAS:
        raise ValueError(f"canvas {height}x{width} is outside 1..{MAX_CANVAS} pixels")
    if not len(polygons):
        raise ValueError("a segmentation has at least one polygon")
    flat = [check_polygon(polygon, height, width) for polygon in polygons]
    counts: bytes = coco.merge(coco.frPyObjects(flat, height, width))["counts"]
    return counts


def check_polygon(polygon: Sequence[float], height: int, width: int) -> list[float]:
    """A polygon as pycocotools takes it.

    Rasterising takes time and memory in proportion to the outline's length, so that is bounded:
    points lie within eight canvases beyond each border, and outlines have 4 million pixels or less.

    Raises:
        ValueError: It is no flat list of 3 or more pairs of finite numbers, or out of these bounds.
    """
    if not isinstance(polygon, np.ndarray) and not (
        isinstance(polygon, Sequence) and all(type(value) in _NUMBERS for value in polygon)
    ):
        raise ValueError("a polygon is a flat list of numbers")
    try:
        points = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("a polygon is a flat list of numbers") from None
    if points.ndim != 1 or points.size < 6 or points.size % 2:
        raise ValueError(f"a polygon is 3 or more x, y pairs, got {points.size} numbers")
    pairs = points.reshape(-1, 2)
    low, high = pairs.min(axis=0), pairs.max(axis=0)
    size = np.array([width, height], np.float64)
    far = _MAX_CANVASES_BEYOND
    if not ((low >= -far * size) & (high <= (far + 1) * size)).all():  # NaN too
        raise ValueError(f"a polygon has points far outside the canvas {height}x{width}")
    length = float((high - low).max()) * len(pairs)  # at most
    if length > _MAX_OUTLINE:
        steps = np.abs(np.diff(pairs, axis=0, append=pairs[:1]))
        length = float(steps.max(axis=1).sum())
    if length > _MAX_OUTLINE or max(height, width) > _MAX_SIDE:
        raise ValueError(f"the outline of a polygon is longer than {_MAX_OUTLINE:,} pixels")
    return points.tolist()


def to_polygons(
    counts: bytes | str, height: int, width: int, tolerance: float = 0.0
) -> list[np.ndarray]:
    """Outlines of a mask along pixel edges; holes are filled, as COCO polygons have none.

    With `tolerance` 0, `from_polygons` of the result gives the mask again, its holes filled. Pixels
    that touch only at a corner belong to separate parts.

    Args:
        counts: Compressed RLE string.
        height, width: The canvas.
        tolerance: How far a simplified outline may deviate (Douglas-Peucker), in pixels; 0: exact.

    Returns:
        One (K, 2) float32 array x, y for each part, K >= 3, closed without repeating a point.

    Raises:
        ValueError: The string is malformed or does not fill the canvas.
    """
    left, top, w, h = bbox(counts, height, width)
    if w == 0:
        return []
    rings = []
    for ring in outline_pixels(decode(counts, height, width)[top : top + h, left : left + w]):
        points = np.add(ring, (left, top)).astype(np.float32)
        if tolerance > 0:
            simplified = cv2.approxPolyDP(points[:, None], tolerance, True)
            points = np.asarray(simplified, np.float32)[:, 0]
        if len(points) >= 3:
            rings.append(points)
    return rings


def outline_pixels(pixels: np.ndarray) -> list[np.ndarray]:
    """Outlines of the parts of a bitmap along pixel edges, each corner a point; holes are filled.

    Args:
        pixels: (H, W) bool or integer; every value other than 0 is set.

    Returns:
        One (K, 2) int64 array x, y for each part; (0, 0) is the outer corner of the first pixel.
    """
    padded = np.pad(pixels != 0, 1)
    # Holes are filled first: a part inside a hole would be an outline within another.
    background = cv2.connectedComponents((~padded).astype(np.uint8), connectivity=8)[1]
    return [ring for ring, is_outer in _rings(background != background[0, 0]) if is_outer]


def boundary_pixels(pixels: np.ndarray) -> list[np.ndarray]:
    """Outlines of a bitmap along pixel edges, those of its holes, too.

    Filled by the even-odd rule, all of them together are exactly the set pixels.

    Args, returns:
        As for `outline_pixels`; each ring begins with a horizontal edge, and its edges alternate
        between the two directions.
    """
    return [ring for ring, _ in _rings(np.pad(pixels != 0, 1))]


def _rings(padded: np.ndarray) -> list[tuple[np.ndarray, bool]]:
    """Corners of each outline of a bitmap that has a border of one empty pixel.

    Corners on a line of the grid are joined in pairs, in each direction; an outline alternates
    between the two directions. A point where two pixels touch diagonally counts as two corners,
    one for each pixel.

    Returns:
        (K, 2) int64 x, y of each outline, and whether it is not that of a hole; (0, 0) is the outer
        corner of the first pixel inside the border.
    """
    # The four pixels around each point of the grid: a b
    #                                                c d
    a, b, c, d = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    is_double = (a == d) & (b == c) & (a != b)
    y, x = np.nonzero((a ^ b ^ c ^ d) | is_double)
    copies = np.where(is_double[y, x], 2, 1)
    y, x = np.repeat(y, copies), np.repeat(x, copies)
    copy = np.arange(y.size) - np.repeat(np.cumsum(copies) - copies, copies)
    # The first copy has the edge to the left; of the pixels a and d it also has the one upwards.
    vertical_copy = np.where(a[y, x], copy, 1 - copy)
    partners = []
    for order in (np.lexsort((copy, x, y)), np.lexsort((vertical_copy, y, x))):
        partner = np.empty_like(order)
        partner[order[::2]], partner[order[1::2]] = order[1::2], order[::2]
        partners.append(partner.tolist())
    horizontal_partner, vertical_partner = partners
    is_visited = [False] * y.size
    rings = []
    for start in range(y.size):  # row-major, so that a ring starts at its top-left corner
        ring, corner = [], start
        while not is_visited[corner]:
            across = horizontal_partner[corner]
            is_visited[corner] = is_visited[across] = True
            ring += [corner, across]
            corner = vertical_partner[across]
        if ring:  # the outline of a hole has an empty pixel there
            is_outer = bool(d[y[start], x[start]])
            rings.append((np.stack([x[ring], y[ring]], axis=1), is_outer))
    return rings
