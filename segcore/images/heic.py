"""HEIC pixels, by libheif: an extra, which is imported only where there is such an image."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from segcore.errors import ErrorCode, ImageError
from segcore.images.failures import decoder_errors
from segcore.images.image_warnings import frame_warnings, range_warnings
from segcore.images.options import DecodeOptions
from segcore.images.pixels import StoredPixels, grey_to_rgb
from segcore.images.samples import to_8_bits

BRANDS = (b"heic", b"heix", b"heim", b"heis")  # still pictures coded with HEVC


def _pi_heif() -> ModuleType:
    """The library, which must not start threads beside those of the worker.

    Raises:
        ImageError: unsupported_format: it is not installed.
    """
    try:
        import pi_heif
    except ImportError as error:
        message = "HEIC is decoded only with the extra: pip install 'segcore[heic]' on every worker"
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, message) from error
    pi_heif.options.DECODE_THREADS = 1
    return pi_heif


def _open(data: bytes) -> Any:
    library = _pi_heif()
    with decoder_errors("heic", data):
        return library.open_heif(data)  # decodes nothing yet


def heic_size(data: bytes) -> tuple[int, int]:
    """(width, height) of the primary picture as displayed.

    Raises:
        ImageError: unsupported_format, truncated or corrupt.
    """
    width, height = _open(data).size
    return int(width), int(height)


def decode_heic(data: bytes, options: DecodeOptions) -> StoredPixels:
    """The primary picture, turned as the file says; its EXIF orientation does not count.

    Colours of 10 or 12 bits come with 8 bits from libheif.

    Raises:
        ImageError: See `segcore.images.decode_image`.
    """
    file = _open(data)
    with decoder_errors("heic", data):
        pixels = np.asarray(file)
    is_narrow = False
    if pixels.dtype == np.uint16:
        pixels, is_narrow = to_8_bits(pixels, 16, options.wide_range)
    if pixels.ndim == 2 or pixels.shape[2] < 3:
        rgb = grey_to_rgb(pixels if pixels.ndim == 2 else pixels[..., 0])
    else:
        rgb = np.array(pixels[..., :3], order="C")  # what libheif gave must not be written to
    return StoredPixels(rgb, 1, (*frame_warnings(len(file)), *range_warnings(is_narrow, options)))
