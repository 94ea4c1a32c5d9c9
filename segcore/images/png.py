"""PNG: its chunks checked and reduced to those that hold pixels."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from segcore.errors import ErrorCode, ImageError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_PALETTE_COLOUR = 3  # colour type


class PngParts(NamedTuple):
    """What matters of a PNG.

    Attributes:
        pixel_file: A PNG of the chunks that hold pixels alone. Texts, colour profiles and other
            chunks do not change pixels, and may be large, damaged or expand to gigabytes.
        bits: Of a sample.
        exif: Payload of the first EXIF chunk; empty if there is none.
        n_frames: Of an animation; else 1.
    """

    pixel_file: bytes
    bits: int
    exif: bytes
    n_frames: int


class PngHeader(NamedTuple):
    """The fields of IHDR that matter."""

    width: int
    height: int
    bits: int
    colour_type: int


def read_png_header(data: bytes) -> PngHeader:
    """The fields of the header chunk.

    Raises:
        ImageError: truncated, corrupt or unsupported_format.
    """
    if len(data) < 33:
        message = f"png of {len(data)} bytes ends inside its header"
        raise ImageError(ErrorCode.TRUNCATED, message)
    if data[12:16] == b"CgBI":
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, "png in Apple's own variant (CgBI)")
    if data[12:16] != b"IHDR":
        raise ImageError(ErrorCode.CORRUPT, "png does not begin with its header chunk")
    return PngHeader(*struct.unpack(">IIBB", data[16:26]))


def read_png(data: bytes) -> PngParts:
    """Check the chunks that hold pixels, and leave out all others.

    Pillow does not check the checksums of pixel data, and reads all texts and profiles.

    Raises:
        ImageError: truncated, corrupt or unsupported_format.
    """
    header, view = read_png_header(data), memoryview(data)
    kept: list[bytes | memoryview] = [SIGNATURE]
    names, exif, n_frames = set(), b"", 1
    for name, start, end in _chunks(data):
        is_critical = not name[0] & 0x20
        if is_critical and zlib.crc32(view[start - 4 : end]) != int.from_bytes(
            view[end : end + 4], "big"
        ):
            raise ImageError(ErrorCode.CORRUPT, f"png chunk {name!r} fails its checksum")
        names.add(name)
        if name in _PIXEL_CHUNKS:
            kept.append(view[start - 8 : end + 4])
        elif is_critical:
            message = f"png with a chunk {name!r} that only its writer understands"
            raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, message)
        elif name == b"eXIf" and not exif:
            exif = bytes(view[start:end])
        elif name == b"acTL" and end - start == 8:
            n_frames = max(1, int.from_bytes(view[start : start + 4], "big"))
    if header.colour_type == _PALETTE_COLOUR and b"PLTE" not in names:
        raise ImageError(ErrorCode.CORRUPT, "png of palette colours has no palette")
    return PngParts(b"".join(kept), header.bits, exif, n_frames)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, end of the payload) of each chunk, the end chunk included.

    Raises:
        ImageError: truncated.
    """
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        name, start, end = data[at + 4 : at + 8], at + 8, at + 8 + length
        if end + 4 > len(data):
            break
        yield name, start, end
        if name == b"IEND":
            return
        at = end + 4
    raise ImageError(ErrorCode.TRUNCATED, f"png of {len(data)} bytes ends before its end chunk")
