"""YOLO segmentation: a text file for each image, a line for each object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from segcore.exports.formats.base import Context, ExportImage, Format, Tally
from segcore.exports.formats.coordinates import PointTexts
from segcore.exports.names import with_suffix
from segcore.text import printable


class YoloSeg(Format):
    """Polygons in shares of width and height; no holes, and one part an object."""

    name = "yolo-seg"
    one_file_each = True
    takes_one_part = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._points = PointTexts("%.6g", "%.6g", " ", whole=1.0)
        self._names = [label.name for label in context.labels]
        self._numbers = list(range(len(self._names)))
        if context.tool:
            self._numbers = [context.tool.numbers[name] for name in self._names]

    def encode_masks(self, image: ExportImage, tally: Tally) -> tuple[int, Any]:
        """The text of the label file."""
        masks = self.outline_texts(image, tally, self._points)
        lines = [
            f"{self._numbers[image.labels[place]]} {points}\n"
            for place, rings in masks
            for points in rings
        ]
        return len(masks), "".join(lines).encode()

    def file_name(self, name: str) -> str:
        """The label file of an image."""
        return "labels/" + with_suffix(name, ".txt")

    def extra_files(self) -> Mapping[str, bytes]:
        """The data set's description."""
        if self.context.tool:
            return {"data.yaml": self.context.tool.text.encode()}
        names = (
            f"  {number}: {json.dumps(name, ensure_ascii=False)}\n"
            for number, name in enumerate(self._names)
        )
        head = f"# pre-labels by {printable(self.context.model)}\n"
        text = f"{head}path: .\ntrain: images\nval: images\nnames:\n"
        return {"data.yaml": (text + "".join(names)).encode()}
