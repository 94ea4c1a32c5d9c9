"""labelme: a JSON file for each image."""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any

import numpy as np

from segcore.corrections.objects import (
    MAX_OBJECTS,
    Box,
    CorrectedImage,
    CorrectedObject,
    as_number,
    as_side,
    rectangle,
)
from segcore.corrections.readers.json_files import items, mapping, parse, text
from segcore.errors import ImageError
from segcore.evaluation.remarks import Remarks
from segcore.evaluation.truth_masks import Unusable
from segcore.images import DecodeOptions, decode_image

_CIRCLE_POINTS = 64
_MAX_MASK_PIXELS = 1 << 26


def read_labelme(data: bytes, name: str, remarks: Remarks) -> CorrectedImage:
    """The objects of one image.

    Args:
        name: The file, relative to the folder of the export.

    Raises:
        Unusable: It is no file of labelme.
    """
    document = parse(data)
    if not isinstance(document, dict) or not isinstance(document.get("shapes"), list):
        raise Unusable("that are not of labelme")
    image = CorrectedImage(
        text(mapping(document.get("segcore")).get("image_id")) or name.rpartition(".")[0],
        width=as_side(document.get("imageWidth")),
        height=as_side(document.get("imageHeight")),
    )
    groups: dict[tuple[str, object], list[Any]] = {}
    for shape in map(mapping, document["shapes"][:MAX_OBJECTS]):
        label = text(shape.get("label"))
        try:
            read = _shape_of(shape)
        except Unusable as error:
            remarks.leave_out("shape", error.reason, name, error.detail)
            continue
        group = shape.get("group_id")
        if isinstance(read, list) and isinstance(group, int | str):
            if (label, group) in groups:
                groups[label, group] += read  # a further part of the same object
                continue
            groups[label, group] = read
        image.objects.append(CorrectedObject(label, read))
    return image


def _shape_of(shape: dict[str, Any]) -> Any:
    kind = text(shape.get("shape_type")) or "polygon"
    values = [as_number(side) for point in items(shape.get("points")) for side in items(point)]
    if not values or None in values or len(values) % 2:
        raise Unusable("without usable points")
    numbers = [value for value in values if value is not None]
    if kind == "polygon" and len(numbers) >= 6:
        return [numbers]
    if len(numbers) == 4 and kind == "mask":
        return _mask(shape, numbers)
    if len(numbers) == 4 and kind == "rectangle":
        return rectangle(*numbers)
    if len(numbers) == 4 and kind == "circle":
        x, y, rim_x, rim_y = numbers
        radius = math.hypot(rim_x - x, rim_y - y)
        angles = (2 * math.pi * k / _CIRCLE_POINTS for k in range(_CIRCLE_POINTS))
        return [[v for a in angles for v in (x + radius * math.cos(a), y + radius * math.sin(a))]]
    raise Unusable(f"of the kind {kind}, which is no mask, or with too few points")


def _mask(shape: dict[str, Any], corners: list[float]) -> Box:
    try:
        data = base64.b64decode(text(shape.get("mask")), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unusable("with a mask that is no base64", str(error)) from None
    left, top = (math.floor(min(corners[i], corners[i + 2])) for i in (0, 1))
    if max(map(abs, (left, top))) > 2**31:
        raise Unusable("without a pixel on its image")

    def draw(max_pixels: int) -> np.ndarray:
        options = DecodeOptions(max_pixels=min(max_pixels, _MAX_MASK_PIXELS))
        try:
            return np.asarray(decode_image(data, options).any(axis=2))
        except ImageError as error:
            raise Unusable("with a mask that is no picture", error.message) from None

    return Box(draw, left, top)
