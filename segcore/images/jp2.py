"""JPEG 2000 pixels: by Pillow, and by OpenCV where Pillow would round bright samples to black."""

from __future__ import annotations

import struct

import cv2
import numpy as np

from segcore.errors import ErrorCode, ImageError
from segcore.images.failures import decoder_errors
from segcore.images.image_warnings import range_warnings
from segcore.images.options import DecodeOptions
from segcore.images.pillow_formats import decode_with_pillow, load_with_pillow
from segcore.images.pixels import StoredPixels, bands, pillow_to_rgb
from segcore.images.samples import to_8_bits

_CODESTREAM = b"\xff\x4f\xff\x51"
_MAX_SAMPLE_BITS = 16


def decode_jp2(data: bytes, options: DecodeOptions) -> StoredPixels:
    """A JPEG 2000 file or codestream.

    Raises:
        ImageError: See `segcore.images.decode_image`.
    """
    components = component_bits(data)
    colours = components[: 3 if len(components) >= 3 else 1]
    is_wide_grey = len(components) == 1 and colours[0] > 8
    if set(colours) <= {8} or is_wide_grey:
        return decode_with_pillow("jp2", data, options)
    with load_with_pillow("jp2", data) as image:
        if image.mode in ("P", "PA"):  # the bits are those of numbers of colours
            return StoredPixels(pillow_to_rgb(image), 1)
        rounded = pillow_to_rgb(image)
    if len(set(colours)) > 1 or colours[0] > _MAX_SAMPLE_BITS:
        message = f"jp2 with colours of {' and '.join(map(str, sorted(set(colours))))} bits"
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, message)
    if colours[0] < 8:
        return StoredPixels(_stretched(rounded, colours[0]), 1)
    rgb, is_narrow = to_8_bits(
        _wide_samples(data, rounded, colours[0]), colours[0], options.wide_range
    )
    return StoredPixels(rgb, 1, range_warnings(is_narrow, options))


def _stretched(shifted: np.ndarray, bits: int) -> np.ndarray:
    """Samples of fewer than 8 bits, which Pillow shifts up: white becomes 255, as elsewhere."""
    levels = np.arange(256) >> (8 - bits)
    return (levels * 255 // ((1 << bits) - 1)).astype(np.uint8)[shifted]


def component_bits(data: bytes) -> tuple[int, ...]:
    """Bits of a sample of each component; empty where the header cannot be read."""
    at = data.find(_CODESTREAM)
    if at < 0 or at + 42 > len(data):
        return ()
    (n_components,) = struct.unpack_from(">H", data, at + 40)
    sizes = data[at + 42 : at + 42 + 3 * n_components : 3]
    return tuple((size & 0x7F) + 1 for size in sizes)


def _wide_samples(data: bytes, rounded: np.ndarray, bits: int) -> np.ndarray:
    """(H, W, 3) uint16 of a picture of several components with more than 8 bits each.

    Pillow rounds such samples to 8 bits, and what would become 256 to 0: white turns black.
    OpenCV gives them whole. They are taken only where rounding them gives what Pillow read.

    Raises:
        ImageError: unsupported_format.
    """
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    with decoder_errors("jp2", data):
        samples = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if samples is not None and samples.dtype == np.uint16 and samples.shape == rounded.shape:
        samples = samples[..., ::-1]
        if _round_to(samples, rounded, bits):
            return samples
    raise ImageError(
        ErrorCode.UNSUPPORTED_FORMAT,
        f"jp2 with colours of {bits} bits that OpenCV does not read as Pillow does",
    )


def _round_to(samples: np.ndarray, rounded: np.ndarray, bits: int) -> bool:
    """Whether Pillow's way to 8 bits leads from the samples to the rounded ones."""
    shift = bits - 8
    for top, bottom in bands(*rounded.shape[:2]):
        wide = samples[top:bottom].astype(np.uint32) + (1 << (shift - 1))
        if not np.array_equal((wide >> shift & 255).astype(np.uint8), rounded[top:bottom]):
            return False
    return True
