"""How images are decoded, and what one of them may cost."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Sample16 = Annotated[int, Field(ge=0, le=65535)]


class DecodeOptions(BaseModel):
    """How the pixels of an image are made from its bytes, and limits for one image.

    `decode_image` returns all pixels of the first page, whatever `scale` and `pages` say.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: Literal["full", "reduced"] = Field(
        "full",
        description="full: all pixels are decoded; reduced: large JPEGs at 1/2, 1/4 or 1/8, but "
        "never below what the model sees. Faster, with other results. YOLO11-seg only. Part of "
        "the edition.",
    )
    wide_range: Literal["high_byte", "min_max", "percentile"] | tuple[Sample16, Sample16] = Field(
        "high_byte",
        description="How samples of 9 to 16 bits become 8. high_byte: their upper 8 bits; min_max: "
        "linearly from the lowest sample of the image (0) to the highest (255); percentile: the "
        "same from the 0.1th percentile to the 99.9th; or two samples, such as [100, 400]: from "
        "the first to the second. What lies beyond becomes 0 or 255. All channels share one "
        "range. Part of the edition.",
    )
    strict: bool = Field(
        True,
        description="Refuse a JPEG in which libjpeg finds damage. false: take the pixels that it "
        "gives, grey or displaced where it could not read them. Part of the edition.",
    )
    pages: Literal["first", "all"] = Field(
        "first",
        description="What is read of a TIFF of several pages. all: each page is an image with a "
        "row of its own; the second has the id of its file and #page=2. Part of the edition.",
    )
    max_pages: int = Field(
        1000,
        ge=1,
        le=100_000,
        description="Most pages of one file; one failed row stands for all further ones.",
    )
    max_pixels: int = Field(
        178_956_970,
        ge=1,
        description="Largest width x height; larger images become failed rows before memory is "
        "allocated. The default is where Pillow refuses an image as a decompression bomb, which "
        "also binds TIFF and WebP where this is higher.",
    )
    max_bytes: int = Field(
        512 * 1024**2,
        ge=1,
        description="Largest encoded image in bytes; larger ones become failed rows.",
    )
    max_memory_bytes: int = Field(
        1536 * 1024**2,
        ge=1 << 20,
        description="Most memory in bytes that decoding one image may take, estimated from its "
        "header: 4 to 10 bytes a pixel, 20 for WebP, 23 for AVIF, 40 for JPEG 2000. Images that "
        "need more become failed rows.",
    )

    @model_validator(mode="after")
    def _check_range(self) -> DecodeOptions:
        if isinstance(self.wide_range, tuple) and self.wide_range[0] >= self.wide_range[1]:
            raise ValueError(
                f"wide_range is [{self.wide_range[0]}, {self.wide_range[1]}], but its first sample "
                "must be less than its second"
            )
        return self
