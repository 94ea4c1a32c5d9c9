"""What decoding an image takes, from its header alone."""

from __future__ import annotations

import math

from segcore.images import tiff_directory as tags
from segcore.images.headers import ImageHeader
from segcore.images.jpeg_structure import read_frame
from segcore.images.options import DecodeOptions
from segcore.images.png import read_png_header
from segcore.images.tiff import read_layout
from segcore.images.tiff_directory import read_directory

_RGB_BYTES = 3  # of a pixel
_COEFFICIENT_BYTES = 2
_WIDE_COLOUR_BYTES = 18  # Pillow's pixels, OpenCV's samples, both as arrays

# Bytes of a pixel that the decoder holds beside the result; measured. WebP: two canvases, the
# frame as bytes and as an image. AVIF: planes of several frames. JPEG 2000: 32-bit coefficients.
_DECODER_BYTES = {"webp": 17, "bmp": 4, "gif": 5, "avif": 20, "jp2": 37}
_PNG_DECODER_BYTES = {0: 1, 2: 4, 3: 1, 4: 4, 6: 4}  # by colour type


def decoding_bytes(data: bytes, header: ImageHeader, options: DecodeOptions) -> int:
    """Most bytes that decoding an image takes beside its encoded bytes; an estimate.

    Copies of the encoded bytes count, too.
    """
    if header.format == "jpeg":
        per_pixel = _jpeg_bytes(data)
    elif header.format == "png":
        per_pixel = _png_bytes(data, options)
    elif header.format == "tiff":
        per_pixel = _tiff_bytes(data, options)
    else:
        per_pixel = _DECODER_BYTES[header.format] + _RGB_BYTES
    # Turned pixels are a copy, made when the decoder has freed its memory.
    per_pixel = max(per_pixel, 2 * _RGB_BYTES)
    return math.ceil(header.width * header.height * per_pixel) + 2 * len(data)


def _jpeg_bytes(data: bytes) -> float:
    frame = read_frame(data)
    n_components = len(frame.sampling)
    result = 4 if n_components == 4 else _RGB_BYTES
    coefficients = 0.0
    if frame.is_progressive or _has_several_scans(data, n_components):
        widest = max(horizontal for horizontal, _ in frame.sampling) or 1
        highest = max(vertical for _, vertical in frame.sampling) or 1
        parts = sum(h * v / (widest * highest) for h, v in frame.sampling)
        coefficients = _COEFFICIENT_BYTES * parts
    return max(coefficients + result, 4 + _RGB_BYTES if n_components == 4 else 0)


def _has_several_scans(data: bytes, n_components: int) -> bool:
    at = data.find(b"\xff\xda")
    return at >= 0 and at + 4 < len(data) and data[at + 4] < n_components


def _png_bytes(data: bytes, options: DecodeOptions) -> float:
    header = read_png_header(data)
    decoder = _PNG_DECODER_BYTES.get(header.colour_type, 4)
    if header.bits == 16 and header.colour_type == 0:
        decoder = 5  # samples, as a copy, in 8 bits
    elif header.bits == 16 and options.wide_range != "high_byte":
        decoder = _WIDE_COLOUR_BYTES
    return decoder + _RGB_BYTES


def _tiff_bytes(data: bytes, options: DecodeOptions) -> float:
    directory = read_directory(data)
    layout = read_layout(directory)
    sample_bytes = layout.n_samples * max(layout.bits, 8) / 8
    if layout.is_read_by_numpy:
        return min(layout.n_samples, 5) * 3 + 2 * _RGB_BYTES
    chunk = 1.0  # part of the image that is decoded at once
    if tags.TILE_WIDTH not in directory.entries:
        rows = directory.value(tags.ROWS_PER_STRIP, layout.height)
        chunk = min(rows / max(layout.height, 1), 1)
    decoder = 4 + chunk * max(sample_bytes, 4)
    if layout.bits > 8 and options.wide_range != "high_byte":
        decoder += _WIDE_COLOUR_BYTES
    return decoder + _RGB_BYTES
