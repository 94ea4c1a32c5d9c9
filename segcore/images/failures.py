"""What decoders raise, as an `ImageError`; errors of our own code pass."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from segcore.errors import ErrorCode, ImageError
from segcore.logs.faults import is_own_fault

# Parts of messages of Pillow, libtiff, libjpeg and simplejpeg, in lower case.
_UNSUPPORTED_PHRASES = (
    "unknown pixel mode",
    "unsupported bmp",
    "unsupported jpeg process",
    "unknown raw mode",
    "sof type",
    "unsupported color conversion",
)
_TRUNCATED_PHRASES = ("truncated", "premature end of jpeg", "not enough data", "end of file", "eof")
_OUT_OF_MEMORY_PHRASES = (
    "out of memory",
    "insufficient memory",
    "not enough memory",
    "allocate memory",
    "failed to allocate",
)


@contextmanager
def decoder_errors(image_format: str, data: bytes) -> Iterator[None]:
    """Turn whatever a decoder raises in this block into an `ImageError`.

    Decoders may raise anything on bytes that they do not expect. So only their calls belong into
    the block: an exception of our own code is not the image's fault. The mistakes in calling them
    pass.

    Raises:
        ImageError: unsupported_format, truncated, corrupt or too_many_pixels.
        MemoryError: Memory ran out, whatever the decoder's exception was.
    """
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(ErrorCode.TOO_MANY_PIXELS, f"over the limit of Pillow: {error}") from error
    except Exception as error:
        if is_own_fault(error):
            raise
        raise _as_image_error(image_format, error, data) from error


def _as_image_error(image_format: str, error: Exception, data: bytes) -> ImageError:
    text = " ".join(str(error).split()) or type(error).__name__
    lower = text.lower()
    if any(phrase in lower for phrase in _OUT_OF_MEMORY_PHRASES):
        raise MemoryError(text) from error
    if any(phrase in lower for phrase in _UNSUPPORTED_PHRASES):
        return ImageError(
            ErrorCode.UNSUPPORTED_FORMAT, f"{image_format} of a kind not decoded: {text}"
        )
    ended_early = isinstance(error, (EOFError, IndexError, struct.error))
    if ended_early or any(phrase in lower for phrase in _TRUNCATED_PHRASES):
        message = f"{image_format} of {len(data)} bytes ends before the image does: {text}"
        return ImageError(ErrorCode.TRUNCATED, message)
    return ImageError(ErrorCode.CORRUPT, f"{image_format} cannot be decoded: {text}")
