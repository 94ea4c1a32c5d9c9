"""What decoding an image takes, from its header alone."""

from __future__ import annotations

import math

from segcore.images import tiff_directory as tags
from segcore.images.headers import ImageHeader
from segcore.images.jpeg_structure import jpeg_orientation, read_frame
from segcore.images.options import DecodeOptions
from segcore.images.png import read_png_header
from segcore.images.tiff import read_layout
from segcore.images.tiff_directory import read_directory

_RGB_BYTES = 3  # of a pixel of the result
_COEFFICIENT_BYTES = 2
_WIDE_COLOUR_BYTES = 17  # Pillow's pixels, OpenCV's samples, their turned copy

# Bytes of a pixel that the decoder holds beside the result, measured. WebP: two canvases, the
# frame as bytes and as an image. AVIF: planes of several frames. JPEG 2000: 32-bit coefficients.
# HEIC: planes, the same as colours, and as bytes.
_DECODER_BYTES = {"webp": 14, "bmp": 4, "gif": 5, "avif": 17, "jp2": 23, "heic": 17}
_PNG_DECODER_BYTES = {0: 1, 2: 4, 3: 1, 4: 4, 6: 4}  # by colour type
_COPIES = {"webp": 2, "avif": 1, "jp2": 1, "png": 1, "tiff": 1}  # of the encoded bytes


def decoding_bytes(data: bytes, header: ImageHeader, options: DecodeOptions) -> int:
    """Most bytes that decoding an image takes; an estimate, within a quarter.

    The encoded bytes themselves do not count, but copies of them do.
    """
    if header.format == "jpeg":
        per_pixel = _jpeg_bytes(data)
    elif header.format == "png":
        per_pixel = _png_bytes(data, options)
    elif header.format == "tiff":
        per_pixel = _tiff_bytes(data, options)
    else:
        per_pixel = _DECODER_BYTES[header.format] + _RGB_BYTES
    n_copied = _COPIES.get(header.format, 0) * len(data)
    return math.ceil(header.width * header.height * per_pixel) + n_copied


def _jpeg_bytes(data: bytes) -> float:
    frame = read_frame(data)
    n_components = len(frame.sampling)
    decoded = 4 if n_components == 4 else _RGB_BYTES
    coefficients = 0.0
    if not frame.is_in_one_scan:
        widest = max((horizontal for horizontal, _ in frame.sampling), default=1) or 1
        highest = max((vertical for _, vertical in frame.sampling), default=1) or 1
        parts = sum(h * v / (widest * highest) for h, v in frame.sampling)
        coefficients = _COEFFICIENT_BYTES * parts
    converted = decoded + _RGB_BYTES if n_components == 4 else 0
    turned = 2 * _RGB_BYTES if jpeg_orientation(data) != 1 else 0
    return max(coefficients + decoded, converted, turned)


def _png_bytes(data: bytes, options: DecodeOptions) -> float:
    header = read_png_header(data)
    decoder = _PNG_DECODER_BYTES.get(header.colour_type, 4)
    if header.bits == 16 and header.colour_type == 0:
        decoder = 5  # samples, as a copy, in 8 bits
    elif header.bits == 16 and options.wide_range != "high_byte":
        decoder = _WIDE_COLOUR_BYTES
    return max(decoder + _RGB_BYTES, 2 * _RGB_BYTES)


def _tiff_bytes(data: bytes, options: DecodeOptions) -> float:
    directory = read_directory(data)
    layout = read_layout(directory)
    if layout.is_read_by_numpy:
        kept = min(layout.n_samples, layout.n_colours + 1)
        converted = 4 + _RGB_BYTES if layout.n_colours == 4 else _RGB_BYTES
        return 2 * kept + layout.n_colours + converted
    decoder = float(4 if layout.n_samples > 1 else 1 if layout.bits <= 8 else 5)
    if not layout.is_uncompressed and tags.TILE_WIDTH not in directory.entries:
        rows = directory.value(tags.ROWS_PER_STRIP, layout.height)
        strip = min(rows / max(layout.height, 1), 1)  # part that is decoded at once
        sample_bytes = layout.n_samples * max(layout.bits, 8) / 8
        decoder += strip * (sample_bytes if layout.n_samples == 1 else max(sample_bytes, 4))
    if layout.bits > 8 and layout.n_samples > 1 and options.wide_range != "high_byte":
        decoder += _WIDE_COLOUR_BYTES
    return max(decoder + _RGB_BYTES, 2 * _RGB_BYTES)
