"""Pixels of Pillow as an RGB array, in bands: no whole-image copies but the array itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from segcore.errors import ErrorCode, ImageError, ImageWarning

_BAND_PIXELS = 1 << 18
_RGB_CONVERTIBLE_MODES = (
    *("1", "L", "LA", "La", "P", "PA"),
    *("RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"),
)
_PREMULTIPLIED = {"RGBa": "RGBA", "La": "LA"}  # colours multiplied by alpha


class StoredPixels(NamedTuple):
    """Pixels before they are turned.

    Attributes:
        rgb: (h, w, 3) uint8.
        orientation: EXIF, 1..8.
        warnings: What a person should know about this image.
    """

    rgb: np.ndarray
    orientation: int
    warnings: tuple[ImageWarning, ...] = ()


def bands(height: int, width: int) -> Iterator[tuple[int, int]]:
    """(first row, row after the last) of bands of about a quarter of a million pixels."""
    n_rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, n_rows):
        yield top, min(top + n_rows, height)


def pillow_to_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of a loaded image; alpha is dropped.

    Raises:
        ImageError: unsupported_format.
    """
    if image.mode not in _RGB_CONVERTIBLE_MODES:
        raise ImageError(
            ErrorCode.UNSUPPORTED_FORMAT, f"{image.format} with samples of kind {image.mode!r}"
        )
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    for top, bottom in bands(image.height, image.width):
        band = image.crop((0, top, image.width, bottom))
        if image.mode in _PREMULTIPLIED:
            band = band.convert(_PREMULTIPLIED[image.mode])
        if band.mode == "L":
            grey_to_rgb(np.asarray(band), rgb[top:bottom])
        else:
            rgb[top:bottom] = np.asarray(band if band.mode == "RGB" else band.convert("RGB"))
    return rgb


def grey_to_rgb(grey: np.ndarray, rgb: np.ndarray | None = None) -> np.ndarray:
    """(H, W) uint8 -> (H, W, 3), into `rgb` if it is given."""
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(grey), cv2.COLOR_GRAY2RGB, rgb))
