"""Image bytes -> RGB pixels: bounded, strict, and the same in every process and thread.

JPEG is decoded by libjpeg-turbo (`simplejpeg`, strict: a warning is an error), everything else by
Pillow, with only the plugin for the format that the signature names.

    headers     format and size of an image, before any memory is allocated for its pixels
    decoding    pixels

What a decoded image is, for every format:

- 8-bit RGB; grey and palette are expanded, alpha is dropped (the colours under it are kept as they
  are stored), colour profiles and gamma are not applied.
- 16-bit samples keep their high byte: linear over the full range 0..65535, never stretched to the
  content. An image that holds 12 bits in 16-bit samples without declaring it is therefore dark.
- CMYK and YCCK: (1 - C)(1 - K) and so on; the Adobe inversion is undone.
- The first page of a TIFF, the first frame of an animation.
- Rotated and mirrored by the EXIF orientation.
- Exact or refused. PNG chunks are checked against their checksums, deflated and LZW TIFFs against
  their streams. JPEG and WebP carry no checksum: damage that happens to be a valid stream cannot be
  detected, and a damaged JPEG inside a TIFF often goes unnoticed, as libtiff does not report its
  warnings.
- Floating-point, signed or 32-bit samples are refused: they have no defined range.

`decode_image_reduced` decodes a large JPEG to fewer pixels, just as strictly: damage is detected
all the same.
"""

from segcore.images.decoding import (
    DECODER,
    DecodedImage,
    DecodeOptions,
    decode_image,
    decode_image_reduced,
)
from segcore.images.headers import ImageHeader, probe

__all__ = [
    "DECODER",
    "DecodeOptions",
    "DecodedImage",
    "ImageHeader",
    "decode_image",
    "decode_image_reduced",
    "probe",
]
