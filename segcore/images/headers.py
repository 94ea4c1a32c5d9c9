"""Format and size of an image, read before any memory is allocated for its pixels."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO
from typing import Literal, NamedTuple

from PIL import BmpImagePlugin, TiffImagePlugin

from segcore.errors import ErrorCode, ImageError


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
    try:
        width, height = _SIZE_READERS[image_format](data)
    except ImageError:
        raise
    except Exception as error:  # a parser may raise anything on bytes that it does not expect
        raise decoder_error(image_format, error, data) from error
    if width < 1 or height < 1:
        raise ImageError(
            ErrorCode.CORRUPT, f"{image_format} header gives a size of {width}x{height}"
        )
    return ImageHeader(image_format, width, height)


_BMP_HEADER_BYTES = (12, 40, 52, 56, 64, 108, 124)  # sizes of the known versions of the header
_UNSUPPORTED_FORMATS = {  # images that are not decoded: offset and bytes of their signature
    "GIF": (0, b"GIF8"),
    "JPEG 2000": (4, b"jP  \r\n"),
    "JPEG 2000 codestream": (0, b"\xff\x4f\xff\x51"),
    "JPEG XL": (0, b"\xff\x0a"),
    "JPEG XL container": (4, b"JXL \r\n"),
    "AVIF, HEIF or another ISO media file": (4, b"ftyp"),
    "Photoshop": (0, b"8BPS"),
    "DICOM": (128, b"DICM"),
    "OpenEXR": (0, b"\x76\x2f\x31\x01"),
    "Canon raw": (8, b"CR\x02"),
}


def _identify_format(data: bytes) -> str:
    """Name of the format whose signature the data begin with."""
    if not data:
        raise ImageError(ErrorCode.EMPTY, "the image has no bytes")
    for name, (offset, magic) in _UNSUPPORTED_FORMATS.items():
        if data[offset : offset + len(magic)] == magic:
            raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, f"{name} is not decoded")
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADER_BYTES:
        return "bmp"
    raise ImageError(
        ErrorCode.NOT_AN_IMAGE, f"no known image signature; it begins with {bytes(data[:8])!r}"
    )


def decoder_error(image_format: str, error: Exception, data: bytes) -> ImageError:
    """What a parser or decoder raised, as `unsupported_format`, `truncated` or `corrupt`."""
    text = " ".join(str(error).split()) or type(error).__name__
    if any(phrase in text.lower() for phrase in _UNSUPPORTED_PHRASES):
        return ImageError(
            ErrorCode.UNSUPPORTED_FORMAT, f"{image_format} of a kind not decoded: {text}"
        )
    ended_early = isinstance(error, (EOFError, IndexError, struct.error))
    if ended_early or any(phrase in text.lower() for phrase in _TRUNCATED_PHRASES):
        message = f"{image_format} of {len(data)} bytes ends before the image does: {text}"
        return ImageError(ErrorCode.TRUNCATED, message)
    return ImageError(ErrorCode.CORRUPT, f"{image_format} cannot be decoded: {text}")


# Parts of messages of Pillow and simplejpeg, in lower case.
_UNSUPPORTED_PHRASES = ("unknown pixel mode", "unsupported bmp", "unsupported jpeg process")
_TRUNCATED_PHRASES = ("truncated", "premature end of jpeg", "not enough data", "end of file", "eof")


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, payload) of each segment before the first scan."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise ImageError(ErrorCode.CORRUPT, f"jpeg has no marker at byte {at} of its header")
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a length or payload
            at += 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in (0xDA, 0xD9) or length < 2:
            return
        yield marker, data[at + 4 : at + 2 + length]
        at += 2 + length


def _jpeg_size(data: bytes) -> tuple[int, int]:
    for marker, payload in jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width = struct.unpack(">BHH", payload[:5])
            if bits != 8:
                raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, f"jpeg of {bits} bits a sample")
            return width, height
    raise ImageError(ErrorCode.TRUNCATED, f"jpeg of {len(data)} bytes ends inside its header")


def _png_size(data: bytes) -> tuple[int, int]:
    if data[12:16] != b"IHDR":
        raise ImageError(ErrorCode.CORRUPT, "png does not begin with its header chunk")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def _webp_size(data: bytes) -> tuple[int, int]:
    expected_bytes = int.from_bytes(data[4:8], "little") + 8
    if len(data) < expected_bytes:
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
    byte_order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    offset = data[4:8] if 0x2A in data[2:4] else data[8:16]  # BigTIFF has 64-bit offsets
    if int.from_bytes(offset, byte_order) >= len(data):
        raise ImageError(
            ErrorCode.TRUNCATED, f"tiff of {len(data)} bytes ends before its directory"
        )
    with TiffImagePlugin.TiffImageFile(BytesIO(data)) as image:
        return int(image.tag_v2[256]), int(image.tag_v2[257])


def _bmp_size(data: bytes) -> tuple[int, int]:
    with BmpImagePlugin.BmpImageFile(BytesIO(data)) as image:
        width, height = image.size
        is_run_length = image.info.get("compression") in (1, 2)
    # A run takes two bytes and has at most 255 pixels.
    if is_run_length and width * height > 255 * len(data):
        raise ImageError(
            ErrorCode.TRUNCATED, f"bmp of {len(data)} bytes cannot hold {width}x{height} pixels"
        )
    return width, height


_SIZE_READERS = {
    "jpeg": _jpeg_size,
    "png": _png_size,
    "webp": _webp_size,
    "tiff": _tiff_size,
    "bmp": _bmp_size,
}
