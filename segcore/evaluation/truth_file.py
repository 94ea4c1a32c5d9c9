"""A COCO instances file -> a checked `GroundTruth`.

What makes the whole file unusable (an image or a class that cannot be told from others) is a
`UsageError`. An annotation that cannot be used is left out, counted and named in the remarks; the
rest counts. Ids may be whole numbers or text.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Container, Mapping
from itertools import chain
from typing import Any

import numpy as np

from segcore.errors import UsageError
from segcore.evaluation.ground_truth import (
    Annotation,
    GroundTruth,
    Id,
    TruthCategory,
    TruthImage,
    id_order,
)
from segcore.evaluation.remarks import Remarks, shorten
from segcore.evaluation.truth_masks import Unusable
from segcore.masks.rle import MAX_CANVAS

_MAX_AREA = 1e10  # pycocotools ignores objects of a larger area without a word
_MAX_COORDINATE = 1e9  # of a box
_ROWS_AT_ONCE = 1000


def load_ground_truth(data: bytes, name: str) -> GroundTruth:
    """Read and check the bytes of a COCO instances file; its images must have a `file_name`.

    Raises:
        UsageError: It is not JSON, not in COCO's format, or has no images or no classes.
    """
    try:
        document = json.loads(data)
        del data  # as large as all that is read from it
    except RecursionError:
        raise UsageError(f"{name} is not a COCO ground truth: it is nested too deeply.") from None
    except ValueError as error:
        raise UsageError(f"{name} is not JSON: {error}") from None
    truth = check_ground_truth(document, name)
    for number, image in enumerate(truth.images.values()):
        if not image.file_name:
            raise UsageError(f"{name}: images[{number}] has no `file_name`.")
    if not truth.images or not truth.categories:
        raise UsageError(f"{name} has no images or no categories: there is nothing to measure.")
    return truth


def check_ground_truth(document: Any, name: str = "the ground truth") -> GroundTruth:
    """Check a COCO instances document; it is not changed.

    Raises:
        UsageError: It is not in COCO's format, or images or classes cannot be told apart.
    """
    rows: dict[str, list[Any]] = {}
    for key in ("images", "annotations", "categories"):
        value = document.get(key) if isinstance(document, Mapping) else None
        if not isinstance(value, list | tuple):
            raise UsageError(
                f"{name} is not a COCO ground truth: it has no list `{key}`.",
                "Expected a COCO instances file with images, annotations and categories.",
            )
        rows[key] = list(value)
    remarks = Remarks()
    images = _check_images(rows["images"], name, remarks)
    categories = _check_categories(rows["categories"], name, remarks)
    by_image: dict[Id, list[Annotation]] = defaultdict(list)
    seen: set[Id] = set()
    for start in range(0, len(rows["annotations"]), _ROWS_AT_ONCE):
        some = rows["annotations"][start : start + _ROWS_AT_ONCE]
        annotations = _plain_annotations(some, images, categories, seen)
        if annotations is None:
            annotations = []
            for number, row in enumerate(some, start):
                annotation = _check_annotation(row, number, images, categories, remarks)
                if annotation is not None:
                    _remark_on_id(row.get("id"), seen, remarks)
                    annotations.append(annotation)
        for annotation in annotations:
            by_image[annotation.image_id].append(annotation)
    ordered = sorted(categories.values(), key=lambda category: id_order(category.id))
    return GroundTruth(name, images, tuple(ordered), dict(by_image), remarks)


def read_id(value: Any) -> Id | None:
    """A whole number or a text that is not empty; None for all else."""
    if isinstance(value, str):
        return value or None
    if not _is_number(value) or value != value // 1:
        return None
    return int(value)


def _entry_id(row: Any, where: str) -> Id:
    if not isinstance(row, Mapping):
        raise UsageError(f"{where} is not an object.")
    if row.get("id") is None:
        raise UsageError(f"{where} has no `id`.")
    entry_id = read_id(row["id"])
    if entry_id is None:
        raise UsageError(
            f"{where} has the id {shorten(row['id'])}.", "Ids are whole numbers or text."
        )
    return entry_id


def _check_images(rows: list[Any], name: str, remarks: Remarks) -> dict[Id, TruthImage]:
    images: dict[Id, TruthImage] = {}
    for number, row in enumerate(rows):
        where = f"{name}: images[{number}]"
        image_id = _entry_id(row, where)
        file_name = row.get("file_name")
        if not isinstance(file_name, str | None):
            raise UsageError(f"{where} has the file_name {shorten(file_name)}, which is no text.")
        image_type = row.get("image_type")
        if not isinstance(image_type, str | None):
            raise UsageError(f"{where} has the image_type {shorten(image_type)}, which is no text.")
        size = _check_size(row.get("width"), row.get("height"), where)
        archive_id = row.get("segcore_image_id")
        image = TruthImage(
            image_id,
            file_name or "",
            *size,
            image_type=image_type or "",
            archive_id=archive_id if isinstance(archive_id, str) else "",
        )
        if image_id not in images:
            images[image_id] = image
        elif images[image_id] == image:
            remarks.add("image", "listed more than once: counted once", image_id)
        else:
            raise UsageError(
                f"{where} has the id {shorten(image_id)}, which another image has, too "
                f"({shorten(images[image_id].file_name)} and {shorten(image.file_name)}).",
                "Give each image an id of its own.",
            )
    return images


def _check_size(width: Any, height: Any, where: str) -> tuple[int | None, int | None]:
    sides: list[int | None] = []
    for side, value in (("width", width), ("height", height)):
        if value is None:
            sides.append(None)
            continue
        number = None if isinstance(value, str) else read_id(value)
        if not isinstance(number, int) or not 1 <= number <= MAX_CANVAS:
            raise UsageError(f"{where} has the {side} {shorten(value)}.")
        sides.append(number)
    if (sides[0] or 1) * (sides[1] or 1) > MAX_CANVAS:
        raise UsageError(f"{where} has {sides[0]} x {sides[1]} pixels, over {MAX_CANVAS:,}.")
    return sides[0], sides[1]


def _check_categories(rows: list[Any], name: str, remarks: Remarks) -> dict[Id, TruthCategory]:
    categories: dict[Id, TruthCategory] = {}
    for number, row in enumerate(rows):
        where = f"{name}: categories[{number}]"
        category_id = _entry_id(row, where)
        label = row.get("name")
        if _is_number(label):
            label = str(label)
        if not isinstance(label, str) or not label.strip():
            what = "no `name`" if label is None else f"the name {shorten(label)}"
            raise UsageError(f"{where} has {what}.", "A class needs a name.")
        category = TruthCategory(category_id, label)
        if category_id not in categories:
            categories[category_id] = category
        elif categories[category_id] == category:
            remarks.add("category", "listed more than once: counted once", category_id)
        else:
            raise UsageError(
                f"{where} has the id {shorten(category_id)}, which another class has, too "
                f"({shorten(categories[category_id].name)} and {shorten(label)}).",
                "Give each class an id of its own.",
            )
    return categories


def _plain_annotations(
    rows: list[Any],
    images: Mapping[Id, TruthImage],
    categories: Mapping[Id, TruthCategory],
    seen: set[Id],
) -> list[Annotation] | None:
    """What `_check_annotation` gives for rows without anything odd; None where one of them is odd.

    Files have millions of such rows, so that they are looked at as columns.

    Args:
        seen: Ids of the rows before; those of these are added.
    """
    if set(map(type, rows)) != {dict}:
        return None
    ids, image_ids, category_ids, areas, boxes = (
        [row.get(key) for row in rows] for key in ("id", "image_id", "category_id", "area", "bbox")
    )
    crowds = [row.get("iscrowd", 0) for row in rows]
    if {type(value) for column in (ids, image_ids, category_ids, crowds) for value in column} != {
        int
    }:
        return None
    own = set(ids)
    sides = [box for box in boxes if box is not None]
    is_plain = (
        len(own) == len(rows)
        and 0 not in own
        and seen.isdisjoint(own)
        and images.keys() >= set(image_ids)
        and categories.keys() >= set(category_ids)
        and set(crowds) <= {0, 1}
        and _are_lengths([area for area in areas if area is not None], _MAX_AREA)
        and set(map(type, sides)) <= {list}
        and set(map(len, sides)) <= {4}
        and _are_lengths(list(chain.from_iterable(sides)), _MAX_COORDINATE)
    )
    if not is_plain:
        return None
    seen |= own
    return [
        Annotation(
            str(annotation_id),
            image_id,
            category_id,
            row.get("segmentation"),
            None if area is None else float(area),
            None if box is None else (float(box[0]), float(box[1]), float(box[2]), float(box[3])),
            crowd == 1,
        )
        for annotation_id, image_id, category_id, row, area, box, crowd in zip(
            ids, image_ids, category_ids, rows, areas, boxes, crowds, strict=True
        )
    ]


def _are_lengths(values: list[Any], most: float) -> bool:
    """Whether all are plain numbers from 0 to `most`."""
    if not values:
        return True
    if not set(map(type, values)) <= {int, float}:
        return False
    # Of NaN, which min and max may pass over, the sum is NaN.
    return min(values) >= 0 and max(values) <= most and sum(values) >= 0


def _check_annotation(
    row: Any,
    number: int,
    images: Mapping[Id, TruthImage],
    categories: Mapping[Id, TruthCategory],
    remarks: Remarks,
) -> Annotation | None:
    """The annotation; None where it is left out."""
    name = f"annotations[{number}]"
    if not isinstance(row, Mapping):
        remarks.leave_out("annotation", "that is no object", name)
        return None
    annotation_id = read_id(row.get("id"))
    name = name if annotation_id is None else str(annotation_id)

    def remark(reason: str, detail: str = "") -> None:
        remarks.add("annotation", reason, name, detail)

    try:
        image_id = _find_id(row, "image_id", images, remark)
        category_id = _find_id(row, "category_id", categories, remark)
        is_crowd = _read_crowd(row.get("iscrowd"), remark)
    except Unusable as error:
        remarks.leave_out("annotation", error.reason, name, error.detail)
        return None
    return Annotation(
        name,
        image_id,
        category_id,
        row.get("segmentation"),
        _read_area(row.get("area"), remark),
        _read_box(row.get("bbox"), remark),
        is_crowd,
    )


def _find_id(
    row: Mapping[str, Any], key: str, known: Container[Id], remark: Callable[..., None]
) -> Id:
    value = read_id(row.get(key))
    if value is not None and value in known:
        return value
    if value is None:
        raise Unusable(f"without a usable {key}", f"{key}: {shorten(row.get(key))}")
    # Tools that write tables turn numbers into text, and the other way round.
    other: Id = str(value) if isinstance(value, int) else value
    if isinstance(value, str) and re.fullmatch(r"0|-?[1-9][0-9]{0,17}", value):
        other = int(value)
    if other in known:
        kind = "text" if isinstance(value, str) else "a number"
        remark(f"whose {key} is {kind}, unlike the id that it means: taken as the same")
        return other
    raise Unusable(f"with a {key} that the file does not list", f"{key}: {shorten(value)}")


def _read_crowd(value: Any, remark: Callable[..., None]) -> bool:
    if value is None:
        return False
    if isinstance(value, str) and value.strip() in ("0", "1"):
        remark("whose iscrowd is text: taken as the number")
        return value.strip() == "1"
    if isinstance(value, bool) or _is_number(value):
        if value not in (0, 1):
            remark("whose iscrowd is neither 0 nor 1: taken as a crowd")
        return value != 0
    raise Unusable("whose iscrowd is neither 0 nor 1", f"iscrowd: {shorten(value)}")


def _read_area(value: Any, remark: Callable[..., None]) -> float | None:
    if value is None:
        return None
    if _is_number(value) and 0 <= value <= _MAX_AREA:
        return float(value)
    remark(
        "with an area that cannot be used: that of the mask was taken", f"area: {shorten(value)}"
    )
    return None


def _read_box(value: Any, remark: Callable[..., None]) -> tuple[float, float, float, float] | None:
    if value is None:
        return None
    is_box = isinstance(value, list | tuple | np.ndarray) and len(value) == 4
    if is_box and all(_is_number(v) and abs(v) <= _MAX_COORDINATE for v in value):
        x, y, w, h = (float(v) for v in value)
        if w >= 0 and h >= 0:
            return x, y, w, h
    remark("with a bbox that cannot be used: that of the mask was taken", f"bbox: {shorten(value)}")
    return None


def _is_number(value: Any) -> bool:
    """A real number; not NaN, infinite or true."""
    is_real = isinstance(value, int | float | np.integer | np.floating)
    return is_real and not isinstance(value, bool) and bool(-math.inf < value < math.inf)


def _remark_on_id(value: Any, seen: set[Id], remarks: Remarks) -> None:
    """Say where pycocotools, which goes by these ids, gives other numbers."""
    annotation_id = int(value) if isinstance(value, bool) else read_id(value)  # as Python does
    if annotation_id is None:
        return
    if annotation_id == 0:
        reason = "with the id 0, which pycocotools takes as undetected: counted like any other"
        remarks.add("annotation", reason, 0)
    if annotation_id in seen:
        remarks.add("annotation", "with the id of another: counted on its own", annotation_id)
    seen.add(annotation_id)
