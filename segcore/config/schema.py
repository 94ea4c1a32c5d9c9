"""The typed configuration of a segment job; `segcore.config.loading` fills it in."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from segcore.images import DecodeOptions
from segcore.models.base import ModelOptions
from segcore.sources import SourceOptions
from segcore.sources.units import UnitLimits
from segcore.storage import StorageOptions

DEFAULT_MODEL = "nuclei-yolo11n"


class ModelConfig(ModelOptions):
    """Which model, and which of its defaults are changed."""

    name: str = Field(DEFAULT_MODEL, min_length=1)

    def options(self) -> ModelOptions:
        """The options that `load_model` takes besides the name."""
        return ModelOptions(**self.model_dump(exclude={"name"}))


class RayOptions(BaseModel):
    """Where the job runs and on how many actors; nothing here changes results."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str | None = None
    min_actors: int | None = Field(None, ge=1, le=10_000)
    max_actors: int | None = Field(None, ge=1, le=10_000)
    cpus_per_actor: float | None = Field(None, gt=0, le=1024)
    gpus_per_actor: float | None = Field(None, ge=0, le=64)
    layout: Literal["fused", "split"] = "fused"
    readers: int | None = Field(None, ge=1, le=10_000)
    units_in_flight: int | None = Field(None, ge=1, le=8)
    decode_threads: int | None = Field(None, ge=1, le=256)
    max_decoded_bytes: int = Field(512 << 20, ge=1 << 20)
    max_actor_bytes: int | None = Field(None, ge=256 << 20)
    autoscaling: bool = False
    shared_paths: bool = False
    keep_logs: bool = Field(
        False, description="Keep the temporary folder of a local Ray, with its workers' logs."
    )
    ship_code: bool = False

    @model_validator(mode="after")
    def _check_actor_range(self) -> RayOptions:
        if self.min_actors and self.max_actors and self.min_actors > self.max_actors:
            raise ValueError(
                f"min_actors ({self.min_actors}) is greater than max_actors ({self.max_actors})"
            )
        return self


class RunOptions(BaseModel):
    """When a run counts as successful, and how often a unit is tried."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_failed_fraction: float = Field(0.01, ge=0, le=1)
    attempts: int = Field(2, ge=1, le=10)
    lease_ttl_s: float = Field(60.0, ge=1, le=3600)
    image_timeout_s: float = Field(300.0, gt=0, le=86_400)
    publish: bool | None = Field(
        default=None,
        description="Let latest.json point to this edition when the run is complete. By default if "
        "nothing is published yet, or if this edition is; false: never.",
    )


class Config(BaseModel):
    """The whole configuration of a segment job; ``configs/segment.yaml`` explains each key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: str | None = Field(None, min_length=1)
    output: str | None = Field(None, min_length=1)
    model: ModelConfig = ModelConfig()
    source: SourceOptions = SourceOptions()
    plan: UnitLimits = UnitLimits()
    decode: DecodeOptions = DecodeOptions()
    storage: StorageOptions = StorageOptions()
    ray: RayOptions = RayOptions()
    run: RunOptions = RunOptions()
