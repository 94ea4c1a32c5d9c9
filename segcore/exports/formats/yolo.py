"""YOLO segmentation: a text file for each image, a line for each object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from segcore.exports.formats.base import ExportImage, Format, Tally, join_numbers
from segcore.exports.names import with_suffix
from segcore.text import printable


class YoloSeg(Format):
    """Polygons in shares of width and height; no holes, and one part an object."""

    name = "yolo-seg"
    one_file_each = True
    takes_one_part = True

    def encode_masks(self, image: ExportImage, tally: Tally) -> tuple[int, Any]:
        """The text of the label file."""
        lines, n_masks = [], 0
        size = (image.width, image.height)
        for place, shape in self.outlines(image, tally):
            n_masks += 1
            for ring in shape.rings:
                shares = np.clip(ring / size, 0, 1)
                points = join_numbers(shares, " ", "%.6g")
                lines.append(f"{image.labels[place]} {points}\n")
        return n_masks, "".join(lines).encode()

    def file_name(self, name: str) -> str:
        """The label file of an image."""
        return "labels/" + with_suffix(name, ".txt")

    def extra_files(self) -> Mapping[str, bytes]:
        """The data set's description."""
        names = (
            f"  {number}: {json.dumps(label.name, ensure_ascii=False)}\n"
            for number, label in enumerate(self.context.labels)
        )
        head = f"# pre-labels by {printable(self.context.model)}\n"
        text = f"{head}path: .\ntrain: images\nval: images\nnames:\n"
        return {"data.yaml": (text + "".join(names)).encode()}
