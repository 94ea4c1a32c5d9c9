"""A COCO `segmentation` in any form that files hold -> a mask, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco

from segcore import masks
from segcore.masks.measure import measure_masks
from segcore.masks.polygons import check_polygon

Rle = dict[str, Any]
Box = tuple[float, float, float, float]


class Unusable(Exception):
    """An annotation cannot be used.

    Args:
        reason: What follows "3 annotations", such as "without a segmentation".
        detail: What is wrong with this one.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


def read_mask(segmentation: Any, height: int, width: int) -> tuple[Rle, str]:
    """Polygons, uncompressed or compressed RLE, or a list of RLE -> compressed RLE.

    Returns:
        The mask, and what is wrong with the first polygon that was left out ("": none was).

    Raises:
        Unusable: There is no mask, or it is malformed or of another size.
    """
    if segmentation is None:
        raise Unusable("without a segmentation")
    if not isinstance(segmentation, list | tuple | Mapping):
        raise Unusable("whose segmentation is neither polygons nor RLE")
    if not segmentation:
        raise Unusable("with an empty segmentation")
    if isinstance(segmentation, Mapping):
        return _read_rle(segmentation, height, width), ""
    if all(isinstance(piece, Mapping) for piece in segmentation):
        pieces = [_read_rle(piece, height, width) for piece in segmentation]
        return (pieces[0] if len(pieces) == 1 else coco.merge(pieces)), ""
    return _read_polygons(segmentation, height, width)


class Measured(NamedTuple):
    """A compressed RLE that is well-formed and fills its canvas."""

    rle: Rle
    area: int
    box: Box


def measure_rles(rows: Sequence[tuple[Any, list[int]]]) -> list[Measured | None]:
    """The masks among segmentations that are plain compressed RLE and valid.

    Args:
        rows: The segmentation, and [height, width] of its image.

    Returns:
        For each what `read_mask`, `mask_area` and `mask_box` give; None for the others.
    """
    keys: list[int] = []
    texts: list[bytes] = []
    for key, (segmentation, size) in enumerate(rows):
        if type(segmentation) is dict and segmentation.get("size") == size:
            counts = segmentation.get("counts")
            if isinstance(counts, str) and counts.isascii():
                counts = counts.encode()
            if isinstance(counts, bytes):
                keys.append(key)
                texts.append(counts)
    sizes = [rows[key][1] for key in keys]
    heights, widths = np.array(sizes, np.int64).reshape(-1, 2).T
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    measures = measure_masks(np.frombuffer(b"".join(texts), np.uint8), offsets, heights, widths)
    areas, boxes = measures.areas.tolist(), measures.boxes.astype(np.float64).tolist()
    found: list[Measured | None] = [None] * len(rows)
    for place in np.flatnonzero(measures.valid).tolist():
        rle = {"size": sizes[place], "counts": texts[place]}
        found[keys[place]] = Measured(rle, areas[place], tuple(boxes[place]))
    return found


def mask_area(rle: Rle) -> int:
    """Pixels of a mask."""
    return int(coco.area(rle))


def mask_box(rle: Rle) -> Box:
    """x, y, w, h around the pixels of a mask."""
    x, y, w, h = (float(value) for value in coco.toBbox(rle))
    return x, y, w, h


def turn(rle: Rle, bbox: Box | None, orientation: int) -> tuple[Rle, Box | None]:
    """A mask and its box on stored pixels -> on the image as its EXIF orientation shows it."""
    height, width = rle["size"]
    pixels = turn_pixels(masks.decode(rle["counts"], height, width), orientation)
    turned = {"size": list(pixels.shape), "counts": masks.encode(pixels)}
    if bbox is None:
        return turned, None
    x, y, w, h = bbox
    if orientation >= 5:
        x, y, w, h = y, x, h, w
    new_height, new_width = pixels.shape
    if orientation in (2, 3, 6, 7):
        x = new_width - x - w
    if orientation in (3, 4, 7, 8):
        y = new_height - y - h
    return turned, (x, y, w, h)


def turn_pixels(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W) as stored -> as an EXIF orientation of 1 to 8 shows them."""
    if orientation >= 5:
        pixels = pixels.T
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _read_polygons(polygons: Sequence[Any], height: int, width: int) -> tuple[Rle, str]:
    usable, problem = [], ""
    for polygon in polygons:
        try:
            usable.append(check_polygon(polygon, height, width))
        except ValueError as error:
            problem = problem or str(error)
    if not usable:
        raise Unusable("without a polygon that can be read", problem)
    return coco.merge(coco.frPyObjects(usable, height, width)), problem


def _read_rle(rle: Mapping[str, Any], height: int, width: int) -> Rle:
    size, counts = rle.get("size"), rle.get("counts")
    if (
        not isinstance(size, list | tuple | np.ndarray)
        or len(size) != 2
        or not all(_is_integer(side) for side in size)
    ):
        raise Unusable("with an RLE without a usable `size`")
    if (int(size[0]), int(size[1])) != (height, width):
        raise Unusable(
            "with a mask of another size than its image",
            f"{size[1]} x {size[0]}, not {width} x {height}",
        )
    try:
        if isinstance(counts, str | bytes):
            runs = masks.string_to_counts(counts)
            text = counts.encode() if isinstance(counts, str) else bytes(counts)
        elif isinstance(counts, list | tuple) and all(_is_integer(run) for run in counts):
            runs = np.array([int(run) for run in counts], np.int64)
            text = masks.counts_to_string(runs)
        else:
            raise Unusable("with an RLE without usable `counts`")
        if int(runs.sum()) != height * width:
            raise ValueError(f"its runs cover {int(runs.sum()):,} of {height * width:,} pixels")
    except (ValueError, OverflowError) as error:
        raise Unusable("with a damaged RLE", str(error)) from None
    return {"size": [height, width], "counts": text}


def _is_integer(value: Any) -> bool:
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, Integral) and not isinstance(value, bool)
