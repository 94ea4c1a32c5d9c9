"""CVAT for images 1.1: XML with masks or polygons."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any, BinaryIO
from xml.sax.saxutils import escape, quoteattr

from segcore.exports.formats.base import Context, Encoded, ExportImage, Format, Tally
from segcore.exports.formats.coordinates import PointTexts
from segcore.exports.shapes import row_runs
from segcore.text import printable


class Cvat(Format):
    """Masks as runs of their box, row by row, zeros first; `source="auto"`.

    CVAT matches images by name without extension.
    """

    name = "cvat"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._points = PointTexts("%.10g,", "%.10g;", "")

    def encode_masks(self, image: ExportImage, tally: Tally) -> tuple[int, Any]:
        """The element of the image."""
        head = (
            f'  <image id="{image.number - 1}" name={_attribute(image.name)} '
            f'width="{image.width}" height="{image.height}">\n'
        )
        if self.context.options.are_exact:
            shapes = self._masks(image, tally)
        else:
            shapes = self._polygons(image, tally)
        return len(shapes), "".join((head, *chain(*shapes), "  </image>\n"))

    def file_name(self, name: str) -> str:
        """The file of a chunk."""
        return f"annotations-{name}.xml"

    def write(self, file: BinaryIO, pieces: Iterable[Encoded]) -> None:
        """Write one XML file."""
        labels = "".join(
            f"        <label><name>{escape(printable(label.name))}</name><attributes>"
            f"</attributes></label>\n"
            for label in self.context.labels
        )
        file.write(
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
            f"  <meta>\n    <task>\n      <name>{escape(printable(self.context.edition))}</name>\n"
            f"      <labels>\n{labels}      </labels>\n    </task>\n"
            f"    <segcore>{escape(printable(self.context.model))}</segcore>\n"
            "  </meta>\n".encode()
        )
        for piece in pieces:
            file.write(piece.body.encode())
        file.write(b"</annotations>\n")

    def _masks(self, image: ExportImage, tally: Tally) -> list[list[str]]:
        return [
            [
                f'    <mask label={self._label(image, place)} source="auto" occluded="0" '
                f'rle="{", ".join(map(str, row_runs(bitmap).tolist()))}" '
                f'left="{bitmap.left}" top="{bitmap.top}" width="{bitmap.width}" '
                f'height="{bitmap.height}" z_order="0"></mask>\n'
            ]
            for place, bitmap in self.bitmaps(image, tally)
        ]

    def _polygons(self, image: ExportImage, tally: Tally) -> list[list[str]]:
        """The elements of each mask, one for each of its parts."""
        masks = []
        for place, rings in self.outline_texts(image, tally, self._points):
            # The parts of one mask have a group of their own.
            group = f' group_id="{image.first_annotation + place}"' if len(rings) > 1 else ""
            elements = []
            for points in rings:
                elements.append(
                    f'    <polygon label={self._label(image, place)} source="auto" '
                    f'occluded="0" points="{points[:-1]}" z_order="0"{group}></polygon>\n'
                )
            masks.append(elements)
        return masks

    def _label(self, image: ExportImage, place: int) -> str:
        return _attribute(self.label_of(image, place).name)


def _attribute(text: str) -> str:
    """A quoted attribute; control characters, which XML cannot hold, become "?"."""
    return quoteattr(printable(text))
