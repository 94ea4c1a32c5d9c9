"""COCO ground truth as every command that measures or trains takes it: ids, sizes and masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from segcore.errors import UsageError
from segcore.evaluation.remarks import Remarks, shorten
from segcore.evaluation.truth_masks import (
    Measured,
    Rle,
    Unusable,
    mask_area,
    mask_box,
    measure_rles,
    read_mask,
    turn,
)

Id = int | str


def id_order(value: Id) -> tuple[bool, Id]:
    """Key of the order of ids: numbers first, then text."""
    return isinstance(value, str), value


@dataclass(frozen=True)
class TruthImage:
    """One image of a ground truth.

    Attributes:
        width, height: Of the canvas of its masks; None where the file does not say.
        orientation: EXIF orientation (1 to 8) by which masks and boxes are turned from that canvas;
            1 leaves them as they are.
        image_type: The optional key of the same name, which `train` uses.
        archive_id: Its image id in the archive, as `segcore import` writes it; "" if not known.
    """

    id: Id
    file_name: str
    width: int | None
    height: int | None
    orientation: int = 1
    image_type: str = ""
    archive_id: str = ""


@dataclass(frozen=True)
class TruthCategory:
    """One class of a ground truth."""

    id: Id
    name: str


class Annotation(NamedTuple):  # which is made in a third of the time of a dataclass
    """An annotation whose image and class are known; its segmentation is not read yet.

    Attributes:
        name: Its id, or its place in the file: how messages name it.
        area, bbox: None where the file has none that can be used.
    """

    name: str
    image_id: Id
    category_id: Id
    segmentation: Any
    area: float | None
    bbox: tuple[float, float, float, float] | None
    is_crowd: bool


class LabelledObject(NamedTuple):
    """An object with its mask.

    Attributes:
        rle: Compressed RLE as pycocotools takes it, on the canvas of the image.
        area: Of the annotation, which decides the size class, or else of the mask.
        bbox: x, y, w, h of the annotation, or else of the mask.
    """

    category_id: Id
    is_crowd: bool
    rle: Rle
    area: float
    bbox: tuple[float, float, float, float]


@dataclass
class GroundTruth:
    """A COCO document that has been checked.

    Attributes:
        name: Where it comes from; for messages.
        images: By id; replaced by their owner where their size becomes known (`set_size`).
        categories: Ordered by id: numbers first, then text.
        annotations: By the id of the image.
        remarks: What was left out or taken otherwise than written.
    """

    name: str
    images: dict[Id, TruthImage]
    categories: tuple[TruthCategory, ...]
    annotations: dict[Id, list[Annotation]]
    remarks: Remarks
    _objects: dict[Id, list[LabelledObject]] = field(default_factory=dict)
    _measured: dict[Id, list[Measured | None]] = field(default_factory=dict)  # by image

    def set_size(self, image_id: Id, width: int, height: int, orientation: int = 1) -> None:
        """Set the canvas of the masks of an image, before its objects are read."""
        image = self.images[image_id]
        self.images[image_id] = replace(image, width=width, height=height, orientation=orientation)

    def canvas(self, image_id: Id) -> tuple[int, int]:
        """(height, width) of the masks of an image, as it is shown.

        Raises:
            UsageError: They are not known.
        """
        image = self.images[image_id]
        height, width = self._stored_size(image)
        return (width, height) if image.orientation >= 5 else (height, width)

    def _stored_size(self, image: TruthImage) -> tuple[int, int]:
        if image.width is None or image.height is None:
            raise UsageError(f"{self.name}: image {shorten(image.id)} has no width and height.")
        return image.height, image.width

    def objects(self, image_id: Id) -> list[LabelledObject]:
        """The objects of an image that have a mask; the others are named in `remarks`.

        Raises:
            UsageError: The size of the image is not known.
        """
        if image_id not in self._objects:
            annotations = self.annotations.get(image_id, [])
            measured = self._measured.pop(image_id, [None] * len(annotations))
            self._objects[image_id] = self._read_objects(annotations, measured)
        return self._objects[image_id]

    def measure(self, image_ids: Iterable[Id]) -> None:
        """Measure all masks of these images that are compressed RLE at once, which is faster.

        What cannot be measured so is read, and remarked on, by `objects`.
        """
        images, rows = [], []
        for image_id in image_ids:
            image = self.images[image_id]
            if image.orientation == 1 and image_id not in self._objects:
                images.append(image_id)
                size = list(self._stored_size(image))
                rows += [(a.segmentation, size) for a in self.annotations.get(image_id, ())]
        measured = measure_rles(rows)
        start = 0
        for image_id in images:
            annotations = self.annotations.get(image_id, [])
            own = measured[start : start + len(annotations)]
            start += len(annotations)
            if None in own:
                self._measured[image_id] = own
            else:
                self._objects[image_id] = self._read_objects(annotations, own)

    def require_objects(self, image_ids: Iterable[Id]) -> None:
        """Refuse a ground truth whose annotations of these images can all not be used.

        Raises:
            UsageError: There are annotations, and none of them is an object of these images.
        """
        wanted = list(image_ids)
        self.measure(wanted)
        n_objects = sum(len(self.objects(image_id)) for image_id in wanted)
        if self.remarks.n_left_out and not n_objects:
            raise UsageError(
                f"No annotation of {self.name} can be used. "
                + " ".join(self.remarks.sentences()[:3]),
                "Masks are polygons or RLE in `segmentation`, as in COCO instances files.",
            )

    def _read_objects(
        self, annotations: Sequence[Annotation], measured: Sequence[Measured | None]
    ) -> list[LabelledObject]:
        objects = map(self._read_object, annotations, measured)
        return [item for item in objects if item is not None]

    def _read_object(
        self, annotation: Annotation, measured: Measured | None
    ) -> LabelledObject | None:
        bbox, orientation = annotation.bbox, 1
        if measured is not None:
            rle, n_pixels, mask_bbox = measured
        else:
            image = self.images[annotation.image_id]
            orientation = image.orientation
            try:
                rle, dropped = read_mask(annotation.segmentation, *self._stored_size(image))
            except Unusable as error:
                self.remarks.leave_out("annotation", error.reason, annotation.name, error.detail)
                return None
            if dropped:
                reason = "with polygons that cannot be read: only those polygons were left out"
                self.remarks.add("annotation", reason, annotation.name, dropped)
            n_pixels = mask_area(rle)
        if not n_pixels:
            reason = "with a mask of 0 pixels: counted as an object that nothing can match"
            self.remarks.add("annotation", reason, annotation.name)
        if orientation != 1:
            rle, bbox = turn(rle, bbox, orientation)
        if bbox is None:
            bbox = mask_box(rle) if measured is None else mask_bbox
        area = float(n_pixels) if annotation.area is None else annotation.area
        return LabelledObject(annotation.category_id, annotation.is_crowd, rle, area, bbox)
