"""Whatever stands for one image, as pixels."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from typing import Any

import numpy as np

from segcore.errors import ImageError, StorageError, UsageError
from segcore.images import DecodeOptions, decode_image
from segcore.storage import Storage
from segcore.text import redact_link

ImageInput = Any  # str, os.PathLike, bytes, numpy array or Pillow image
_TIMEOUT_S = 60.0


def read_image(image: ImageInput, storage: Storage, options: DecodeOptions) -> np.ndarray:
    """The pixels of an image as a job would see them.

    Args:
        image: A path; a URI (s3://, gs://, az://); a link (https://, http://); the bytes of an
            encoded image; an array (H, W, 3) uint8 RGB or (H, W) uint8 grey; or a Pillow image.

    Returns:
        (H, W, 3) uint8 RGB, turned by its EXIF orientation.

    Raises:
        UsageError: It is none of these, or cannot be decoded; the message says why.
        StorageError: It cannot be read.
    """
    if isinstance(image, np.ndarray):
        return check_pixels(image)
    if hasattr(image, "convert") and hasattr(image, "tobytes"):  # Pillow, which need not be loaded
        return check_pixels(np.asarray(image.convert("RGB")))
    if isinstance(image, bytes | bytearray | memoryview):
        return _decode(bytes(image), "this image", options)
    if isinstance(image, str | os.PathLike):
        name = os.fspath(image)
        return _decode(_read_bytes(name, storage, options), redact_link(name), options)
    raise UsageError(
        f"{type(image).__name__} is no image.",
        "Give a path, a link, bytes, a NumPy array (H, W, 3) of uint8 RGB, or a Pillow image.",
    )


def check_pixels(pixels: np.ndarray) -> np.ndarray:
    """An array as (H, W, 3) uint8 RGB, contiguous.

    Raises:
        UsageError: It has another shape or type.
    """
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise UsageError(
            f"An array of shape {pixels.shape} and type {pixels.dtype} is no image.",
            "Expected is (height, width, 3) of uint8, RGB, or (height, width) of uint8, grey.",
        )
    return np.ascontiguousarray(pixels)


def _read_bytes(name: str, storage: Storage, options: DecodeOptions) -> bytes:
    if name.lower().startswith(("http://", "https://")):
        return _download(name, options.max_bytes)
    return storage.read(name, options.max_bytes)


def _download(link: str, max_bytes: int) -> bytes:
    shown = redact_link(link)
    try:
        with urllib.request.urlopen(link, timeout=_TIMEOUT_S) as response:
            data: bytes = response.read(max_bytes + 1)
    except urllib.error.HTTPError as error:
        raise StorageError(f"{shown} cannot be read: HTTP {error.code}.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise StorageError(
            f"{shown} cannot be read: {reason}.", "Without a network, give the path of a file."
        ) from None
    if len(data) > max_bytes:
        raise UsageError(
            f"{shown} has more than {max_bytes:,} bytes.", "decode.max_bytes is the limit."
        )
    return data


def _decode(data: bytes, name: str, options: DecodeOptions) -> np.ndarray:
    try:
        return decode_image(data, options)
    except ImageError as error:
        raise UsageError(f"{name} is not segmented: {error.message} ({error.code}).") from None
