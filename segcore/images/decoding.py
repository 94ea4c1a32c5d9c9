"""Bytes -> pixels, or an `ImageError`; nothing else is raised."""

from __future__ import annotations

import ctypes
import logging
import warnings
import zlib
from collections.abc import Callable
from importlib.metadata import version
from io import BytesIO
from typing import Literal, NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import BmpImagePlugin, Image, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile
from pydantic import BaseModel, ConfigDict, Field

from segcore.errors import ErrorCode, ImageError
from segcore.images.headers import ImageHeader, decoder_error, jpeg_segments, probe

DECODER = f"segcore-images 1; simplejpeg {version('simplejpeg')}; pillow {version('pillow')}"


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
# Pillow warns of odd metadata; what that means for the pixels is checked in this module
warnings.filterwarnings("ignore", module=r"PIL\.\w+Plugin")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class DecodeOptions(BaseModel):
    """Limits for one image, and whether all of its pixels are wanted.

    Attributes:
        scale: What the model gets: ``full``, all pixels; ``reduced``, what `decode_image_reduced`
            returns. `decode_image` returns all pixels in both cases.
        max_pixels: Largest width x height. The default is where Pillow refuses an image as a
            decompression bomb; it is 537 MB of RGB. A TIFF or WebP cannot exceed Pillow's own
            limit, even where this one is higher.
        max_bytes: Largest encoded image.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: Literal["full", "reduced"] = "full"
    max_pixels: int = Field(178_956_970, ge=1)
    max_bytes: int = Field(512 * 1024**2, ge=1)


ContentSize = Callable[[int, int], tuple[int, int]]


class DecodedImage(NamedTuple):
    """Pixels, and the size of the image that they show.

    Attributes:
        pixels: (h, w, 3) uint8 RGB, C-contiguous, writable, EXIF orientation applied.
        height, width: Of the full image, in pixels, after EXIF orientation.
    """

    pixels: np.ndarray
    height: int
    width: int


def decode_image(data: bytes, options: DecodeOptions | None = None) -> np.ndarray:
    """Decode one image at full size.

    Args:
        data: The encoded image: JPEG, PNG, WebP, TIFF or BMP, recognised by its content.
        options: Limits; None for the defaults.

    Returns:
        (H, W, 3) uint8 RGB, C-contiguous, writable, EXIF orientation applied.

    Raises:
        ImageError: The image is empty, unknown, unsupported, damaged or over a limit. Nothing else
            is raised, and pixels are never guessed.
    """
    return _decode(data, options or DecodeOptions(), None).pixels


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
            width) that is needed. What it raises is an ImageError or becomes one.
        options: As for `decode_image`. The limits apply to the full image.

    Raises:
        ImageError: As `decode_image`, for the same bytes: damage in parts that are left out counts,
            too.
    """
    return _decode(data, options or DecodeOptions(), content_size)


