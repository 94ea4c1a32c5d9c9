"""Configuration of `segcore train`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


ExifLabels = Literal["refuse", "shown", "stored"]


class DataConfig(_StrictModel):
    """Where the labelled images are: COCO JSON files, and the folder with the images they list."""

    images: Path = Field(
        description="folder that the file names are relative to; no image is read from elsewhere"
    )
    train: Path = Field(description="COCO instances file to train on")
    val: Path = Field(description="COCO instances file to measure on; classes as in train")
    exif_labels: ExifLabels = Field(
        "refuse",
        description="images whose size in the COCO file is that before EXIF rotation; refuse: an "
        "error; shown: labels lie on the image as viewers show it; stored: labels of every image "
        "lie on its pixels as stored, and are turned with them",
    )


class AugmentConfig(_StrictModel):
    """Random crops of randomly scaled, rotated and recoloured images."""

    crop: int = Field(320, ge=64, multiple_of=32, description="side of a training crop, pixels")
    min_side: int = Field(
        320, ge=32, description="smallest length of the longer side after scaling"
    )
    max_side: int = Field(800, ge=32, description="largest length of the longer side after scaling")
    rotate: float = Field(0.5, ge=0, le=1, description="share of crops rotated by any angle")
    colour: float = Field(0.8, ge=0, le=1, description="share of crops recoloured")
    noise: float = Field(0.2, ge=0, le=1, description="share of crops blurred or with added noise")

    @model_validator(mode="after")
    def _check_sides(self) -> AugmentConfig:
        if self.min_side > self.max_side:
            raise ValueError(f"min_side {self.min_side} is larger than max_side {self.max_side}")
        return self


class LossWeights(_StrictModel):
    """Weights of the parts of the loss."""

    cls: float = Field(0.5, ge=0)
    box: float = Field(7.5, ge=0)
    dfl: float = Field(1.5, ge=0)
    mask: float = Field(5.0, ge=0)
    masks_per_image: int = Field(48, ge=1, description="positives sampled for the mask loss")


class OptimizerConfig(_StrictModel):
    """AdamW with linear warm-up and cosine decay, and a moving average of the weights."""

    lr: float = Field(2e-3, gt=0)
    final_lr: float = Field(0.01, ge=0, le=1, description="last learning rate as a share of lr")
    weight_decay: float = Field(0.02, ge=0)
    warmup_steps: int = Field(200, ge=0)
    clip_norm: float = Field(10.0, gt=0)
    ema_decay: float = Field(0.9995, ge=0, lt=1)
    ema_ramp_steps: float = Field(1000.0, gt=0)


class ValidationConfig(_StrictModel):
    """How the averaged weights are measured after each epoch."""

    every: int = Field(1, ge=0, description="epochs between measurements; 0: never")
    imgsz: int = Field(640, ge=32, multiple_of=32)
    conf: float = Field(0.01, ge=0, le=1)
    iou: float = Field(0.6, gt=0, le=1)
    max_det: int = Field(500, ge=1)


class TrainConfig(_StrictModel):
    """Everything that decides what a training run produces."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="name of the model")
    architecture: str = "yolo11n-seg"
    data: DataConfig
    output: Path
    init: str | None = Field(None, description="checkpoint to start from; class heads may differ")
    licence: str = Field(description="licence of the resulting weights")
    augment: AugmentConfig = AugmentConfig()
    loss: LossWeights = LossWeights()
    optimizer: OptimizerConfig = OptimizerConfig()
    validation: ValidationConfig = ValidationConfig()
    epochs: int = Field(60, ge=1)
    samples_per_epoch: int | None = Field(
        None, ge=1, description="crops in an epoch; None: one for each image"
    )
    max_minutes: float | None = Field(
        None, gt=0, description="end, with the learning rate decayed, after this many minutes"
    )
    batch_size: int = Field(16, ge=1)
    workers: int = Field(0, ge=0, description="processes that prepare batches; 0: none")
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    conf: float = Field(0.25, ge=0, le=1, description="default threshold stored with the model")
