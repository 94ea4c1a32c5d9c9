"""Bytes -> pixels, or an `ImageError`."""

from __future__ import annotations

import ctypes
import logging
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image

from segcore.errors import ErrorCode, ImageError, ImageWarning
from segcore.images.headers import ImageHeader, probe
from segcore.images.heic import decode_heic
from segcore.images.jp2 import decode_jp2
from segcore.images.jpeg import ContentSize, decode_jpeg
from segcore.images.memory import decoding_bytes
from segcore.images.options import DecodeOptions
from segcore.images.orientation import apply_orientation, oriented_size
from segcore.images.pillow_formats import decode_png, decode_with_pillow
from segcore.images.pixels import StoredPixels
from segcore.images.tiff import decode_tiff

# Named by the edition. It rises when the same bytes give other pixels, which the digests in
# tests/images/test_pixel_digests.py show, and not with the versions of libraries: an upgrade of
# Pillow must not segment an archive again.
DECODER = "segcore-images 2"


def _silence_libtiff() -> None:
    """Stop libtiff from writing errors to stderr; Pillow raises them as well."""
    try:
        set_handler = ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler
    except (OSError, AttributeError):  # linked in another way: noisy, but harmless
        return
    set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
    set_handler(None)


_silence_libtiff()
logging.getLogger("PIL").addHandler(logging.NullHandler())
# Pillow warns of odd metadata; what that means for the pixels is checked in this package
warnings.filterwarnings("ignore", module=r"PIL\.\w+Plugin")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class DecodedImage(NamedTuple):
    """Pixels, and the size of the image that they show.

    Attributes:
        pixels: (h, w, 3) uint8 RGB, C-contiguous, writable, EXIF orientation applied.
        height, width: Of the full image, in pixels, after EXIF orientation.
        warnings: What a person should know about this image, such as pages that were left out.
    """

    pixels: np.ndarray
    height: int
    width: int
    warnings: tuple[ImageWarning, ...] = ()


def decode_image(data: bytes, options: DecodeOptions | None = None) -> np.ndarray:
    """Decode one image at full size.

    Args:
        data: The encoded image: JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, JPEG 2000 or, with the
            extra, HEIC, recognised by its content.
        options: Limits; None for the defaults.

    Returns:
        (H, W, 3) uint8 RGB, C-contiguous, writable, EXIF orientation applied.

    Raises:
        ImageError: The image is empty, unknown, unsupported, damaged or over a limit, or memory
            ran out. Whatever the bytes are, nothing else is raised.
    """
    return decode_with_warnings(data, options).pixels


def decode_with_warnings(data: bytes, options: DecodeOptions | None = None) -> DecodedImage:
    """As `decode_image`, with what a person should know about the image."""
    return _decode(data, options or DecodeOptions(), None)


def decode_image_reduced(
    data: bytes, content_size: ContentSize, options: DecodeOptions | None = None
) -> DecodedImage:
    """Decode one image to no more pixels than are needed, where that saves time.

    A JPEG is decoded at 1/8, 1/4 or 1/2 of its size, the smallest that has the pixels needed: each
    8 x 8 block of its samples is then transformed back to 1 x 1, 2 x 2 or 4 x 4 pixels. Pixel
    (y, x) shows the square of f x f pixels of the image that begins at (f y, f x). Where f does
    not divide a side, the last square extends beyond the image; a side that the EXIF orientation
    reverses is reduced only by a factor that divides it. Other formats, and a JPEG with fewer than
    twice the pixels needed on one side, are decoded at full size.

    Args:
        content_size: (height, width) of the image, after EXIF orientation -> the smallest (height,
            width) that is needed. What it raises is passed on.
        options: As for `decode_image`. The limits apply to the full image.

    Raises:
        ImageError: As `decode_image`, for the same bytes: damage in parts that are left out counts,
            too.
    """
    return _decode(data, options or DecodeOptions(), content_size)


def check_limits(data: bytes, options: DecodeOptions) -> int:
    """Refuse an image that is over a limit.

    Returns:
        The bytes of memory that decoding it takes.

    Raises:
        ImageError: As `decode_image`, for what the header shows.
    """
    return _check_limits(data, options)[1]


def _check_limits(data: bytes, options: DecodeOptions) -> tuple[ImageHeader, int]:
    if len(data) > options.max_bytes:
        raise ImageError(
            ErrorCode.TOO_MANY_BYTES,
            f"{len(data)} bytes of image are over the limit of {options.max_bytes}",
        )
    header = probe(data)
    n_pixels = header.width * header.height
    if n_pixels > options.max_pixels:
        raise ImageError(
            ErrorCode.TOO_MANY_PIXELS,
            f"{header.width}x{header.height} = {n_pixels} pixels are over the limit of "
            f"{options.max_pixels}",
        )
    n_bytes = decoding_bytes(data, header, options)
    if n_bytes > options.max_memory_bytes:
        raise ImageError(
            ErrorCode.TOO_MANY_PIXELS,
            f"decoding {header.width}x{header.height} pixels of this {header.format} takes "
            f"{n_bytes} bytes of memory, over the limit of {options.max_memory_bytes} "
            "(decode.max_memory_bytes)",
        )
    return header, n_bytes


def _decode(data: bytes, options: DecodeOptions, content_size: ContentSize | None) -> DecodedImage:
    header, n_bytes = _check_limits(data, options)
    try:
        stored = _decode_or_run_out(data, header, options, content_size, n_bytes)
        upright = apply_orientation(stored.rgb, stored.orientation)
    except MemoryError as error:
        raise ImageError(
            ErrorCode.OUT_OF_MEMORY, f"no memory to decode {header.width}x{header.height} pixels"
        ) from error
    height, width = upright.shape[:2]
    if header.format == "jpeg":  # its pixels may be fewer
        height, width = oriented_size((header.height, header.width), stored.orientation)
    return DecodedImage(upright, height, width, stored.warnings)


def _decode_or_run_out(
    data: bytes,
    header: ImageHeader,
    options: DecodeOptions,
    content_size: ContentSize | None,
    n_bytes: int,
) -> StoredPixels:
    """Decode; where memory ran out, it is no damage.

    Some decoders report both in the same words. So an image counts as damaged only if it failed
    while there was memory to decode it.

    Raises:
        ImageError: The image is not decoded.
        MemoryError: Memory ran out.
    """
    for is_last_try in (False, True):
        try:
            return _decode_stored(data, header, options, content_size)
        except ImageError as error:
            may_be_memory = error.code in (ErrorCode.CORRUPT, ErrorCode.TRUNCATED)
            if not may_be_memory or error.__cause__ is None:  # found by our own checks
                raise
            had_memory = _is_available(n_bytes)
            if not had_memory:
                raise MemoryError(error.message) from error
            if is_last_try or n_bytes < _SMALL_BYTES:
                raise
    raise AssertionError("unreachable")


_SMALL_BYTES = 64 << 20


def _is_available(n_bytes: int) -> bool:
    """Whether so much memory could be allocated now; none of it is used."""
    try:
        np.empty(n_bytes, np.uint8)
    except MemoryError:
        return False
    return True


def _decode_stored(
    data: bytes, header: ImageHeader, options: DecodeOptions, content_size: ContentSize | None
) -> StoredPixels:
    if header.format == "jpeg":
        return decode_jpeg(data, options, content_size)
    if header.format == "tiff":
        return decode_tiff(data, options)
    if header.format == "png":
        return decode_png(data, options)
    if header.format == "jp2":
        return decode_jp2(data, options)
    if header.format == "heic":
        return decode_heic(data, options)
    return decode_with_pillow(header.format, data, options)
