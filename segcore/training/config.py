"""Configuration of `segcore train`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from segcore.logs.options import LogOptions


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


ExifLabels = Literal["refuse", "shown", "stored"]
Architecture = Literal["yolo11n-seg", "yolo11s-seg", "yolo11m-seg", "yolo11l-seg", "yolo11x-seg"]


class DataConfig(_StrictModel):
    """Where the labelled images are: COCO JSON files, and the folder with the images they list."""

    images: Path = Field(
        description="Folder that the file names in the COCO files are relative to; no image is "
        "read from elsewhere."
    )
    train: Path = Field(description="COCO instances file to train on.")
    val: Path = Field(description="COCO instances file to measure on, with the classes of train.")
    exif_labels: ExifLabels = Field(
        "refuse",
        description="What holds for images whose size in the COCO file is that before EXIF "
        "rotation. refuse: an error; shown: labels lie on the image as viewers show it; stored: "
        "labels of every image lie on its pixels as stored, and are turned with them.",
    )


class AugmentConfig(_StrictModel):
    """Random crops of randomly scaled, rotated and recoloured images."""

    crop: int = Field(320, ge=64, multiple_of=32, description="Side of a training crop in pixels.")
    min_side: int = Field(
        320, ge=32, description="Shortest length in pixels to which the longer side is scaled."
    )
    max_side: int = Field(
        800, ge=32, description="Longest length in pixels to which the longer side is scaled."
    )
    rotate: float = Field(0.5, ge=0, le=1, description="Share of crops rotated by any angle.")
    colour: float = Field(0.8, ge=0, le=1, description="Share of crops recoloured.")
    noise: float = Field(0.2, ge=0, le=1, description="Share of crops blurred or made noisy.")

    @model_validator(mode="after")
    def _check_sides(self) -> AugmentConfig:
        if self.min_side > self.max_side:
            raise ValueError(f"min_side {self.min_side} is larger than max_side {self.max_side}")
        return self


class LossWeights(_StrictModel):
    """Weights of the parts of the loss."""

    cls: float = Field(0.5, ge=0, description="Weight of the classification loss.")
    box: float = Field(7.5, ge=0, description="Weight of the box loss (CIoU).")
    dfl: float = Field(1.5, ge=0, description="Weight of the distribution focal loss.")
    mask: float = Field(5.0, ge=0, description="Weight of the mask loss.")
    masks_per_image: int = Field(
        48, ge=1, description="Positives of an image that are sampled for the mask loss."
    )


class OptimizerConfig(_StrictModel):
    """AdamW with linear warm-up and cosine decay, and a moving average of the weights."""

    lr: float = Field(2e-3, gt=0, description="Highest learning rate.")
    final_lr: float = Field(0.01, ge=0, le=1, description="Last learning rate as a share of lr.")
    weight_decay: float = Field(0.02, ge=0, description="Weight decay of AdamW.")
    warmup_steps: int = Field(
        200, ge=0, description="Steps of linear warm-up; a tenth of all steps where that is less."
    )
    clip_norm: float = Field(10.0, gt=0, description="Norm to which gradients are clipped.")
    ema_decay: float = Field(
        0.9995, ge=0, lt=1, description="Decay of the moving average of the weights."
    )
    ema_ramp_steps: float = Field(
        1000.0, gt=0, description="Steps over which that decay rises to its value."
    )


class ValidationConfig(_StrictModel):
    """How the averaged weights are measured; all but conf are stored as the model's defaults.

    `imgsz`, `iou` and `max_det` are None until it is known what training starts from.
    """

    every: int = Field(1, ge=0, description="Epochs between two measurements; 0: never.")
    imgsz: int | None = Field(
        None,
        ge=32,
        multiple_of=32,
        description="Longest side of the model's input in pixels. By default that of init, or 640.",
    )
    conf: float = Field(0.01, ge=0, le=1, description="Lowest score that is measured.")
    iou: float | None = Field(
        None,
        gt=0,
        le=1,
        description="IoU above which the weaker of two detections is dropped. By default that of "
        "init, or 0.6.",
    )
    max_det: int | None = Field(
        None, ge=1, description="Most instances in one image. By default that of init, or 500."
    )


class TrainConfig(_StrictModel):
    """Everything that decides what a training run produces."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]*$",
        description="Name of the model: small letters, digits, '.', '_' and '-'.",
    )
    architecture: Architecture = Field(
        "yolo11n-seg", description="Network to train, from the smallest to the largest."
    )
    data: DataConfig = Field(description="The labelled images.")
    output: Path = Field(
        description="Folder for the checkpoint, its card and curves, and the state to resume from."
    )
    init: str | None = Field(
        None,
        description="Model to start from: a name that `segcore models` lists, or a checkpoint. "
        "Heads for other classes start anew. By default random weights.",
    )
    licence: str = Field(description="Licence of the resulting weights, such as CC0-1.0.")
    augment: AugmentConfig = Field(AugmentConfig(), description="Random crops, scales, colours.")
    loss: LossWeights = Field(LossWeights(), description="Weights of the parts of the loss.")
    optimizer: OptimizerConfig = Field(
        OptimizerConfig(), description="AdamW with linear warm-up and cosine decay."
    )
    validation: ValidationConfig = Field(
        ValidationConfig(),
        description="How the weights are measured. All but conf become the model's defaults.",
    )
    epochs: int = Field(60, ge=1, description="Epochs to train.")
    samples_per_epoch: int | None = Field(
        None, ge=1, description="Crops in an epoch. By default one for each image."
    )
    max_minutes: float | None = Field(
        None,
        gt=0,
        description="End after so many minutes, with the learning rate decayed. By default after "
        "the last epoch.",
    )
    batch_size: int = Field(16, ge=1, description="Crops in one step.")
    workers: int = Field(
        0, ge=0, description="Processes that prepare batches; 0: the training process does it."
    )
    device: str = Field("auto", description="auto, cpu, cuda, or cuda:0.")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Type of the forward pass (autocast); the loss is always float32.",
    )
    seed: int = Field(0, description="Seed of all random choices.")
    conf: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Score threshold that is stored as the model's default. By default that of "
        "init, or 0.25.",
    )
    log: LogOptions = Field(
        LogOptions(), description="What is said on stderr; each run keeps a log in the output, too."
    )
