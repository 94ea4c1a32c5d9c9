"""Label Studio: its JSON export of tasks with annotations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

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
from segcore.errors import UsageError
from segcore.evaluation.remarks import Remarks, shorten
from segcore.evaluation.truth_masks import Unusable
from segcore.exports.formats.rle_pack import unpack_mask

_MAX_CANVAS = 1 << 28  # pixels
_LABELS = ("brushlabels", "polygonlabels", "rectanglelabels", "labels")


def read_label_studio(data: bytes, name: str, remarks: Remarks) -> Iterator[CorrectedImage]:
    """The tasks that somebody has annotated.

    Of several annotations of a task, the newest that was not cancelled counts; of several tasks of
    an image, the last, as one that had changed is exported again.

    Raises:
        UsageError: It is no JSON export of Label Studio.
    """
    try:
        tasks = parse(data)
    except Unusable as error:
        raise UsageError(f"{name} is not a Label Studio file: {error.reason}.") from None
    if not isinstance(tasks, list):
        raise UsageError(f"{name} is not a Label Studio export: it is no list of tasks.")
    last = {_key(_image_of(t["data"])): n for n, t in enumerate(tasks) if _is_annotated(t)}
    for place, task in enumerate(tasks):
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
            reason = "without data, as in JSON-MIN and unlike in JSON"
            remarks.leave_out("task", reason, f"number {place + 1}")
            continue
        annotation = _newest(task)
        image = _image_of(task["data"])
        if annotation is None:
            remarks.leave_out("task", "that nobody has annotated", image.name)
            continue
        if last[_key(image)] != place:
            remarks.leave_out("task", "of an image that a later task has, too", image.name)
            continue
        _add_regions(image, annotation, remarks)
        yield image


def _key(image: CorrectedImage) -> tuple[int | None, str]:
    return image.number, image.name


def _is_annotated(task: Any) -> bool:
    return (
        isinstance(task, dict) and isinstance(task.get("data"), dict) and _newest(task) is not None
    )


def _newest(task: dict[str, Any]) -> dict[str, Any] | None:
    done = [
        one
        for one in map(mapping, items(task.get("annotations")))
        if isinstance(one.get("result"), list) and not one.get("was_cancelled")
    ]
    # Times are ISO texts; where they are missing, the order of the file counts.
    return (
        max(enumerate(done), key=lambda p: (text(p[1].get("updated_at")), p[0]))[1]
        if done
        else None
    )


def _image_of(data: dict[str, Any]) -> CorrectedImage:
    image_id = text(data.get("segcore_image_id"))
    number = data.get("segcore_number")
    # Numbers are those of one export, and a project may have tasks of several.
    is_number = isinstance(number, int) and not isinstance(number, bool) and not image_id
    name = image_id or text(data.get("name"))
    if not name:
        link = text(data.get("image"))
        name = unquote(link.partition("?d=")[2] or link)
    return CorrectedImage(name, number=number if is_number else None, scale=100.0)


def _add_regions(image: CorrectedImage, annotation: dict[str, Any], remarks: Remarks) -> None:
    parts: dict[tuple[str, object], list[Any]] = {}
    for region in map(mapping, annotation["result"][:MAX_OBJECTS]):
        value = mapping(region.get("value"))
        where = shorten(image.name)
        kind = text(region.get("type"))
        if "original_width" in region:
            image.width = as_side(region.get("original_width"))
            image.height = as_side(region.get("original_height"))
        named = [value[key] for key in _LABELS if isinstance(value.get(key), list) and value[key]]
        if not named:
            remarks.leave_out("region", "without a label", where, kind)
            continue
        label = text(named[0][0])
        try:
            shape = _shape_of(region, value)
        except Unusable as error:
            remarks.leave_out("region", error.reason, where, error.detail)
            continue
        mask = mapping(region.get("meta")).get("mask")
        if isinstance(shape, list) and isinstance(mask, int | str):
            if (label, mask) in parts:
                parts[label, mask] += shape  # a further part of the same object
                continue
            parts[label, mask] = shape
        image.objects.append(CorrectedObject(label, shape))


def _shape_of(region: dict[str, Any], value: dict[str, Any]) -> Any:
    if as_number(region.get("image_rotation") or 0) != 0:
        raise Unusable("of an image that was turned in Label Studio")
    if "points" in value:
        values = [as_number(side) for point in items(value["points"]) for side in items(point)]
        if None in values or len(values) < 6 or len(values) % 2:
            raise Unusable("without 3 or more points")
        return [values]
    if "rle" in value:
        return _brush(region, value)
    sides = [as_number(value.get(key)) for key in ("x", "y", "width", "height")]
    if any(side is None for side in sides) or as_number(value.get("rotation") or 0) != 0:
        raise Unusable("that is no polygon, brush mask or upright rectangle")
    x, y, w, h = (side for side in sides if side is not None)
    return rectangle(x, y, x + w, y + h)


def _brush(region: dict[str, Any], value: dict[str, Any]) -> Box:
    width, height = as_side(region.get("original_width")), as_side(region.get("original_height"))
    if width is None or height is None or width * height > _MAX_CANVAS:
        raise Unusable("with a brush mask without a usable size")
    packed = items(value["rle"])

    def draw(max_pixels: int) -> np.ndarray:
        if width * height > max_pixels:
            raise Unusable("with a brush mask much larger than its image", f"{width} x {height}")
        try:
            alpha = unpack_mask(bytes(packed), 4 * width * height)
        except (ValueError, TypeError) as error:
            raise Unusable("with a damaged brush mask", str(error)) from None
        if alpha.size != width * height:
            raise Unusable("with a brush mask of another size than its image")
        return alpha.reshape(height, width) > 127

    return Box(draw, 0, 0)