def _decode(data: bytes, options: DecodeOptions, content_size: ContentSize | None) -> DecodedImage:
    if len(data) > options.max_bytes:
        raise ImageError(
            ErrorCode.TOO_MANY_BYTES,
            f"{len(data)} bytes of image are over the limit of {options.max_bytes}",
        )
    header = probe(data)
    pixels = header.width * header.height
    if pixels > options.max_pixels:
        raise ImageError(
            ErrorCode.TOO_MANY_PIXELS,
            f"{header.width}x{header.height} = {pixels} pixels are over the limit of "
            f"{options.max_pixels}",
        )
    try:
        if header.format == "jpeg":
            image, orientation = _decode_jpeg(data, header, content_size)
        else:
            image, orientation = _decode_with_pillow(header.format, data, options.max_pixels)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(
            ErrorCode.OUT_OF_MEMORY, f"no memory to decode {header.width}x{header.height} pixels"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(ErrorCode.TOO_MANY_PIXELS, f"over the limit of Pillow: {error}") from error
    except Exception as error:  # decoders may raise anything on bytes that they do not expect
        raise decoder_error(header.format, error, data) from error
    upright = _apply_orientation(image, orientation)
    height, width = upright.shape[:2]
    if header.format == "jpeg":  # its pixels may be fewer
        height, width = _oriented_size((header.height, header.width), orientation)
    return DecodedImage(upright, height, width)


_MAX_SCANS = 500  # each progressive scan passes over the whole image: a bomb of time, not memory


def _decode_jpeg(
    data: bytes, header: ImageHeader, content_size: ContentSize | None
) -> tuple[np.ndarray, int]:
    """(RGB as stored, EXIF orientation)."""
    # Coded data cannot hold this marker: there, a zero byte follows each 0xFF.
    if data.count(b"\xff\xda") > _MAX_SCANS:
        raise ImageError(ErrorCode.CORRUPT, f"jpeg has more than {_MAX_SCANS} scans")
    orientation, has_adobe_segment = 1, False
    for marker, payload in jpeg_segments(data):
        if marker == 0xE1 and payload[:6] == b"Exif\0\0" and orientation == 1:
            orientation = _exif_orientation(payload)
        has_adobe_segment |= marker == 0xEE and payload[:5] == b"Adobe"
    colour_space = simplejpeg.decode_jpeg_header(data, strict=False)[2]
    size = header.height, header.width
    factor = 1 if content_size is None else _reduction_factor(size, orientation, content_size)
    if colour_space not in ("CMYK", "YCCK"):
        return _decode_jpeg_pixels(data, "RGB", size, factor), orientation
    inks = _decode_jpeg_pixels(data, "CMYK", size, factor)
    return _cmyk_to_rgb(inks if has_adobe_segment else 255 - inks), orientation


_FACTORS = (8, 4, 2)  # libjpeg has others, but they are no faster than full size (measured)


def _reduction_factor(size: tuple[int, int], orientation: int, content_size: ContentSize) -> int:
    """The largest factor that leaves a JPEG of `size` (height, width as stored) enough pixels."""
    needed = _oriented_size(content_size(*_oriented_size(size, orientation)), orientation)
    for factor in _FACTORS:
        # What lies beyond the image is at the end of a side, and must stay there when it is turned.
        is_aligned = (
            side % factor == 0 or not is_reversed
            for side, is_reversed in zip(size, _reversed_sides(orientation), strict=True)
        )
        if all(is_aligned) and all(
            -(-side // factor) >= min_side for side, min_side in zip(size, needed, strict=True)
        ):
            return factor
    return 1


def _decode_jpeg_pixels(
    data: bytes, colour_space: str, size: tuple[int, int], factor: int
) -> np.ndarray:
    """Pixels of a JPEG of `size`, reduced by `factor`; any warning of libjpeg is an error."""
    if factor == 1:
        return simplejpeg.decode_jpeg(data, colour_space, strict=True)
    height, width = (-(-side // factor) for side in size)
    pixels = simplejpeg.decode_jpeg(
        data, colour_space, min_height=height, min_width=width, min_factor=factor, strict=True
    )
    if pixels.shape[:2] != (height, width):
        raise ValueError(f"reduced to {pixels.shape[:2]} instead of {(height, width)}")
    return pixels


def _cmyk_to_rgb(reflectance: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint8 reflectances 255 - ink -> RGB: each colour times black, rounded."""
    rgb = np.empty((*reflectance.shape[:2], 3), np.uint8)
    for channel in range(3):
        product = reflectance[..., channel].astype(np.uint16) * reflectance[..., 3]
        rgb[..., channel] = (product + 127) // 255
    return rgb


_PLUGINS: dict[str, type[ImageFile]] = {
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
}
_RGB_CONVERTIBLE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


def _decode_with_pillow(image_format: str, data: bytes, max_pixels: int) -> tuple[np.ndarray, int]:
    """(RGB as stored, EXIF orientation); Pillow itself turns a TIFF."""
    is_tiff = image_format == "tiff"
    if image_format == "png":
        _check_png(data)
    with _PLUGINS[image_format](BytesIO(data)) as image:
        shift, is_inverted = _check_tiff(image, max_pixels) if is_tiff else (8, False)
        image.load()
        orientation = 1 if is_tiff else _exif_orientation(image.info.get("exif", b""))
        if image.mode.startswith("I;16"):
            samples = np.asarray(image).astype(np.uint16)
            high_byte = np.minimum(samples >> shift, 255).astype(np.uint8)
            return _grey_to_rgb(255 - high_byte if is_inverted else high_byte), orientation
        if image.mode == "L":
            return _grey_to_rgb(np.asarray(image)), orientation
        if image.mode == "RGBa":  # colours multiplied by alpha
            return np.array(image.convert("RGBA").convert("RGB")), orientation
        if image.mode not in _RGB_CONVERTIBLE_MODES:
            raise ImageError(
                ErrorCode.UNSUPPORTED_FORMAT, f"{image_format} with samples of kind {image.mode!r}"
            )
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        return np.array(rgb), orientation


def _grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(grey), cv2.COLOR_GRAY2RGB))


# Tags of TIFF 6.0, and of DNG.
_NEW_SUBFILE_TYPE, _BITS_PER_SAMPLE, _PHOTOMETRIC_INTERPRETATION = 254, 258, 262
_TILE_WIDTH, _TILE_LENGTH, _SAMPLE_FORMAT, _DNG_VERSION = 322, 323, 339, 50706


def _check_tiff(image: ImageFile, max_pixels: int) -> tuple[int, bool]:
    """Refuse what is not a plain picture, and tell how grey samples are stored.

    Returns:
        Bits of a sample beyond 8, and whether 0 is white.
    """
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    tags = image.tag_v2
    if _DNG_VERSION in tags or tags.get(_NEW_SUBFILE_TYPE, 0) & 1:
        raise ImageError(
            ErrorCode.UNSUPPORTED_FORMAT, "tiff whose first page is a camera raw or a thumbnail"
        )
    if not set(tags.get(_SAMPLE_FORMAT, (1,))) <= {1, 4}:
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, "tiff with signed or floating-point samples")
    tile_pixels = int(tags.get(_TILE_WIDTH, 1)) * int(tags.get(_TILE_LENGTH, 1))
    if tile_pixels > max_pixels:
        raise ImageError(
            ErrorCode.TOO_MANY_PIXELS, f"tiff tiles of {tile_pixels} pixels, limit {max_pixels}"
        )
    bits = max(tags.get(_BITS_PER_SAMPLE, (1,)))
    return max(bits - 8, 0), tags.get(_PHOTOMETRIC_INTERPRETATION) == 0


def _check_png(data: bytes) -> None:
    """Check the checksums of critical chunks; Pillow skips those of pixel data."""
    view, at = memoryview(data), 8
    while at + 12 <= len(data):
        length = int.from_bytes(view[at : at + 4], "big")
        name, end = bytes(view[at + 4 : at + 8]), at + 12 + length
        if end > len(data):
            break
        is_critical = not name[0] & 0x20
        if is_critical and zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(
            view[end - 4 : end], "big"
        ):
            raise ImageError(ErrorCode.CORRUPT, f"png chunk {name!r} fails its checksum")
        if name == b"IEND":
            return
        at = end
    raise ImageError(ErrorCode.TRUNCATED, f"png of {len(data)} bytes ends before its end chunk")


_ORIENTATION = 0x0112  # EXIF tag


def _exif_orientation(exif: bytes) -> int:
    """EXIF orientation 1..8; 1 where none can be read."""
    if not exif:
        return 1
    tags = Image.Exif()
    try:
        tags.load(exif)
        value = tags.get(_ORIENTATION, 1)
    except Exception:  # broken metadata does not make the pixels wrong
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _oriented_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(height, width) as stored -> as displayed, and the other way round."""
    return (size[1], size[0]) if orientation >= 5 else size


def _reversed_sides(orientation: int) -> tuple[bool, bool]:
    """Whether the stored rows, and the stored columns, are displayed in reverse."""
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return (columns, rows) if orientation >= 5 else (rows, columns)


def _apply_orientation(image: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels as they are to be displayed, C-contiguous."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)
