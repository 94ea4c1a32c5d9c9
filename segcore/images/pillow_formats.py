"""PNG, WebP, BMP, GIF, AVIF and JPEG 2000 pixels, by Pillow's plugin for that format alone."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile

from segcore.images.failures import decoder_errors
from segcore.images.image_warnings import frame_warnings, range_warnings
from segcore.images.options import DecodeOptions
from segcore.images.orientation import exif_orientation
from segcore.images.pixels import StoredPixels, grey_to_rgb, pillow_to_rgb
from segcore.images.png import read_png
from segcore.images.samples import is_narrow_8_bits, to_8_bits
from segcore.images.wide_colours import wide_colours

PLUGINS: dict[str, type[ImageFile]] = {
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "avif": AvifImagePlugin.AvifImageFile,
    "jp2": Jpeg2KImagePlugin.Jpeg2KImageFile,
}


def decode_png(data: bytes, options: DecodeOptions) -> StoredPixels:
    """A PNG; the first picture of an animated one.

    Raises:
        ImageError: See `segcore.images.decode_image`.
    """
    png = read_png(data)
    with load_with_pillow("png", png.pixel_file) as image:
        rgb, is_narrow = _to_rgb(image, options, png.pixel_file if png.bits == 16 else None)
    warnings = (*frame_warnings(png.n_frames), *range_warnings(is_narrow, options))
    return StoredPixels(rgb, exif_orientation(png.exif), warnings)


def decode_with_pillow(image_format: str, data: bytes, options: DecodeOptions) -> StoredPixels:
    """An image of another format; the first frame of an animation.

    Raises:
        ImageError: See `segcore.images.decode_image`.
    """
    with load_with_pillow(image_format, data) as image:
        rgb, is_narrow = _to_rgb(image, options, None)
        exif = image.info.get("exif", b"")
        n_frames = getattr(image, "n_frames", 1) if image_format != "gif" else _count_gif(data)
    warnings = (*frame_warnings(n_frames), *range_warnings(is_narrow, options))
    return StoredPixels(rgb, exif_orientation(exif), warnings)


def load_with_pillow(image_format: str, data: bytes) -> Image.Image:
    """A loaded image of Pillow's plugin for this format.

    Raises:
        ImageError: See `segcore.images.decode_image`.
    """
    with decoder_errors(image_format, data):
        image = PLUGINS[image_format](BytesIO(data))
        image.load()
    return image


def _to_rgb(
    image: Image.Image, options: DecodeOptions, wide_file: bytes | None
) -> tuple[np.ndarray, bool]:
    """RGB of a loaded image, and whether its samples are wide and use little of their range.

    Args:
        wide_file: The file, if its samples have 16 bits.
    """
    if image.mode.startswith("I;16"):
        grey, is_narrow = to_8_bits(np.asarray(image), 16, options.wide_range)
        return grey_to_rgb(grey), is_narrow
    rgb = pillow_to_rgb(image)
    if wide_file is None:
        return rgb, False
    if options.wide_range == "high_byte":
        return rgb, is_narrow_8_bits(rgb)
    return wide_colours(wide_file, rgb, "png", 1, options.wide_range)


def _count_gif(data: bytes) -> int:
    """Frames of a GIF, as far as they can be read; nothing is decoded."""
    try:
        with GifImagePlugin.GifImageFile(BytesIO(data)) as image:
            return image.n_frames
    except MemoryError:
        raise
    except Exception:  # damage after the first frame
        return 1
