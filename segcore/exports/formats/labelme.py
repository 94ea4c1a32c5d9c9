"""labelme: a JSON file beside each image."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from itertools import chain
from typing import Any

from segcore.exports.formats.base import ExportImage, Format, Tally, score_text
from segcore.exports.names import with_suffix
from segcore.exports.shapes import box_png


class Labelme(Format):
    """Masks as PNG of their box between two inclusive corners, or polygons.

    The files lie beside the images where these are written, too, and name them without a folder.
    The score stands in `description`, as in labelme's own pre-labels.
    """

    name = "labelme"
    one_file_each = True

    def encode_masks(self, image: ExportImage, tally: Tally) -> tuple[int, Any]:
        """The bytes of the JSON file."""
        is_exact = self.context.options.are_exact
        masks = self._masks(image, tally) if is_exact else self._polygons(image, tally)
        document = {
            "version": "5.5.0",
            "flags": {},
            "shapes": list(chain(*masks)),
            "imagePath": image.name.rpartition("/")[2],
            "imageData": None,
            "imageHeight": image.height,
            "imageWidth": image.width,
            "segcore": {"image_id": image.image_id, "model": self.context.model},
        }
        return len(masks), (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode()

    def file_name(self, name: str) -> str:
        """The file of an image."""
        is_beside = self.context.options.images in ("copy", "link")
        return ("images/" if is_beside else "labels/") + with_suffix(name, ".json")

    def _masks(self, image: ExportImage, tally: Tally) -> list[list[dict[str, Any]]]:
        shapes = []
        for place, bitmap in self.bitmaps(image, tally):
            right, bottom = bitmap.left + bitmap.width - 1, bitmap.top + bitmap.height - 1
            points = [[bitmap.left, bitmap.top], [right, bottom]]
            picture = base64.b64encode(box_png(bitmap)).decode()
            shapes.append([self._shape(image, place, "mask", points, picture)])
        return shapes

    def _polygons(self, image: ExportImage, tally: Tally) -> list[list[dict[str, Any]]]:
        """The shapes of each mask, one for each of its parts."""
        return [
            [
                self._shape(image, place, "polygon", ring.tolist(), None, len(shape.rings) > 1)
                for ring in shape.rings
            ]
            for place, shape in self.outlines(image, tally)
        ]

    def _shape(
        self,
        image: ExportImage,
        place: int,
        kind: str,
        points: Sequence[Sequence[float]],
        mask: str | None,
        is_part: bool = False,
    ) -> dict[str, Any]:
        return {
            "label": self.label_of(image, place).name,
            "points": points,
            "group_id": image.first_annotation + place if is_part else None,
            "description": f"score {score_text(image.scores[place])}",
            "shape_type": kind,
            "flags": {},
            "mask": mask,
        }
