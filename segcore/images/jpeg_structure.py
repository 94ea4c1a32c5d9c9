"""What a JPEG says about itself before its coded data: segments, frame, colours, orientation."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from segcore.errors import ErrorCode, ImageError
from segcore.images.orientation import exif_orientation

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_ADOBE, _APP1 = 0xEE, 0xE1


class Segment(NamedTuple):
    """One segment of a JPEG; `start` is the position of its payload."""

    marker: int
    start: int
    payload: bytes


def segments_before_scan(data: bytes) -> Iterator[Segment]:
    """The segments before the first scan.

    Bytes between two segments are skipped, as libjpeg does; it warns of them when it decodes.
    """
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker <= 0x01 or 0xD0 <= marker <= 0xD8:  # no marker, or one without a payload
            at += 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in (_START_OF_SCAN, _END_OF_IMAGE) or length < 2:
            return
        yield Segment(marker, at + 4, data[at + 4 : at + 2 + length])
        at += 2 + length


class JpegFrame(NamedTuple):
    """The frame header of a JPEG.

    Attributes:
        marker: 0xC0 to 0xCF; which process coded it.
        sampling: (horizontal, vertical) sampling factor of each component.
    """

    marker: int
    bits: int
    height: int
    width: int
    sampling: tuple[tuple[int, int], ...]

    @property
    def is_progressive(self) -> bool:
        """Whether each pixel is coded in several scans."""
        return self.marker in (0xC2, 0xC6, 0xCA, 0xCE)


def read_frame(data: bytes) -> JpegFrame:
    """The frame header.

    Raises:
        ImageError: truncated, or unsupported_format.
    """
    for marker, _, payload in segments_before_scan(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if len(payload) < 6 or len(payload) < 6 + 3 * payload[5]:
                break
            bits, height, width, n_components = struct.unpack(">BHHB", payload[:6])
            if bits != 8:
                raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, f"jpeg of {bits} bits a sample")
            if height == 0:
                message = "jpeg that gives its height only after its pixels"
                raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, message)
            factors = payload[7 : 7 + 3 * n_components : 3]
            sampling = tuple((value >> 4, value & 15) for value in factors)
            return JpegFrame(marker, bits, height, width, sampling)
    raise ImageError(ErrorCode.TRUNCATED, f"jpeg of {len(data)} bytes ends inside its header")


def jpeg_orientation(data: bytes) -> int:
    """EXIF orientation 1..8. Of several EXIF segments the first counts, as in Pillow and OpenCV."""
    for marker, _, payload in segments_before_scan(data):
        if marker == _APP1 and payload[:6] == b"Exif\0\0":
            return exif_orientation(payload)
    return 1


def with_known_colour_transform(data: bytes, n_components: int) -> bytes:
    """The JPEG with a colour transform that libjpeg knows in its Adobe segment.

    For a transform that Adobe has not defined libjpeg warns, and takes YCbCr or YCCK. Those are
    written into a copy here, because any warning counts as damage.
    """
    known = (0, 1) if n_components == 3 else (0, 2)
    if n_components < 3:
        return data
    for marker, start, payload in segments_before_scan(data):
        is_adobe = marker == _ADOBE and len(payload) >= 12 and payload[:5] == b"Adobe"
        if is_adobe and payload[11] not in known:
            data = data[: start + 11] + bytes([known[1]]) + data[start + 12 :]
    return data


# In coded data a zero or the number of a restart follows each 0xFF; all else is a marker.
_MARKER_IN_CODED_DATA = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")


def count_scans(data: bytes) -> int:
    """Number of scans between the beginning and the end of the image.

    Neither the payloads of segments count nor what follows the image.
    """
    n_scans, at = 0, 2
    while (found := _MARKER_IN_CODED_DATA.search(data, at)) is not None:
        marker, at = data[found.end() - 1], found.end()
        if marker == _END_OF_IMAGE:
            break
        if marker in (0x01, 0xD8):
            continue
        n_scans += marker == _START_OF_SCAN
        at += max(int.from_bytes(data[at : at + 2], "big"), 2)
    return n_scans
