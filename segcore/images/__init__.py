"""Image bytes -> RGB pixels: bounded, strict, and the same in every process and thread.

JPEG is decoded by libjpeg-turbo (`simplejpeg`, strict: a warning is an error), everything else by
Pillow, with only the plugin for the format that the signature names.

    options         what a user chooses
    headers         format and size of an image, before any memory is allocated for its pixels
    memory          what decoding it takes
    decoding        pixels: limits, then the module of the format (jpeg, png, tiff, pillow_formats)
    samples         more than 8 bits as 8 bits
    orientation     EXIF
    tiff_pages      the pages of a TIFF, each as an image of its own

What a decoded image is, for every format: docs/formats.md. In short: 8-bit RGB of the first page or
frame, turned by the EXIF orientation, without alpha, colour profiles and gamma; exact or refused.

`decode_image_reduced` decodes a large JPEG to fewer pixels, just as strictly: damage is detected
all the same.
"""

from segcore.images.decoding import (
    DECODER,
    DecodedImage,
    check_limits,
    decode_image,
    decode_image_reduced,
    decode_with_warnings,
)
from segcore.images.headers import ImageHeader, probe
from segcore.images.options import DecodeOptions
from segcore.images.tiff_pages import TiffPage, cut_page, find_pages

__all__ = [
    "DECODER",
    "DecodeOptions",
    "DecodedImage",
    "ImageHeader",
    "TiffPage",
    "check_limits",
    "cut_page",
    "decode_image",
    "decode_image_reduced",
    "decode_with_warnings",
    "find_pages",
    "probe",
]
