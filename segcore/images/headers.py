"""Format and size of an image, read before any memory is allocated for its pixels."""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple

from segcore.errors import ErrorCode, ImageError
from segcore.images import tiff_directory as tags
from segcore.images.failures import decoder_errors
from segcore.images.heic import BRANDS as HEIC_BRANDS
from segcore.images.heic import heic_size
from segcore.images.jpeg_structure import read_frame
from segcore.images.pillow_formats import PLUGINS
from segcore.images.png import SIGNATURE as PNG_SIGNATURE
from segcore.images.png import read_png_header
from segcore.images.tiff_directory import read_directory


class ImageHeader(NamedTuple):
    """What the header of an image says; width and height in pixels, before EXIF orientation."""

    format: str
    width: int
    height: int


def probe(data: bytes) -> ImageHeader:
    """Format and size from the header, without decoding or allocating pixels.

    Raises:
        ImageError: empty, not_an_image, unsupported_format, truncated or corrupt.
    """
    image_format = _identify_format(data)
    width, height = _SIZE_READERS[image_format](data)
    if width < 1 or height < 1:
        raise ImageError(
            ErrorCode.CORRUPT, f"{image_format} header gives a size of {width}x{height}"
        )
    return ImageHeader(image_format, width, height)


_BMP_HEADER_BYTES = (12, 40, 52, 56, 64, 108, 124)  # sizes of the known versions of the header
_AVIF_BRANDS = (b"avif", b"avis")
_SIGNATURES = {  # format, offset and bytes
    "jpeg": (0, b"\xff\xd8\xff"),
    "png": (0, PNG_SIGNATURE),
    "gif": (0, b"GIF8"),
    "jp2": (0, b"\0\0\0\x0cjP  \r\n\x87\n"),
}
_UNSUPPORTED_FORMATS = {  # images that are not decoded
    "JPEG XL": (0, b"\xff\x0a"),
    "JPEG XL container": (4, b"JXL \r\n"),
    "an ISO media file that is neither AVIF nor HEIC": (4, b"ftyp"),
    "Photoshop": (0, b"8BPS"),
    "DICOM": (128, b"DICM"),
    "OpenEXR": (0, b"\x76\x2f\x31\x01"),
    "Canon raw": (8, b"CR\x02"),
}


def _identify_format(data: bytes) -> str:
    """Name of the format whose signature the data begin with."""
    if not data:
        raise ImageError(ErrorCode.EMPTY, "the image has no bytes")
    if data[4:8] == b"ftyp" and (media_format := _media_format(data)):
        return media_format
    for name, (offset, magic) in _UNSUPPORTED_FORMATS.items():
        if data[offset : offset + len(magic)] == magic:
            raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, f"{name} is not decoded")
    for name, (offset, magic) in _SIGNATURES.items():
        if data[offset : offset + len(magic)] == magic:
            return name
    if data[:4] == b"\xff\x4f\xff\x51":  # codestream without its container
        return "jp2"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:4] in tags.SIGNATURES:
        return "tiff"
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADER_BYTES:
        return "bmp"
    raise ImageError(
        ErrorCode.NOT_AN_IMAGE, f"no known image signature; it begins with {bytes(data[:8])!r}"
    )


def _media_format(data: bytes) -> str:
    """The format of an ISO media file by the brands that it names; empty if it is another."""
    end = min(int.from_bytes(data[:4], "big"), len(data), 1024)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, end - 3, 4))}
    if not brands.isdisjoint(_AVIF_BRANDS):
        return "avif"
    return "heic" if not brands.isdisjoint(HEIC_BRANDS) else ""


def _jpeg_size(data: bytes) -> tuple[int, int]:
    frame = read_frame(data)
    return frame.width, frame.height


def _png_size(data: bytes) -> tuple[int, int]:
    header = read_png_header(data)
    return header.width, header.height


def _webp_size(data: bytes) -> tuple[int, int]:
    expected_bytes = int.from_bytes(data[4:8], "little") + 8
    if len(data) < expected_bytes or len(data) < 30:
        raise ImageError(
            ErrorCode.TRUNCATED, f"webp has {len(data)} bytes, but its header says {expected_bytes}"
        )
    first_chunk = data[12:16]
    if first_chunk == b"VP8X":
        sides = [int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27)]
        return sides[0], sides[1]
    if first_chunk == b"VP8L":
        (bits,) = struct.unpack("<I", data[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if first_chunk == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    raise ImageError(ErrorCode.CORRUPT, f"webp has an unknown first chunk {bytes(first_chunk)!r}")


def _tiff_size(data: bytes) -> tuple[int, int]:
    directory = read_directory(data)
    return directory.value(tags.IMAGE_WIDTH, 0), directory.value(tags.IMAGE_LENGTH, 0)


def _bmp_size(data: bytes) -> tuple[int, int]:
    with decoder_errors("bmp", data), PLUGINS["bmp"](BytesIO(data)) as image:
        width, height = image.size
        is_run_length = image.info.get("compression") in (1, 2)
    # A run takes two bytes and has at most 255 pixels.
    if is_run_length and width * height > 255 * len(data):
        raise ImageError(
            ErrorCode.TRUNCATED, f"bmp of {len(data)} bytes cannot hold {width}x{height} pixels"
        )
    return width, height


def _plugin_size(image_format: str) -> Callable[[bytes], tuple[int, int]]:
    """What Pillow's plugin says before it loads any pixel."""

    def read_size(data: bytes) -> tuple[int, int]:
        with decoder_errors(image_format, data), PLUGINS[image_format](BytesIO(data)) as image:
            return image.size

    return read_size


_SIZE_READERS: dict[str, Callable[[bytes], tuple[int, int]]] = {
    "jpeg": _jpeg_size,
    "png": _png_size,
    "webp": _webp_size,
    "tiff": _tiff_size,
    "bmp": _bmp_size,
    "gif": _plugin_size("gif"),
    "avif": _plugin_size("avif"),
    "jp2": _plugin_size("jp2"),
    "heic": heic_size,
}
