"""How images are decoded, and what one of them may cost."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Sample16 = Annotated[int, Field(ge=0, le=65535)]


class DecodeOptions(BaseModel):
    """How the pixels of an image are made from its bytes, and limits for one image.

    Attributes:
        scale: What the model gets: ``full``, all pixels; ``reduced``, what `decode_image_reduced`
            returns. `decode_image` returns all pixels in both cases.
        wide_range: How samples of 9 to 16 bits become 8 bits: ``high_byte``, their upper 8 bits;
            ``min_max``, linearly from the lowest sample of the image (0) to the highest (255);
            ``percentile``, the same from the 0.1th percentile to the 99.9th; or two samples, from
            the first (0) to the second (255). What lies beyond becomes 0 or 255. All channels of
            an image share one range. Samples of 8 bits stay as they are.
        strict: Refuse a JPEG where libjpeg warns of damage. False: take the pixels that libjpeg
            gives with its warning; what it could not read is grey or displaced.
        pages: What is read of a TIFF of several pages: ``first``; or ``all``, where each page is an
            image of its own, and their number is known once the file is read. `decode_image`
            returns the first page in both cases.
        max_pages: Most pages of one file that are read with ``all``; one failed row stands for
            the others.
        max_pixels: Largest width x height. The default is where Pillow refuses an image as a
            decompression bomb; it is 537 MB of RGB. A TIFF or WebP cannot exceed Pillow's own
            limit, even where this one is higher.
        max_bytes: Largest encoded image.
        max_memory_bytes: Most memory that decoding one image may take, its pixels included. It
            is estimated from the header: 3 bytes a pixel for the result, and 1 to 40 for the
            decoder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: Literal["full", "reduced"] = "full"
    wide_range: Literal["high_byte", "min_max", "percentile"] | tuple[Sample16, Sample16] = (
        "high_byte"
    )
    strict: bool = True
    pages: Literal["first", "all"] = "first"
    max_pages: int = Field(1000, ge=1, le=100_000)
    max_pixels: int = Field(178_956_970, ge=1)
    max_bytes: int = Field(512 * 1024**2, ge=1)
    max_memory_bytes: int = Field(1536 * 1024**2, ge=1 << 20)

    @model_validator(mode="after")
    def _check_range(self) -> DecodeOptions:
        if isinstance(self.wide_range, tuple) and self.wide_range[0] >= self.wide_range[1]:
            raise ValueError(
                f"wide_range is [{self.wide_range[0]}, {self.wide_range[1]}], but its first sample "
                "must be less than its second"
            )
        return self
