"""JPEG pixels, by libjpeg-turbo: exact or refused, unless the options allow repaired ones."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import simplejpeg
from PIL import JpegImagePlugin

from segcore.errors import ErrorCode, ImageError, ImageWarning, WarningCode
from segcore.images.failures import decoder_errors
from segcore.images.jpeg_structure import (
    count_scans,
    jpeg_orientation,
    read_frame,
    with_known_colour_transform,
)
from segcore.images.options import DecodeOptions
from segcore.images.orientation import oriented_size, reversed_sides
from segcore.images.pixels import StoredPixels, bands, pillow_to_rgb

ContentSize = Callable[[int, int], tuple[int, int]]

_REPAIRED = ImageWarning(
    WarningCode.REPAIRED,
    "libjpeg warned of damage; what it could not read is grey or displaced (decode.strict: false)",
)
_UNCHECKED = ImageWarning(
    WarningCode.UNCHECKED,
    "decoded with Pillow, which does not report damage (decode.strict: false)",
)
_MAX_SCANS = 500  # each progressive scan passes over the whole image: a bomb of time, not memory


def decode_jpeg(
    data: bytes, options: DecodeOptions, content_size: ContentSize | None
) -> StoredPixels:
    """RGB as stored; reduced where `content_size` allows it.

    Raises:
        ImageError: See `segcore.images.decode_image`.
    """
    frame = read_frame(data)
    # What looks like the marker of a scan may lie in a segment or behind the image.
    if data.count(b"\xff\xda") > _MAX_SCANS and count_scans(data) > _MAX_SCANS:
        raise ImageError(ErrorCode.CORRUPT, f"jpeg has more than {_MAX_SCANS} scans")
    orientation = jpeg_orientation(data)
    size, n_components = (frame.height, frame.width), len(frame.sampling)
    data = with_known_colour_transform(data, n_components)
    factor = 1 if content_size is None else _reduction_factor(size, orientation, content_size)
    colour_space = "CMYK" if n_components == 4 else "RGB"
    warnings: tuple[ImageWarning, ...] = ()
    with decoder_errors("jpeg", data):
        try:
            pixels = _decode_pixels(data, colour_space, size, factor, strict=True)
        except ValueError as error:
            if _has_other_subsampling(error):
                pixels, colour_space = _decode_other_subsampling(data, options), "RGB"
                warnings = (_UNCHECKED,)
            elif options.strict or not _is_warning(error):
                raise
            else:
                pixels, colour_space = _decode_damaged(data, colour_space, size, factor)
                warnings = (_REPAIRED,)
    return StoredPixels(
        pixels if colour_space == "RGB" else _cmyk_to_rgb(pixels), orientation, warnings
    )


def _is_warning(error: ValueError) -> bool:
    """Whether it may be worth to decode without strictness: not where memory ran out."""
    return "insufficient memory" not in str(error).lower()


def _decode_damaged(
    data: bytes, colour_space: str, size: tuple[int, int], factor: int
) -> tuple[np.ndarray, str]:
    """What libjpeg makes of a damaged JPEG, and its colour space."""
    try:
        return _decode_pixels(data, colour_space, size, factor, strict=False), colour_space
    except ValueError as error:  # TurboJPEG accepts no warning about the header
        if not _is_warning(error):
            raise
        return _decode_with_pillow(data), "RGB"


def _has_other_subsampling(error: ValueError) -> bool:
    return "could not determine subsampling" in str(error).lower()


def _decode_other_subsampling(data: bytes, options: DecodeOptions) -> np.ndarray:
    """Pixels of a JPEG whose chroma (or ink) resolution TurboJPEG does not know."""
    if count_scans(data) == 0:  # TurboJPEG says the same of a header that is cut
        message = f"jpeg of {len(data)} bytes ends before its pixels begin"
        raise ImageError(ErrorCode.TRUNCATED, message)
    if options.strict:
        raise ImageError(
            ErrorCode.UNSUPPORTED_FORMAT,
            "jpeg whose chroma subsampling cannot be decoded strictly; decode.strict: false "
            "decodes it without noticing damage",
        )
    return _decode_with_pillow(data)


def _decode_with_pillow(data: bytes) -> np.ndarray:
    """Pixels by Pillow, which ignores the warnings of its libjpeg: damage goes unnoticed."""
    with JpegImagePlugin.JpegImageFile(BytesIO(data)) as image:
        image.load()
        return pillow_to_rgb(image)


_FACTORS = (8, 4, 2)  # libjpeg has others, but they are no faster than full size (measured)


def _reduction_factor(size: tuple[int, int], orientation: int, content_size: ContentSize) -> int:
    """The largest factor that leaves a JPEG of `size` (height, width as stored) enough pixels."""
    needed = oriented_size(content_size(*oriented_size(size, orientation)), orientation)
    for factor in _FACTORS:
        # What lies beyond the image is at the end of a side, and must stay there when it is turned.
        is_aligned = (
            side % factor == 0 or not is_reversed
            for side, is_reversed in zip(size, reversed_sides(orientation), strict=True)
        )
        if all(is_aligned) and all(
            -(-side // factor) >= min_side for side, min_side in zip(size, needed, strict=True)
        ):
            return factor
    return 1


def _decode_pixels(
    data: bytes, colour_space: str, size: tuple[int, int], factor: int, strict: bool
) -> np.ndarray:
    """Pixels of a JPEG of `size`, reduced by `factor`; if `strict`, any warning is an error."""
    if factor == 1:
        return simplejpeg.decode_jpeg(data, colour_space, strict=strict)
    height, width = (-(-side // factor) for side in size)
    pixels = simplejpeg.decode_jpeg(
        data, colour_space, min_height=height, min_width=width, min_factor=factor, strict=strict
    )
    if pixels.shape[:2] != (height, width):
        raise ValueError(f"reduced to {pixels.shape[:2]} instead of {(height, width)}")
    return pixels


def _cmyk_to_rgb(reflectance: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint8 reflectances 255 - ink -> RGB: each colour times black, rounded.

    Samples are reflectances whether or not an Adobe segment says so: Pillow, OpenCV and browsers
    read them in this way, and so do programs that write them.
    """
    height, width = reflectance.shape[:2]
    rgb = np.empty((height, width, 3), np.uint8)
    for top, bottom in bands(height, width):
        rows = reflectance[top:bottom]
        product = rows[..., :3].astype(np.uint16) * rows[..., 3:]
        rgb[top:bottom] = (product + 127) // 255
    return rgb
