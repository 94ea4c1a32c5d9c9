"""One image from bytes to what the model takes: decoding, then the model's own preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from segcore.errors import (
    ImageError,
    ImageWarning,
    UsageError,
    WarningCode,
)
from segcore.images import (
    DecodedImage,
    DecodeOptions,
    check_limits,
    decode_image_reduced,
    decode_with_warnings,
)
from segcore.models.base import ReducedPreprocess, ResizedInput
from segcore.sources import Sample
from segcore.worker.faults import model_failure
from segcore.worker.memory import is_out_of_memory


@dataclass(frozen=True)
class PreparedSample:
    """A sample after decoding and preprocessing: either `value` or `error` is set.

    Attributes:
        value: What the model's `preprocess` returned.
        width, height: Pixels of the image at full size, after EXIF orientation; None when it was
            not decoded.
        warnings: What a person should know about this image; they stand in its row.
    """

    sample: Sample
    value: Any = None
    width: int | None = None
    height: int | None = None
    error: ImageError | None = None
    warnings: tuple[ImageWarning, ...] = ()


_STRONG_REDUCTION = 4  # from here on, small objects are lost to the model


class Preprocessor:
    """What happens to the bytes of an image before the model, in two steps.

    Args:
        preprocess: The model's.
        options: With the scale ``reduced``, images are decoded at no more than what the model sees.

    Raises:
        UsageError: The model cannot take reduced images.
    """

    def __init__(self, preprocess: Callable[[np.ndarray], Any], options: DecodeOptions) -> None:
        self._preprocess = preprocess
        self._model = getattr(preprocess, "__self__", preprocess)
        self._options = options
        if options.scale == "reduced" and not isinstance(preprocess, ReducedPreprocess):
            raise UsageError(
                "decode.scale is `reduced`, but this model takes images at full size only.",
                hint="Leave decode.scale out. YOLO11-seg takes reduced images, and a model of your "
                "own can, too (docs/models.md).",
            )

    def memory_bytes(self, data: bytes) -> int:
        """What decoding takes, from the header alone.

        Raises:
            ImageError: The image is over a limit, or has no header.
        """
        return check_limits(data, self._options)

    def decode(self, data: bytes) -> DecodedImage:
        """Bytes -> pixels.

        Raises:
            ImageError: See `segcore.images.decode_image`; or the model's `content_size` failed.
        """
        if self._options.scale == "full":
            return decode_with_warnings(data, self._options)
        return decode_image_reduced(data, self._content_size, self._options)

    def preprocess(self, image: DecodedImage) -> Any:
        """Pixels -> what the model takes.

        Raises:
            ImageError: The model's `preprocess` failed.
        """
        if self._options.scale == "full":
            return self._call_model(self._preprocess, image.pixels)
        return self._call_model(self._preprocess, image.pixels, size=(image.height, image.width))

    def warnings(self, image: DecodedImage, value: Any) -> tuple[ImageWarning, ...]:
        """What a person should know about the image: from decoding, and for this model.

        Args:
            value: What `preprocess` made of the image.

        Raises:
            ImageError: The model failed to tell at which size it sees the image.
        """
        seen_size = self._call_model(self._seen_size, image, value)
        if seen_size is None:
            return image.warnings
        seen_height, seen_width = seen_size
        reduction = max(image.height / max(seen_height, 1), image.width / max(seen_width, 1))
        if reduction <= _STRONG_REDUCTION:
            return image.warnings
        message = (
            f"the model sees these {image.width} x {image.height} pixels as {seen_width} x "
            f"{seen_height}, so small objects are lost; cut such images into tiles"
        )
        return (*image.warnings, ImageWarning(WarningCode.STRONGLY_REDUCED, message))

    def _seen_size(self, image: DecodedImage, value: Any) -> tuple[int, int] | None:
        """(height, width) at which the model sees the image; None if it does not tell."""
        if isinstance(self._preprocess, ReducedPreprocess):
            height, width = self._preprocess.content_size(image.height, image.width)
        elif isinstance(value, ResizedInput):
            height, width = value.seen_size
        else:
            return None
        return int(height), int(width)

    def _content_size(self, height: int, width: int) -> tuple[int, int]:
        assert isinstance(self._preprocess, ReducedPreprocess)
        size: tuple[int, int] = self._call_model(self._preprocess.content_size, height, width)
        return size

    def _call_model(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call code of the model; what it raises becomes an error of this image.

        Raises:
            MemoryError: Memory ran out, whatever the model's exception was.
            ImageError: Any other failure.
        """
        try:
            return function(*args, **kwargs)
        except MemoryError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise MemoryError from error
            raise model_failure(self._model, error) from error
