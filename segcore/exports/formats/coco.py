"""COCO: instances files with exact masks or polygons, and results files."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

from segcore.exports.formats.base import (
    Context,
    Encoded,
    ExportImage,
    Format,
    Tally,
    number_text,
    score_text,
)
from segcore.exports.formats.coordinates import PointTexts
from segcore.storage.spill import SpillBuffer

_SPOOL_BYTES = 16 << 20


class Coco(Format):
    """COCO instances: compressed RLE with ``iscrowd: 0``, or polygons.

    A chunk is written as it comes: annotations first, and the images, which are kept aside in a
    temporary file, after them.
    """

    name = "coco"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._points = PointTexts("%.10g", "%.10g", ",")

    def encode_masks(self, image: ExportImage, tally: Tally) -> tuple[int, Any]:
        """Lines of JSON: (the image, its annotations)."""
        if self.context.options.are_exact:
            lines = [
                self._annotation(image, place, self._rle(image, place))
                for place in range(len(image.counts))
            ]
        else:
            lines = [
                self._annotation(image, place, f"[{','.join(f'[{ring}]' for ring in rings)}]")
                for place, rings in self.outline_texts(image, tally, self._points)
            ]
        return len(lines), (image_entry(image), lines)

    def file_name(self, name: str) -> str:
        """The file of a chunk."""
        return f"instances-{name}.json"

    def write(self, file: BinaryIO, pieces: Iterable[Encoded]) -> None:
        """Write one instances file."""
        file.write(json.dumps(self.head(), ensure_ascii=False)[:-1].encode())
        file.write(b', "annotations": [')
        with SpillBuffer(_SPOOL_BYTES) as images:
            lines = _Lines(file)
            image_lines = _Lines(images)
            for piece in pieces:
                entry, annotations = piece.body
                image_lines.add(entry)
                for line in annotations:
                    lines.add(line)
            file.write(b'\n], "images": [')
            images.copy_to(file)
        file.write(b"\n]}\n")

    def head(self) -> dict[str, Any]:
        """What stands before annotations and images."""
        categories = [
            {"id": label.id, "name": label.name, "supercategory": ""}
            for label in self.context.labels
        ]
        info = {
            "description": "pre-labels by segcore",
            "version": self.context.edition,
            "contributor": self.context.model,
        }
        return {"info": info, "licenses": [], "categories": categories}

    def _rle(self, image: ExportImage, place: int) -> str:
        # The letters of an RLE string are "0" to "o"; of these JSON escapes the backslash.
        counts = image.counts[place].replace("\\", "\\\\")
        return f'{{"size": [{image.height}, {image.width}], "counts": "{counts}"}}'

    def _annotation(self, image: ExportImage, place: int, segmentation: str) -> str:
        box = ", ".join(number_text(side) for side in image.boxes[place].tolist())
        return (
            f'{{"id": {image.first_annotation + place}, "image_id": {image.number}, '
            f'"category_id": {self.label_of(image, place).id}, "iscrowd": 0, '
            f'"area": {image.areas[place]}, "bbox": [{box}], '
            f'"score": {score_text(image.scores[place])}, "segmentation": {segmentation}}}'
        )


class CocoResults(Coco):
    """COCO results: a list of detections, without `bbox`, so that mask AP takes the mask's area.

    The images with their ids stand beside it in a file without annotations.
    """

    name = "coco-results"

    def encode_masks(self, image: ExportImage, tally: Tally) -> tuple[int, Any]:
        """Lines of JSON: (the image, its detections)."""
        lines = [
            f'{{"image_id": {image.number}, "category_id": {self.label_of(image, place).id}, '
            f'"score": {score_text(image.scores[place])}, '
            f'"segmentation": {self._rle(image, place)}}}'
            for place in range(len(image.counts))
        ]
        return len(lines), (image_entry(image), lines)

    def file_name(self, name: str) -> str:
        """The file of a chunk."""
        return f"results-{name}.json"

    def write(self, file: BinaryIO, pieces: Iterable[Encoded]) -> None:
        """Write one results file."""
        file.write(b"[")
        self._entries = io.BytesIO()
        lines, entries = _Lines(file), _Lines(self._entries)
        for piece in pieces:
            entries.add(piece.body[0])
            for line in piece.body[1]:
                lines.add(line)
        file.write(b"\n]\n")

    def side_files(self, name: str) -> Mapping[str, bytes]:
        """The images and classes, as a COCO file without annotations."""
        head = json.dumps(self.head(), ensure_ascii=False)[:-1].encode()
        images = self._entries.getvalue()
        return {f"images-{name}.json": head + b', "images": [' + images + b"\n]}\n"}


class _Lines:
    """Items of a JSON list, one on a line."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._separator = b"\n"

    def add(self, line: str) -> None:
        self._file.write(self._separator)
        self._file.write(line.encode())
        self._separator = b",\n"


def image_entry(image: ExportImage) -> str:
    """An image of a COCO file as one line of JSON."""
    entry: Mapping[str, Any] = {
        "id": image.number,
        "file_name": image.name,
        "width": image.width,
        "height": image.height,
        "segcore_image_id": image.image_id,
        **({"coco_url": image.link} if image.link else {}),
    }
    return json.dumps(entry, ensure_ascii=False)
