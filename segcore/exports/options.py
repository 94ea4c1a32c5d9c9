"""What is exported, and how: the configuration section `export`."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from segcore.text import json_text

_SIGNED = re.compile(r"(?i)[?&](?:[^=&]*(?:sig|token|credential|secret|password|key)[^=&]*)=")
# What does not decide the content; of `label_config` the labels do, which the manifest has.
_NOT_STATED = {"workers", "top", "image_list", "ranking", "label_config"}
_PLACEHOLDERS = {"name", "path", "uri", "key", "bucket"}


FormatName = Literal[
    "coco", "coco-results", "yolo-seg", "cvat", "label-studio", "labelme", "hf", "overlays"
]


class ExportOptions(BaseModel):
    """What is exported, and how (configuration section `export`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: FormatName = Field(
        "coco",
        description="coco, coco-results, yolo-seg, cvat (XML 1.1), label-studio, labelme, hf "
        "(Hugging Face datasets) or overlays (pictures).",
    )
    images: str = Field(
        "none",
        description="none: only names; copy: write the images below DEST/images; link: the same, "
        "but link to local files where an image is a file of its own; url:TEMPLATE: write links, "
        "with {name}, {path}, {uri}, {key} or {bucket} in them.",
    )
    masks: Literal["auto", "exact", "polygons"] = Field(
        "auto",
        description="exact: masks as they are, with holes and parts; polygons: outlines; auto: "
        "exact where the format has it.",
    )
    tolerance: float = Field(
        0.5,
        ge=0,
        le=100,
        description="How far the outline of a polygon may deviate, in pixels; 0 is exact.",
    )
    categories: tuple[str, ...] = Field((), description="Only these classes; by default all.")
    rename: dict[str, str] = Field(
        {}, description="Class -> name in the export; several may share one name."
    )
    label_config: str | None = Field(
        None,
        description="A file with the labels that the tool has: the labelling configuration of a "
        "Label Studio project (XML), the labels of a CVAT task (tab Raw), the label list of "
        "labelme, or the data.yaml of a YOLO data set. Names of its tags and class numbers are "
        "taken over; masks of labels that it lacks are left out and counted.",
    )
    min_score: float = Field(0.0, ge=0, le=1, description="Lowest score.")
    min_score_by_category: dict[str, float] = Field(
        {}, description="Class -> its own lowest score."
    )
    min_area: int = Field(1, ge=1, description="Smallest mask, in pixels.")
    max_area: int | None = Field(None, ge=1, description="Largest mask, in pixels.")
    max_per_image: int | None = Field(
        None,
        ge=1,
        description="Most masks in an image; those of the highest scores stay. By default 1,000 "
        "for cvat, 100 for label-studio with exact masks, otherwise no limit: the tools' pages "
        "stop working beyond.",
    )
    max_vertices: int = Field(
        2000,
        ge=4,
        le=1_000_000,
        description="Most points of a polygon; one with more is simplified further.",
    )
    include: tuple[str, ...] = Field(
        (), description="Only images whose path matches one of these patterns, such as 'north/*'."
    )
    exclude: tuple[str, ...] = Field((), description="No images whose path matches one of these.")
    image_list: str | None = Field(
        None,
        description="Only the images in this file: one id, path or file name a line, or a CSV "
        "whose first column has them.",
    )
    ranking: str | None = Field(
        None, description="Only the images of this ranking, which `segcore rank` made."
    )
    top: int | None = Field(
        None, ge=1, description="Only the first so many of `ranking` or `image_list`."
    )
    skip_empty: bool = Field(False, description="Leave out images without a mask.")
    chunk_images: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Images in a file. By default 1,000 for cvat, label-studio and hf; 1,000,000 "
        "for coco and coco-results. What is done is recorded after each such number of images.",
    )
    split_parts: bool = Field(
        False,
        description="yolo-seg: write each part of a mask as an object; by default only the "
        "largest is written.",
    )
    workers: int | None = Field(
        None, ge=1, le=256, description="Processes that convert masks; by default this one alone."
    )

    @field_validator("images")
    @classmethod
    def _check_images(cls, value: str) -> str:
        if value in ("none", "copy", "link"):
            return value
        kind, _, template = value.partition(":")
        if kind != "url" or not template:
            raise ValueError("images is none, copy, link or url:TEMPLATE")
        names = re.findall(r"\{([^{}]*)\}", template)
        rest = re.sub(r"\{[a-z]+\}", "", template)
        if not names or not set(names) <= _PLACEHOLDERS or "{" in rest:
            raise ValueError(f"the template has one or more of {sorted(_PLACEHOLDERS)} in braces")
        if _SIGNED.search(template):
            raise ValueError("the link looks signed, and signed links are not written")
        if "@" in template.partition("://")[2].partition("/")[0]:
            raise ValueError("credentials do not belong in a link")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> ExportOptions:
        if self.ranking is not None and self.image_list is not None:
            raise ValueError("ranking and image_list exclude each other")
        if self.top is not None and self.image_list is None and self.ranking is None:
            raise ValueError("top needs ranking or image_list")
        if self.max_area is not None and self.max_area < self.min_area:
            raise ValueError(f"max_area ({self.max_area}) is under min_area ({self.min_area})")
        return self

    @property
    def are_exact(self) -> bool:
        """Whether masks are written as they are."""
        has_exact = self.format not in ("yolo-seg",)
        prefers_exact = self.format != "label-studio"
        return has_exact and (self.masks == "exact" or (self.masks == "auto" and prefers_exact))

    @property
    def url_template(self) -> str:
        """The template of links; "" where there is none."""
        return self.images.removeprefix("url:") if self.images.startswith("url:") else ""

    @property
    def most_per_image(self) -> int | None:
        """The budget of masks in an image."""
        if self.max_per_image is not None:
            return self.max_per_image
        if self.format == "cvat":
            return 1000
        return 100 if self.format == "label-studio" and self.are_exact else None

    @property
    def images_per_chunk(self) -> int:
        """After how many images a file ends, or what is done is recorded."""
        if self.chunk_images is not None:
            return self.chunk_images
        one_file = self.format in ("coco", "coco-results")
        return 1_000_000 if one_file else 1000

    def stated(self) -> dict[str, Any]:
        """What decides the content of the files: a later export into one DEST must agree."""
        return self.model_dump(mode="json", exclude=_NOT_STATED)

    def fingerprint(self) -> str:
        """16 hex digits of a hash of `stated`."""
        return hashlib.sha256(json_text(self.stated(), sort_keys=True).encode()).hexdigest()[:16]
