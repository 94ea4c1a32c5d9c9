"""Pictures of the masks, for people without any tool."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from segcore.errors import ImageError
from segcore.exports.formats.base import ExportImage, Format, Tally
from segcore.exports.names import with_suffix
from segcore.images import decode_image
from segcore.visualize.overlays import brighten, overlay

_QUALITY = 85


class Overlays(Format):
    """One JPEG an image: its masks drawn over it, at the size of the image."""

    name = "overlays"
    one_file_each = True
    needs_pictures = True

    def encode_masks(self, image: ExportImage, tally: Tally) -> tuple[int, Any]:
        """The bytes of the picture."""
        try:
            pixels = decode_image(image.picture or b"", self.context.decoding)
        except ImageError:
            pixels = np.zeros((0, 0, 3), np.uint8)
        if pixels.shape[:2] != (image.height, image.width):
            tally.counts["masks_without_pictures"] += len(image.counts)
            return 0, None
        drawn = overlay(brighten(pixels), image.counts)
        ok, data = cv2.imencode(
            ".jpg", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
        )
        return len(image.counts), data.tobytes() if ok else None

    def file_name(self, name: str) -> str:
        """The picture of an image."""
        return "overlays/" + with_suffix(name, ".jpg")
