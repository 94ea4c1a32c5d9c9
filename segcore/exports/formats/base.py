"""What all formats have in common: an image to export, how it is encoded, and what is counted."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, ClassVar

import numpy as np

from segcore.exports.formats.coordinates import PointTexts
from segcore.exports.options import ExportOptions
from segcore.exports.shapes import Outline, outline_iou, outlines
from segcore.exports.tool_labels import ToolLabels
from segcore.images import DecodeOptions
from segcore.masks.bitmaps import Bitmap, to_bitmaps

_IOU_STEPS = 1000


@dataclass(frozen=True)
class Label:
    """One class of an export.

    Attributes:
        id: COCO category id: of the model's class, or of the first of those that share the name.
    """

    id: int
    name: str


@dataclass(frozen=True)
class Context:
    """What the files of an export have in common.

    Attributes:
        model: Name of the model with the beginning of its weights' sha256.
        edition: Name of the edition.
        iou_every: The IoU of polygons is measured in one of so many images.
        decoding: How pixels are made of pictures.
        tool: The labels that the tool has already.
    """

    options: ExportOptions
    labels: tuple[Label, ...]
    model: str
    edition: str
    iou_every: int = 1
    decoding: DecodeOptions = field(default_factory=DecodeOptions)
    tool: ToolLabels | None = None

    @property
    def model_version(self) -> str:
        """What tools show as the version of the model that predicted."""
        return f"segcore {self.model} {self.edition}"


@dataclass(frozen=True)
class ExportImage:
    """One image and the masks that are exported of it, by descending score.

    Attributes:
        number: Its id in the export, from 1.
        name: Its file name in the export: relative, safe and unique.
        image_id: Its id in the archive.
        link: Where a browser finds it; "" if nobody said.
        width, height: Pixels after EXIF orientation.
        first_annotation: Id of its first mask; the others follow.
        labels: Of each mask: the place of its class in `Context.labels`.
        counts: COCO compressed RLE on the canvas of the image.
        boxes: (N, 4) float32 x, y, w, h.
        picture: The encoded image, where the format needs it.
    """

    number: int
    name: str
    image_id: str
    link: str
    width: int
    height: int
    first_annotation: int
    labels: Sequence[int]
    scores: Sequence[float]
    counts: Sequence[str]
    boxes: np.ndarray
    areas: Sequence[int]
    picture: bytes | None = field(default=None, repr=False)


@dataclass
class Tally:
    """What happened to masks on their way into a format.

    Attributes:
        counts: By what happened: see `segcore.exports.summary`.
        iou: (1001,) how many polygons have this IoU in thousandths, rounded down.
        worst: The lowest IoU, and which annotation has it.
    """

    counts: Counter[str] = field(default_factory=Counter)
    iou: np.ndarray = field(default_factory=lambda: np.zeros(_IOU_STEPS + 1, np.int64))
    worst: tuple[float, str] = (math.inf, "")

    def add_iou(self, value: float, where: str) -> None:
        """Count one measured polygon."""
        self.iou[int(value * _IOU_STEPS)] += 1
        self.worst = min(self.worst, (value, where))

    def merge(self, other: Tally) -> None:
        """Add what another tally counted."""
        self.counts.update(other.counts)
        self.iou += other.iou
        self.worst = min(self.worst, other.worst)

    @property
    def median_iou(self) -> float | None:
        """The median, rounded down to a thousandth; None if nothing was measured."""
        total = int(self.iou.sum())
        if not total:
            return None
        return int(np.searchsorted(np.cumsum(self.iou), (total + 1) // 2)) / _IOU_STEPS


@dataclass
class Encoded:
    """One image in a format.

    Attributes:
        number, n_masks: As in the image; masks that were really written.
        body: What its format makes of it.
    """

    number: int
    n_masks: int
    body: Any
    tally: Tally


class Format(ABC):
    """How images become files. Can be pickled: images are encoded in several processes.

    Attributes:
        one_file_each: Whether each image has a file of its own; otherwise a chunk is one file.
        needs_pictures: Whether encoding needs the pixels.
    """

    one_file_each: ClassVar[bool] = False
    needs_pictures: bool = False
    name: ClassVar[str]

    def __init__(self, context: Context) -> None:
        self.context = context

    def encode(self, image: ExportImage) -> Encoded:
        """The image in this format, and what was lost on the way."""
        tally = Tally()
        n_masks, body = self.encode_masks(image, tally)
        tally.counts["masks"] += n_masks
        return Encoded(image.number, n_masks, body, tally)

    @abstractmethod
    def encode_masks(self, image: ExportImage, tally: Tally) -> tuple[int, Any]:
        """How many masks were written, and the body."""

    def file_name(self, name: str) -> str:
        """The file of an image (`one_file_each`), or of a chunk of this name, below DEST."""
        raise NotImplementedError

    def write(self, file: BinaryIO, pieces: Iterable[Encoded]) -> None:
        """Write the file of a chunk from its images, one after another."""
        raise NotImplementedError

    def side_files(self, name: str) -> Mapping[str, bytes]:
        """Further files of the chunk that was written last, by name below DEST."""
        return {}

    def extra_files(self) -> Mapping[str, bytes]:
        """Files that say something about all images, by name below DEST."""
        return {}

    def bitmaps(self, image: ExportImage, tally: Tally) -> Iterator[tuple[int, Bitmap]]:
        """Each mask that has a bitmap, with its place in the image."""
        for place, bitmap in enumerate(to_bitmaps(image.counts, image.height, image.width)):
            if bitmap is None:
                tally.counts["unreadable_masks"] += 1
            else:
                yield place, bitmap

    def outlines(self, image: ExportImage, tally: Tally) -> Iterator[tuple[int, Outline]]:
        """Each mask as polygons, with its place in the image; losses are counted."""
        options = self.context.options
        is_measured = image.number % self.context.iou_every == 0
        found = list(self.bitmaps(image, tally))
        shapes = outlines([bitmap for _, bitmap in found], options.tolerance, options.max_vertices)
        for (place, bitmap), shape in zip(found, shapes, strict=True):
            if self.takes_one_part and len(shape.rings) > 1 and not options.split_parts:
                tally.counts["masks_cut_to_largest_part"] += 1
                tally.counts["parts_lost"] += len(shape.rings) - 1
                shape = replace(shape, rings=shape.rings[:1])
            if shape.n_holes:
                tally.counts["masks_with_filled_holes"] += 1
                tally.counts["holes_filled"] += shape.n_holes
            tally.counts["polygons"] += len(shape.rings)
            tally.counts["polygons_simplified_to_the_limit"] += shape.is_coarser
            if is_measured:
                where = f"{image.name} {image.first_annotation + place}"
                tally.add_iou(outline_iou(bitmap, shape.rings), where)
            yield place, shape

    takes_one_part: ClassVar[bool] = False

    def outline_texts(
        self, image: ExportImage, tally: Tally, points: PointTexts
    ) -> list[tuple[int, list[str]]]:
        """Each mask that has polygons as the text of each of them, with its place in the image."""
        found = list(self.outlines(image, tally))
        texts = points.write([shape.rings for _, shape in found], image.width, image.height)
        return [(place, rings) for (place, _), rings in zip(found, texts, strict=True)]

    def label_of(self, image: ExportImage, place: int) -> Label:
        """The class of a mask."""
        return self.context.labels[image.labels[place]]


def number_text(value: float) -> str:
    """A coordinate without needless digits: ``12``, ``12.5``."""
    return f"{value:.10g}"


def score_text(value: float) -> str:
    """A float32 score, exact: reading it back as float32 gives the same."""
    return f"{value:.9g}"
