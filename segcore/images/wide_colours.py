"""Colours of 16 bits a sample, which Pillow cuts to 8 bits: read by OpenCV, checked by Pillow."""

from __future__ import annotations

import cv2
import numpy as np

from segcore.errors import ErrorCode, ImageError
from segcore.images.failures import decoder_errors
from segcore.images.orientation import apply_orientation
from segcore.images.pixels import bands
from segcore.images.samples import WideRange, to_8_bits


def wide_colours(
    data: bytes, rgb: np.ndarray, image_format: str, orientation: int, wide_range: WideRange
) -> tuple[np.ndarray, bool]:
    """Colours of 16 bits a sample as 8 bits, and whether they use a small part of their range.

    OpenCV gives all 16 bits, but does not notice all damage. Its samples are taken only where
    their high bytes are those that Pillow read.

    Args:
        rgb: What Pillow made of the same image, turned by `orientation`.

    Raises:
        ImageError: unsupported_format: OpenCV cannot read it in this way.
    """
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    with decoder_errors(image_format, data):
        samples = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if samples is not None and samples.dtype == np.uint16 and samples.ndim == 3:
        samples = apply_orientation(samples[..., 2::-1], orientation)
        if samples.shape == rgb.shape and _have_high_bytes(samples, rgb):
            return to_8_bits(samples, 16, wide_range)
    raise ImageError(
        ErrorCode.UNSUPPORTED_FORMAT,
        f"{image_format} with wide samples whose low bytes cannot be read; "
        "decode.wide_range: high_byte decodes it",
    )


def _have_high_bytes(samples: np.ndarray, rgb: np.ndarray) -> bool:
    return all(
        np.array_equal(samples[top:bottom] >> 8, rgb[top:bottom])
        for top, bottom in bands(*rgb.shape[:2])
    )
