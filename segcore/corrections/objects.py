"""An image as an annotation tool gives it back, and its objects as masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as coco

from segcore import masks
from segcore.evaluation.remarks import Remarks
from segcore.evaluation.truth_masks import Rle, Unusable
from segcore.masks.polygons import check_polygon

MAX_DOCUMENT_BYTES = 1 << 30
MAX_OBJECTS = 100_000  # of one image
# A box may reach beyond its image, but not be much larger.
_MAX_BEYOND = 4
_MIN_BOX_PIXELS = 1 << 20


@dataclass(frozen=True)
class Box:
    """A mask inside a box, and the place of the box on the canvas.

    A line of text may be a mask of any size, so masks are drawn one by one, on a canvas that is
    known.

    Attributes:
        draw: The most pixels that it may have -> (h, w) bool. Raises `Unusable`.
    """

    draw: Callable[[int], np.ndarray]
    left: int
    top: int


# Polygons (each x0, y0, x1, y1, ...), a box, or compressed RLE of the whole canvas.
Shape = list[Sequence[float]] | Box | Rle


@dataclass(frozen=True)
class CorrectedObject:
    """One object, not yet checked."""

    label: str
    shape: Shape


@dataclass
class CorrectedImage:
    """One image with its objects.

    Attributes:
        name: Its file name, as the tool has it; "" where `number` says which it is.
        number: Its id in the export; None where `name` says which it is.
        width, height: Of the canvas; None where the file does not say.
        scale: Polygons are in shares of the width and height by these numbers; None: in pixels.
    """

    name: str
    objects: list[CorrectedObject] = field(default_factory=list)
    number: int | None = None
    width: int | None = None
    height: int | None = None
    scale: float | None = None


def to_rle(shape: Shape, height: int, width: int, scale: float | None) -> Rle:
    """An object on the canvas of its image; what lies beyond is cut off.

    Raises:
        Unusable: There is nothing on the canvas, or the shape is malformed.
    """
    if isinstance(shape, Box):
        rle = _from_box(shape, height, width)
    elif isinstance(shape, dict):
        rle = shape
    else:
        rle = _from_polygons(shape, height, width, scale)
    if not coco.area(rle):
        raise Unusable("without a pixel on its image")
    return rle


def _from_box(box: Box, height: int, width: int) -> Rle:
    pixels = box.draw(max(_MAX_BEYOND * height * width, _MIN_BOX_PIXELS))
    h, w = pixels.shape
    top, left = max(0, -box.top), max(0, -box.left)
    bottom, right = min(h, height - box.top), min(w, width - box.left)
    if bottom <= top or right <= left:
        raise Unusable("without a pixel on its image")
    columns = np.zeros((height, right - left), bool)
    columns[box.top + top : box.top + bottom] = pixels[top:bottom, left:right]
    runs = masks.string_to_counts(masks.encode(columns))
    before = (box.left + left) * height
    after = (width - box.left - right) * height
    runs[0] += before
    if runs.size % 2:
        runs[-1] += after
    elif after:
        runs = np.concatenate((runs, [after]))
    return {"size": [height, width], "counts": masks.counts_to_string(runs)}


def _from_polygons(
    polygons: list[Sequence[float]], height: int, width: int, scale: float | None
) -> Rle:
    usable = []
    problem = "it has no points"
    for polygon in polygons:
        try:
            points = check_polygon(_scaled(polygon, height, width, scale), height, width)
            usable.append(points)
        except ValueError as error:
            problem = str(error)
    if not usable:
        raise Unusable("without a polygon that can be read", problem)
    rle: Rle = coco.merge(coco.frPyObjects(usable, height, width))
    return rle


def _scaled(
    polygon: Sequence[float], height: int, width: int, scale: float | None
) -> Sequence[float]:
    if scale is None:
        return polygon
    sides = (width / scale, height / scale)
    return [float(value) * sides[i % 2] for i, value in enumerate(polygon)]


def as_number(value: Any) -> float | None:
    """A finite number, or text of one; None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def as_side(value: Any) -> int | None:
    """A width or height in pixels; None where there is none."""
    number = as_number(value)
    return int(number) if number is not None and 1 <= number < 2**31 else None


def rectangle(x1: float, y1: float, x2: float, y2: float) -> list[Sequence[float]]:
    """The corners of a rectangle, as polygons."""
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def leave_out(remarks: Remarks, noun: str, error: Unusable, item: str) -> None:
    """Record what cannot be used."""
    remarks.leave_out(noun, error.reason, item, error.detail)
