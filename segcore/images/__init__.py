"""Image bytes -> RGB pixels: bounded, strict, and the same in every process and thread.

JPEG is decoded by libjpeg-turbo (`simplejpeg`, strict: a warning is an error), everything else by
Pillow, with only the plugin that the signature names.

What a decoded image is, for every format:

- 8-bit RGB; grey and palette are expanded, alpha is dropped (colours under it are kept, as they are
  stored), colour profiles and gamma are not applied.
- 16-bit samples keep their high byte: linear over the full range 0..65535, never stretched to the
  content. An image that holds 12 bits in 16-bit samples without saying so is therefore dark.
- CMYK and YCCK: (1 - C)(1 - K) and so on; the Adobe inversion is undone.
- The first page of a TIFF, the first frame of an animation.
- Rotated and mirrored by the EXIF orientation.
- Exact or refused. PNG chunks are held to their checksums, deflated and LZW TIFFs to their streams.
  JPEG and WebP carry no checksum: damage that happens to be a valid stream cannot be noticed, and
  a damaged JPEG inside of a TIFF often goes unnoticed, as libtiff does not report its warnings.
- Floating-point, signed or 32-bit samples are refused: they have no defined range.

`decode_image_reduced` gives a large JPEG with fewer pixels, as strictly: its damage is noticed all the
same.
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
