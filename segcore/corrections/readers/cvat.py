"""CVAT for images 1.1: XML, read as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO
from xml.etree import ElementTree

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
from segcore.errors import UsageError
from segcore.evaluation.remarks import Remarks, shorten
from segcore.evaluation.truth_masks import Unusable

_BLOCK_BYTES = 1 << 20
# A zip of a few megabytes may hold an XML of many gigabytes, which is read as a stream. What is
# held of it at once has bounds.
_MAX_ELEMENT_BYTES = 64 << 20
_MAX_IMAGE_CHARACTERS = 128 << 20  # of the masks and polygons of one image
_MAX_BOX = 1 << 28  # pixels
_SHAPES = ("mask", "polygon", "box", "polyline", "points", "ellipse", "cuboid", "skeleton")


class _Images:
    """Collects the elements of one image at a time; everything else is passed over."""

    def __init__(self, remarks: Remarks) -> None:
        self.finished: list[CorrectedImage] = []
        self.is_cvat = False
        self._remarks = remarks
        self._image: CorrectedImage | None = None
        self._groups: dict[tuple[str, str], list[Any]] = {}
        self._n_characters = 0

    def doctype(self, *_: object) -> None:
        """Refuse what could define entities."""
        raise UsageError("An XML file of CVAT has no DOCTYPE, and this one has.")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Begin an image, or add a shape to it."""
        if tag == "annotations":
            self.is_cvat = True
        elif tag == "image":
            self._image = CorrectedImage(
                attributes.get("name", ""),
                width=as_side(attributes.get("width")),
                height=as_side(attributes.get("height")),
            )
            self._groups = {}
            self._n_characters = 0
        elif tag in _SHAPES and self._image is not None:
            self._add(self._image, tag, attributes)

    def end(self, tag: str) -> None:
        """Finish an image."""
        if tag == "image" and self._image is not None:
            self.finished.append(self._image)
            self._image = None

    def data(self, text: str) -> None:
        """Text means nothing here."""

    def close(self) -> None:
        """The end of the document."""

    def _add(self, image: CorrectedImage, tag: str, attributes: dict[str, str]) -> None:
        where = shorten(image.name)
        self._n_characters += sum(map(len, attributes.values()))
        if self._n_characters > _MAX_IMAGE_CHARACTERS:
            reason = f"beyond {_MAX_IMAGE_CHARACTERS:,} characters in an image"
            self._remarks.leave_out("shape", reason, where)
            return
        try:
            shape = _shape_of(tag, attributes)
        except Unusable as error:
            self._remarks.leave_out("shape", error.reason, where, error.detail)
            return
        label = attributes.get("label", "")
        if len(image.objects) >= MAX_OBJECTS:
            self._remarks.leave_out("shape", f"over {MAX_OBJECTS:,} in an image", where)
            return
        group = (label, attributes.get("group_id") or "0")
        if group[1] != "0" and isinstance(shape, list):
            parts = self._groups.get(group)
            if parts is not None:
                parts += shape  # a further part of the same object
                return
            self._groups[group] = shape
        image.objects.append(CorrectedObject(label, shape))


def read_cvat(file: BinaryIO, name: str, remarks: Remarks) -> Iterator[CorrectedImage]:
    """The images of a CVAT file, one after another.

    Raises:
        UsageError: It is not XML of CVAT, or ends too early.
    """
    target = _Images(remarks)
    parser = ElementTree.XMLParser(target=target)
    n_bytes = 0  # since the last element began
    try:
        while block := file.read(_BLOCK_BYTES):
            n_bytes = n_bytes + len(block) if b"<" not in block else len(block) - block.rfind(b"<")
            if n_bytes > _MAX_ELEMENT_BYTES:
                raise UsageError(f"{name} has an element of over {_MAX_ELEMENT_BYTES:,} bytes.")
            parser.feed(block)
            yield from target.finished
            target.finished.clear()
        parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # also unknown encodings
        raise UsageError(f"{name} is not whole XML: {error}.") from None
    if not target.is_cvat:
        raise UsageError(f"{name} has no element <annotations>: it is not XML of CVAT.")


def _shape_of(tag: str, attributes: dict[str, str]) -> Any:
    if tag == "mask":
        return _mask(attributes)
    if tag == "polygon":
        values = [as_number(v) for v in attributes.get("points", "").replace(";", ",").split(",")]
        if None in values or len(values) < 6 or len(values) % 2:
            raise Unusable("without 3 or more points", attributes.get("points", "")[:100])
        return [values]
    if tag == "box":
        corners = [as_number(attributes.get(key)) for key in ("xtl", "ytl", "xbr", "ybr")]
        if any(value is None for value in corners):
            raise Unusable("without corners")
        return rectangle(*(value for value in corners if value is not None))
    raise Unusable(f"of the kind {tag}, which is no mask")


def _mask(attributes: dict[str, str]) -> Box:
    sides = [as_number(attributes.get(key)) for key in ("left", "top", "width", "height")]
    if any(value is None or value != int(value) or abs(value) > 2**31 for value in sides):
        raise Unusable("without a usable box")
    left, top, width, height = (int(value) for value in sides if value is not None)
    if width < 1 or height < 1 or width * height > _MAX_BOX:
        raise Unusable("without a usable box", f"{width} x {height}")
    try:
        runs = np.array(attributes.get("rle", "").split(","), np.int64)
    except (ValueError, OverflowError):
        raise Unusable("with runs that are no numbers") from None
    if runs.min() < 0 or runs.max() > width * height or int(runs.sum()) != width * height:
        raise Unusable("whose runs do not fill their box", f"{width} x {height}")

    def draw(max_pixels: int) -> np.ndarray:
        if width * height > max_pixels:
            raise Unusable("much larger than its image", f"{width} x {height}")
        values = np.arange(runs.size) % 2 == 1
        return np.repeat(values, runs).reshape(height, width)

    return Box(draw, left, top)
