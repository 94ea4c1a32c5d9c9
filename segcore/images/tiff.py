"""TIFF pixels of the first page: by Pillow, and uncompressed layouts that it misreads by NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin

from segcore.errors import ErrorCode, ImageError
from segcore.images import tiff_directory as tags
from segcore.images.failures import decoder_errors
from segcore.images.image_warnings import page_warnings, range_warnings
from segcore.images.options import DecodeOptions
from segcore.images.pixels import StoredPixels, grey_to_rgb, pillow_to_rgb
from segcore.images.samples import is_narrow_8_bits, to_8_bits
from segcore.images.tiff_directory import TiffDirectory, count_more_pages, read_directory
from segcore.images.tiff_pages import write_page
from segcore.images.wide_colours import wide_colours

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _INKS = 0, 1, 2, 3, 5  # PHOTOMETRIC
_UNCOMPRESSED, _WEBP = 1, 50001  # COMPRESSION
_ASSOCIATED_ALPHA = 1
_REVERSED_BITS = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


class TiffLayout(NamedTuple):
    """How the samples of a page are stored."""

    height: int
    width: int
    bits: int
    n_samples: int
    photometric: int
    compression: int
    is_planar: bool
    extra_samples: tuple[int, ...]

    @property
    def n_colours(self) -> int:
        """Samples of a pixel that are not extra: 1, 3 or 4."""
        return {_RGB: 3, _INKS: 4}.get(self.photometric, 1)

    @property
    def is_uncompressed(self) -> bool:
        """Whether samples lie in the file as they are."""
        return self.compression == _UNCOMPRESSED

    @property
    def is_read_by_numpy(self) -> bool:
        """Whether Pillow misreads or refuses this uncompressed layout, or cuts its samples."""
        return (
            self.is_uncompressed
            and self.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _INKS)
            and 8 <= self.bits <= 16
            and self.n_samples >= self.n_colours
            and (self.bits > 8 or (self.is_planar and self.n_samples > 1) or self.n_samples > 4)
        )


def read_layout(directory: TiffDirectory) -> TiffLayout:
    """How the samples of a page are stored.

    Raises:
        ImageError: corrupt or truncated.
    """
    bits = directory.values(tags.BITS_PER_SAMPLE, (1,))
    n_samples = directory.value(tags.SAMPLES_PER_PIXEL, 1)
    if tags.PHOTOMETRIC not in directory.entries:
        photometric = _RGB if n_samples >= 3 else _BLACK_IS_ZERO
    else:
        photometric = directory.value(tags.PHOTOMETRIC, 0)
    return TiffLayout(
        height=directory.value(tags.IMAGE_LENGTH, 0),
        width=directory.value(tags.IMAGE_WIDTH, 0),
        bits=max(bits) if len(set(bits)) == 1 else 0,
        n_samples=n_samples,
        photometric=photometric,
        compression=directory.value(tags.COMPRESSION, _UNCOMPRESSED),
        is_planar=directory.value(tags.PLANAR_CONFIGURATION, 1) == 2,
        extra_samples=directory.values(tags.EXTRA_SAMPLES),
    )


def decode_tiff(data: bytes, options: DecodeOptions) -> StoredPixels:
    """The first page.

    Raises:
        ImageError: See `segcore.images.decode_image`.
    """
    directory = read_directory(data)
    layout = read_layout(directory)
    _refuse_other_pictures(directory, layout, options.max_pixels)
    if layout.is_read_by_numpy:
        samples = _read_samples(directory, layout)
        rgb, is_narrow = _samples_to_rgb(samples, layout, options)
        orientation = _orientation(directory)
    else:
        if directory.is_big and directory.order == ">":  # Pillow cannot read these
            data = write_page(directory, is_big=False)
        rgb, is_narrow = _decode_with_pillow(data, directory, layout, options)
        orientation = 1  # Pillow has turned it
    n_left_out = count_more_pages(directory) if options.pages == "first" else 0
    warnings = (*page_warnings(n_left_out), *range_warnings(is_narrow, options))
    return StoredPixels(rgb, orientation, warnings)


def _refuse_other_pictures(directory: TiffDirectory, layout: TiffLayout, max_pixels: int) -> None:
    """Refuse what is not a plain picture of unsigned samples."""
    if tags.DNG_VERSION in directory.entries or directory.value(tags.NEW_SUBFILE_TYPE, 0) & 1:
        raise ImageError(
            ErrorCode.UNSUPPORTED_FORMAT, "tiff whose first page is a camera raw or a thumbnail"
        )
    if not set(directory.values(tags.SAMPLE_FORMAT, (1,))) <= {1, 4}:
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, "tiff with signed or floating-point samples")
    tile_pixels = directory.value(tags.TILE_WIDTH, 1) * directory.value(tags.TILE_LENGTH, 1)
    if tile_pixels > max_pixels:
        raise ImageError(
            ErrorCode.TOO_MANY_PIXELS, f"tiff tiles of {tile_pixels} pixels, limit {max_pixels}"
        )
    known = layout.compression in TiffImagePlugin.COMPRESSION_INFO
    if not known or layout.compression == _WEBP:  # Pillow's libtiff is built without WebP
        message = f"tiff with compression {layout.compression} is not decoded"
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, message)


def _orientation(directory: TiffDirectory) -> int:
    try:
        value = directory.value(tags.ORIENTATION, 1)
    except ImageError:  # broken metadata does not make the pixels wrong
        return 1
    return value if 1 <= value <= 8 else 1


def _decode_with_pillow(
    data: bytes, directory: TiffDirectory, layout: TiffLayout, options: DecodeOptions
) -> tuple[np.ndarray, bool]:
    """RGB, turned, and whether its samples are wide and use a small part of their range."""
    with decoder_errors("tiff", data):
        image = TiffImagePlugin.TiffImageFile(BytesIO(data))
    with image:
        with decoder_errors("tiff", data):
            image.load()
        if image.mode.startswith("I;16"):
            bits = layout.bits or 16
            grey, is_narrow = to_8_bits(np.asarray(image), bits, options.wide_range)
            if layout.photometric == _WHITE_IS_ZERO:
                grey = 255 - grey
            return grey_to_rgb(grey), is_narrow
        if layout.photometric == _PALETTE and image.mode in ("P", "PA"):
            _mend_palette(image, directory)
        rgb = pillow_to_rgb(image)
    if layout.bits <= 8:
        return rgb, False
    if options.wide_range != "high_byte":
        return wide_colours(data, rgb, "tiff", _orientation(directory), options.wide_range)
    return rgb, is_narrow_8_bits(rgb)


def _mend_palette(image: Image.Image, directory: TiffDirectory) -> None:
    """Take a palette of 8-bit values as such; libtiff does, too.

    The values have 16 bits, but some programs write 0 to 255: in Pillow such an image is black.
    """
    palette = np.array(directory.values(tags.COLOR_MAP))
    if palette.size and palette.size % 3 == 0 and palette.max() < 256:
        image.putpalette(palette.reshape(3, -1).T.astype(np.uint8).tobytes())


class _Chunk(NamedTuple):
    """A strip or tile: its bytes, and where its samples lie in the image."""

    data: memoryview
    top: int
    left: int
    height: int
    width: int
    plane: int


def _read_samples(directory: TiffDirectory, layout: TiffLayout) -> np.ndarray:
    """(H, W, colours + alpha) uint8 or uint16 of an uncompressed page.

    A reversed order of bits applies to each byte, as in libtiff, also of samples of 16 bits.

    Raises:
        ImageError: truncated or corrupt.
    """
    has_alpha = layout.extra_samples[:1] == (_ASSOCIATED_ALPHA,)
    n_kept = min(layout.n_colours + has_alpha, layout.n_samples)
    dtype = np.uint8 if layout.bits == 8 else np.uint16
    samples = np.zeros((layout.height, layout.width, n_kept), dtype)
    is_reversed = directory.value(tags.FILL_ORDER, 1) == 2
    for chunk in _chunks(directory, layout):
        if chunk.plane >= n_kept:
            continue
        per_pixel = 1 if layout.is_planar else layout.n_samples
        if is_reversed:
            chunk = chunk._replace(data=memoryview(bytes(chunk.data).translate(_REVERSED_BITS)))
        values = _unpack(chunk, per_pixel, layout.bits, directory.order)
        rows = slice(chunk.top, min(chunk.top + chunk.height, layout.height))
        columns = slice(chunk.left, min(chunk.left + chunk.width, layout.width))
        target = samples[rows, columns]
        values = values[: target.shape[0], : target.shape[1]]
        if layout.is_planar:
            target[..., chunk.plane] = values[..., 0]
        else:
            target[:] = values[..., :n_kept]
    return samples


def _chunks(directory: TiffDirectory, layout: TiffLayout) -> Iterator[_Chunk]:
    """The strips or tiles of all planes.

    Raises:
        ImageError: truncated or corrupt.
    """
    if tags.TILE_WIDTH in directory.entries:
        offsets = directory.values(tags.TILE_OFFSETS)
        height = directory.value(tags.TILE_LENGTH, 0)
        width = directory.value(tags.TILE_WIDTH, 0)
        is_strip = False
    else:
        offsets = directory.values(tags.STRIP_OFFSETS)
        height = min(directory.value(tags.ROWS_PER_STRIP, layout.height), layout.height)
        width, is_strip = layout.width, True
    if min(height, width) < 1:
        raise ImageError(ErrorCode.CORRUPT, f"tiff with strips or tiles of {width}x{height}")
    n_planes = layout.n_samples if layout.is_planar else 1
    n_chunks = n_planes * -(-layout.height // height) * -(-layout.width // width)
    if len(offsets) < n_chunks:
        message = f"tiff has {len(offsets)} of the {n_chunks} strips or tiles of its pixels"
        raise ImageError(ErrorCode.CORRUPT, message)
    places = itertools.product(
        range(n_planes), range(0, layout.height, height), range(0, layout.width, width)
    )
    view, per_pixel = memoryview(directory.data), 1 if layout.is_planar else layout.n_samples
    row_bytes = (width * per_pixel * layout.bits + 7) // 8
    for offset, (plane, top, left) in zip(offsets, places, strict=False):
        n_rows = min(height, layout.height - top) if is_strip else height
        chunk = view[offset : offset + n_rows * row_bytes]
        if len(chunk) < n_rows * row_bytes:
            message = f"tiff of {len(directory.data)} bytes ends before its pixels do"
            raise ImageError(ErrorCode.TRUNCATED, message)
        yield _Chunk(chunk, top, left, n_rows, width, plane)


def _unpack(chunk: _Chunk, per_pixel: int, bits: int, order: str) -> np.ndarray:
    """(height, width, per_pixel) samples of a chunk."""
    shape = chunk.height, chunk.width, per_pixel
    if bits == 8:
        return np.frombuffer(chunk.data, np.uint8).reshape(shape)
    if bits == 16:
        return np.frombuffer(chunk.data, f"{order}u2").reshape(shape)
    # Packed, the highest bit first, in either byte order; each row begins with a byte.
    rows = np.frombuffer(chunk.data, np.uint8).reshape(chunk.height, -1)
    values = np.empty((chunk.height, chunk.width * per_pixel), np.uint16)
    weights = (1 << np.arange(bits - 1, -1, -1)).astype(np.uint16)
    for row, target in zip(rows, values, strict=True):
        row_bits = np.unpackbits(row)[: target.size * bits].reshape(-1, bits)
        target[:] = row_bits @ weights
    return values.reshape(shape)


def _samples_to_rgb(
    samples: np.ndarray, layout: TiffLayout, options: DecodeOptions
) -> tuple[np.ndarray, bool]:
    """RGB of samples, and whether they are wide and use a small part of their range."""
    is_narrow = False
    colours, alpha = samples[..., : layout.n_colours], samples[..., layout.n_colours :]
    if layout.bits > 8:
        colours, is_narrow = to_8_bits(colours, layout.bits, options.wide_range)
    if alpha.size:
        high_byte = (alpha >> (layout.bits - 8)).astype(np.uint8)
        _divide_by_alpha(colours, high_byte)
    if layout.photometric == _WHITE_IS_ZERO:
        colours = 255 - colours
    if layout.photometric == _INKS:
        image = Image.fromarray(np.ascontiguousarray(colours), "CMYK")
        return pillow_to_rgb(image), is_narrow
    if layout.n_colours == 1:
        return grey_to_rgb(colours[..., 0]), is_narrow
    return np.ascontiguousarray(colours), is_narrow


def _divide_by_alpha(colours: np.ndarray, alpha: np.ndarray) -> None:
    """Undo the multiplication of colours by alpha, in place, as Pillow does it."""
    for colour_row, alpha_row in zip(colours, alpha, strict=True):
        divided = np.minimum(colour_row.astype(np.uint32) * 255 // np.maximum(alpha_row, 1), 255)
        colour_row[:] = np.where(alpha_row == 0, 0, divided)
