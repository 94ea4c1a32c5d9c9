"""Masks as the formats need them: outlines, run lengths by rows, small pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import cv2
import numpy as np
from pycocotools import mask as coco

from segcore.masks.bitmaps import Bitmap
from segcore.masks.polygons import outline_pixels

_SQUARE = np.ones((3, 3), np.uint8)
_SHEET_PIXELS = 1 << 18  # of masks that are traced together; fits into a core's cache


@dataclass(frozen=True)
class Outline:
    """The outlines of a mask; holes are filled.

    Attributes:
        rings: One (K, 2) float64 array x, y for each part, largest first, K >= 3, on pixel edges.
        n_holes: Holes that were filled.
        is_coarser: Whether the tolerance was raised to keep to the limit of points.
    """

    rings: list[np.ndarray]
    n_holes: int
    is_coarser: bool = False


def outlines(bitmaps: Sequence[Bitmap], tolerance: float, max_vertices: int) -> list[Outline]:
    """Outlines of the parts of each mask, in pixels of its canvas.

    Args:
        tolerance: How far a ring may deviate (Douglas-Peucker), pixels; 0: exact.
        max_vertices: Rings with more points are simplified further.
    """
    traced = _trace(bitmaps)
    rings: list[np.ndarray] = []
    shifts: list[tuple[float, float]] = []  # of each ring, pixels
    facts: list[tuple[int, int, bool]] = []  # of each mask: rings, holes, is_coarser
    for bitmap, (contours, row, n_holes) in zip(bitmaps, traced, strict=True):
        if tolerance == 0:
            exact = outline_pixels(bitmap.pixels)
            contours, row = [np.asarray(ring * 2, np.int32)[:, None] for ring in exact], 0
        if len(contours) > 1:
            contours = sorted(contours, key=cv2.contourArea, reverse=True)
        is_coarser = False
        for contour in contours:
            simple = contour if tolerance == 0 else _simplify(contour, tolerance)
            wider = max(tolerance, 0.5)
            while len(simple) > max_vertices:
                wider *= 2
                is_coarser = True
                simple = _simplify(contour, wider)
            rings.append(simple)
            shifts.append((bitmap.left, bitmap.top - row / 2))
        facts.append((len(contours), n_holes, is_coarser))
    if not rings:
        return []
    sizes = np.array([len(ring) for ring in rings])
    points = np.concatenate(rings)[:, 0] / 2 + np.repeat(np.array(shifts), sizes, axis=0)
    pieces = iter(np.split(points, np.cumsum(sizes[:-1])))
    return [Outline(list(islice(pieces, n)), holes, coarser) for n, holes, coarser in facts]


def _trace(bitmaps: Sequence[Bitmap]) -> Iterator[tuple[list[np.ndarray], int, int]]:
    """Of each mask its outer contours on the grid of half pixels, their row 0, its holes.

    Each pixel becomes a closed square of 3 x 3 points of that grid, so that a contour runs along
    the edges of pixels, but for cut inner corners of half a pixel. As a call of OpenCV costs more
    than a small mask, many masks lie below one another on a sheet.
    """
    found: list[tuple[list[np.ndarray], int, int]] = [([], 0, 0)] * len(bitmaps)
    for places in _sheets(bitmaps):
        heights = [2 * bitmaps[place].height + 2 for place in places]  # an empty row below
        rows = np.cumsum([0, *heights])
        sheet = np.zeros((rows[-1], 1 + 2 * max(bitmaps[p].width for p in places)), np.uint8)
        for place, row in zip(places, rows.tolist(), strict=False):
            bitmap = bitmaps[place]
            bottom = row + 1 + 2 * bitmap.height
            sheet[row + 1 : bottom : 2, 1 : 2 * bitmap.width : 2] = bitmap.pixels
        cv2.dilate(sheet, _SQUARE, sheet)
        contours, hierarchy = cv2.findContours(sheet, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        outer: list[list[np.ndarray]] = [[] for _ in places]
        n_holes = [0] * len(places)
        first_rows = [contour[0, 0, 1] for contour in contours]
        owners = np.searchsorted(rows, first_rows, side="right").tolist()
        depths: list[int] = []
        for contour, owner, parent in zip(
            contours, owners, hierarchy[0, :, 3].tolist(), strict=True
        ):
            depth = 0 if parent < 0 else depths[parent] + 1  # a parent comes before its children
            depths.append(depth)
            # What lies inside a hole is covered when that is filled.
            if depth == 0:
                outer[owner - 1].append(contour)
            n_holes[owner - 1] += depth % 2
        for number, place in enumerate(places):
            found[place] = outer[number], int(rows[number]), n_holes[number]
    return iter(found)


def _sheets(bitmaps: Sequence[Bitmap]) -> Iterator[list[int]]:
    """The places of masks of similar width that are traced together; a large one is alone."""
    widths = [bitmap.width for bitmap in bitmaps]
    places: list[int] = []
    n_rows = 0
    for place in sorted(range(len(bitmaps)), key=widths.__getitem__):
        n_rows += bitmaps[place].height
        if places and n_rows * widths[place] > _SHEET_PIXELS:
            yield places
            places, n_rows = [], bitmaps[place].height
        places.append(place)
    if places:
        yield places


def _simplify(contour: np.ndarray, tolerance: float) -> np.ndarray:
    simple = cv2.approxPolyDP(contour, 2 * tolerance, True)
    if len(simple) >= 3:
        return simple
    x, y, w, h = cv2.boundingRect(contour)  # of a part smaller than the tolerance
    corners = [(x, y), (x + w - 1, y), (x + w - 1, y + h - 1), (x, y + h - 1)]
    return np.array(corners, np.int32)[:, None]


def outline_iou(bitmap: Bitmap, rings: list[np.ndarray]) -> float:
    """IoU of rings, filled as pycocotools fills polygons, with the mask."""
    h, w = bitmap.height + 2, bitmap.width + 2
    padded = np.zeros((h, w), np.uint8, order="F")
    padded[1:-1, 1:-1] = bitmap.pixels
    shifted = [(ring - (bitmap.left - 1, bitmap.top - 1)).ravel().tolist() for ring in rings]
    drawn = coco.merge(coco.frPyObjects(shifted, h, w))
    return float(coco.iou([drawn], [coco.encode(padded)], [0])[0, 0])


def row_runs(bitmap: Bitmap) -> np.ndarray:
    """Run lengths of the box, row by row, zeros first."""
    flat = bitmap.pixels.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat[0]:
        edges = np.concatenate(([0], edges))
    return np.diff(edges, prepend=0, append=flat.size)


def canvas_row_runs(
    bitmaps: Sequence[Bitmap], height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Run lengths of masks on the whole canvas, row by row, zeros first.

    Returns:
        Those of all masks one behind the other, the last of each perhaps 0; how many each has.
    """
    sizes = np.array([[b.height, b.width + 1, b.top, b.left] for b in bitmaps], np.int64)
    n_pixels = sizes[:, 0] * sizes[:, 1]
    ends = np.cumsum(n_pixels)
    flat = np.zeros(int(ends[-1]) + 1, np.uint8)  # an empty pixel before, a column behind each
    for bitmap, stop, n in zip(bitmaps, ends.tolist(), n_pixels.tolist(), strict=True):
        box = flat[1 + stop - n : 1 + stop].reshape(bitmap.height, bitmap.width + 1)
        box[:, :-1] = bitmap.pixels
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    mask = np.searchsorted(ends, edges, side="right")
    _, columns, top, left = sizes[mask].T
    row, column = np.divmod(edges - (ends - n_pixels)[mask], columns)
    places = (row + top) * width + column + left
    starts, stops, owner = places[::2], places[1::2], mask[::2]
    is_other = owner[1:] != owner[:-1]
    is_apart = (starts[1:] != stops[:-1]) | is_other  # not over a border into the next row
    is_first, is_last = np.concatenate(([True], is_apart)), np.concatenate((is_apart, [True]))
    starts, stops, owner = starts[is_first], stops[is_last], owner[is_first]
    counts = np.bincount(owner, minlength=len(bitmaps))
    borders = np.stack([starts, stops], 1).ravel()
    last = 2 * np.cumsum(counts)  # behind the borders of each mask
    borders = np.insert(borders, last, height * width)
    n_runs = 2 * counts + 1
    runs = np.diff(borders, prepend=0)
    first = np.cumsum(n_runs) - n_runs
    runs[first] = borders[first]
    return runs, n_runs


def box_png(bitmap: Bitmap) -> bytes:
    """The box as a grey PNG of 0 and 255."""
    ok, data = cv2.imencode(".png", np.ascontiguousarray(bitmap.pixels * np.uint8(255)))
    assert ok, "a bitmap has at least one pixel"
    return data.tobytes()
