"""What the pipeline needs from a model: the adapter contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from segcore.instances import Instances

InputShape = Literal["rect", "square"]
Precision = Literal["auto", "float32", "float16", "bfloat16"]


class ModelOptions(BaseModel):
    """What a user may change about a model; None keeps the model's own default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    imgsz: int | None = Field(
        None,
        ge=32,
        le=8192,
        multiple_of=32,
        description="Size of the model's input in pixels: its longest side, for YOLO11-seg. By "
        "default that of the checkpoint.",
    )
    shape: InputShape | None = Field(
        None,
        description="rect: imgsz on the longer side and as little padding as possible on the "
        "other; square: imgsz on both. By default that of the checkpoint. YOLO11-seg only.",
    )
    conf: float | None = Field(
        None, ge=0.0, le=1.0, description="Lowest score kept. By default that of the checkpoint."
    )
    iou: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="IoU above which the weaker of two detections is dropped. By default that of "
        "the checkpoint.",
    )
    max_det: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="Most instances in one image. By default that of the checkpoint.",
    )
    device: str = Field(
        "auto",
        description="auto, cpu, cuda, or cuda:0. By default a GPU if there is one.",
    )
    batch_size: int | None = Field(
        None, ge=1, le=1024, description="Images in one forward pass. By default the model's own."
    )
    precision: Precision = Field(
        "auto",
        description="Type of the network's weights and activations; boxes, scores and masks are "
        "computed in float32 from its outputs. auto: that of the results that the output has of "
        "this input; otherwise float16 on a GPU, for the models that were compared in it "
        "(YOLO11-seg), and float32 elsewhere. float16 works on GPUs only.",
    )


@dataclass(frozen=True)
class Category:
    """One class of a model. `id` is the value of `instances.category_id`."""

    id: int
    name: str


@dataclass(frozen=True)
class ModelInfo:
    """What a model is; everything here that changes results goes into the edition.

    Attributes:
        name: Name for people and for the edition, e.g. ``nuclei-yolo11n``.
        architecture: For example ``yolo11n-seg``.
        weights_sha256: Of the checkpoint file as read.
        licence: Licence of the weights: SPDX id or a sentence.
        categories: All classes.
        parameters: Preprocessing and thresholds in force (imgsz, conf, iou, max_det, ...).
        result_version: Raised in the code when the same weights give different results.
    """

    name: str
    architecture: str
    weights_sha256: str
    licence: str
    categories: tuple[Category, ...]
    parameters: dict[str, Any] = field(default_factory=dict)
    result_version: int = 1


@runtime_checkable
class Model(Protocol):
    """An instance-segmentation model. The three steps may run in different threads.

    The results for an image may not depend on the other images of its batch.

    `batch_size` is lowered from outside where memory runs out; a batch that was collected before
    may then still be larger.

    Some members are optional. ``thread_safe = True`` lets `forward` and `postprocess` run for
    several batches at once. `cuda_precision` names the precision that ``auto`` means on a GPU.
    ``batch_key(prepared)`` returns equal keys for prepared images that are best batched together,
    such as those of one shape. A `preprocess` that is a `ReducedPreprocess` allows large JPEGs to
    be decoded at a reduced size, where the user asks for it. A prepared image that is a
    `ResizedInput` tells at which size the model sees it.
    """

    info: ModelInfo
    batch_size: int

    def preprocess(self, image: np.ndarray) -> Any:
        """(H, W, 3) uint8 RGB -> one prepared image (CPU only, thread-safe)."""

    def forward(self, prepared: Sequence[Any]) -> Any:
        """At most `batch_size` prepared images -> raw outputs on the device."""

    def postprocess(self, raw: Any, prepared: Sequence[Any]) -> list[Instances]:
        """Raw outputs -> one `Instances` for each prepared image, in order."""


@runtime_checkable
class ReducedPreprocess(Protocol):
    """A `Model.preprocess` for images in full and reduced size; an object, not a method."""

    def __call__(self, image: np.ndarray, size: tuple[int, int] | None = None) -> Any:
        """As `Model.preprocess`; results are for an image of `size` (height, width).

        `image` is that image in full size (always if `size` is None), or reduced by 2, 4 or 8 by
        `segcore.images.decode_image_reduced`, and then at least as large as `content_size`.
        """

    def content_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels at which the model sees an image of (`height`, `width`)."""


@runtime_checkable
class ResizedInput(Protocol):
    """A prepared image that tells at which size the model sees it.

    Of images that are reduced strongly, people are warned: small objects are lost.
    """

    @property
    def seen_size(self) -> tuple[int, int]:
        """(height, width) in pixels, without padding."""
