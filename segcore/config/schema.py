"""The typed configuration of a segment job; `segcore.config.loading` fills it in."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from segcore.images import DecodeOptions
from segcore.logs.options import LogOptions
from segcore.models.base import ModelOptions
from segcore.sources import SourceOptions
from segcore.sources.units import UnitLimits
from segcore.storage import StorageOptions

DEFAULT_MODEL = "nuclei-yolo11n"


class ModelConfig(ModelOptions):
    """Which model, and which of its defaults are changed."""

    name: str = Field(
        DEFAULT_MODEL,
        min_length=1,
        description="A name that `segcore models` lists; the path or link of a checkpoint "
        "(.safetensors, .pt, .pth); or package.module:Class.",
    )

    def options(self) -> ModelOptions:
        """The options that `load_model` takes besides the name."""
        return ModelOptions(**self.model_dump(exclude={"name"}))


class RayOptions(BaseModel):
    """Where the job runs and on how many workers; nothing here changes results."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str | None = Field(
        None,
        description="Ray cluster: host:port, ray://host:port or auto; local: a local Ray for this "
        "run only. By default the cluster that RAY_ADDRESS names, otherwise a local Ray.",
    )
    min_actors: int | None = Field(
        None, ge=1, le=10_000, description="Fewest workers. By default as many as max_actors."
    )
    max_actors: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="Most workers, each with its own copy of the model. By default one for each "
        "core or GPU.",
    )
    cpus_per_actor: float | None = Field(
        None,
        gt=0,
        le=1024,
        description="CPUs of a worker. By default the cores are divided among the workers.",
    )
    gpus_per_actor: float | None = Field(
        None,
        ge=0,
        le=64,
        description="GPUs of a worker; several share a GPU by a fraction. By default 1 if the "
        "cluster has GPUs, otherwise 0.",
    )
    layout: Literal["auto", "fused", "split"] = Field(
        "auto",
        description="fused: each worker reads and decodes for itself; split: processes of their "
        "own do it, on CPUs anywhere in the cluster, so that a GPU waits for no lock of Python. "
        "auto: split on GPUs with at least 3 CPUs for each, otherwise fused.",
    )
    readers: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="Layout split: workers that read and decode. By default on all CPUs that are "
        "left.",
    )
    units_in_flight: int | None = Field(
        None,
        ge=1,
        le=8,
        description="Units at once in a worker. By default 2 on a GPU, to hide the time of reading "
        "and writing, otherwise 1.",
    )
    decode_threads: int | None = Field(
        None, ge=1, le=256, description="Decoding threads of a worker. By default one for each CPU."
    )
    max_decoded_bytes: int = Field(
        512 << 20,
        ge=1 << 20,
        description="Memory in bytes for images decoded at the same time, per worker. An image "
        "that takes more, up to decode.max_memory_bytes, is decoded alone.",
    )
    max_actor_bytes: int | None = Field(
        None,
        ge=256 << 20,
        description="Most memory in bytes of a worker on a CPU (Linux); an image that needs more "
        "fails as out_of_memory, and the machine does not run out. By default nine tenths of the "
        "memory (of the container, if there is a limit) divided by the workers on the machine, at "
        "least 3 GiB. No limit on a GPU, since CUDA maps more than it takes.",
    )
    autoscaling: bool = Field(
        False,
        description="The cluster adds nodes on demand: do not compare the pool with what it has "
        "now. There are from min_actors (by default 1) to max_actors workers. Without max_actors "
        "at most 64 (more if the cluster has room for more already), and new nodes are added only "
        "for workers with at least 4 units each.",
    )
    shared_paths: bool = Field(
        False,
        description="Every machine of the cluster sees the same local files. Otherwise local paths "
        "are refused on a cluster that has other machines than this one.",
    )
    keep_logs: bool = Field(
        False, description="Keep the temporary folder of a local Ray, with its workers' logs."
    )
    ship_code: bool = Field(
        False, description="Send segcore's own code to a cluster that lacks it."
    )

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

    max_failed_fraction: float = Field(
        0.01, ge=0, le=1, description="Exit code 3 if a larger share of the images fails."
    )
    attempts: int = Field(
        2, ge=1, le=10, description="Passes over units that did not succeed, in one run."
    )
    lease_ttl_s: float = Field(
        60.0,
        ge=1,
        le=3600,
        description="A run on another machine that was silent for so many seconds counts as dead.",
    )
    image_timeout_s: float = Field(
        300.0,
        gt=0,
        le=86_400,
        description="An image that takes more seconds to decode, or to segment, fails as "
        "timed_out.",
    )
    max_images: int | None = Field(
        None,
        ge=1,
        description="Stop after about so many images (whole units, at least one); the next run "
        "goes on.",
    )
    max_seconds: float | None = Field(
        None,
        gt=0,
        description="Stop so many seconds after the run began, when the next unit is done; the "
        "next run goes on.",
    )
    max_cost: float | None = Field(
        None,
        gt=0,
        description="Stop when the workers of this run have cost so much, when the next unit is "
        "done; the next run goes on. Needs worker_price.",
    )
    worker_price: float | None = Field(
        None,
        gt=0,
        description="What one worker costs an hour, in the currency of max_cost. All workers that "
        "the pool may have are counted, from the moment they are asked for.",
    )
    publish: bool | None = Field(
        default=None,
        description="Let latest.json point to this edition when the run is complete. By default if "
        "nothing is published yet, or if this edition is; false: never.",
    )

    @model_validator(mode="after")
    def _needs_price(self) -> RunOptions:
        if self.max_cost is not None and self.worker_price is None:
            raise ValueError("run.max_cost needs run.worker_price: what one worker costs an hour")
        return self


class MetricsOptions(BaseModel):
    """What the metrics of a run reach besides its record."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    export: bool = Field(
        True, description="Export them to Prometheus, where Ray's exporter (ray[default]) runs."
    )
    file: str | None = Field(
        None,
        min_length=1,
        description="Local file for the textfile collector of Prometheus' node exporter, such as "
        "/var/lib/node_exporter/segcore.prom; written as the run begins and as it ends.",
    )


class Config(BaseModel):
    """The whole configuration of a segment job; ``configs/segment.yaml`` explains each key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: str | None = Field(
        None,
        min_length=1,
        description="Folder or prefix of images, tar shards (WebDataset) or Parquet shards; one "
        "such shard; a manifest of URIs (.txt .csv .jsonl .parquet); or a COCO JSON file. Local, "
        "s3://, gs:// or az://.",
    )
    output: str | None = Field(
        None,
        min_length=1,
        description="Folder or prefix for the tables; each edition (model and options) gets a "
        "folder of its own in it.",
    )
    model: ModelConfig = Field(ModelConfig(), description="Which model, and its thresholds.")
    source: SourceOptions = Field(SourceOptions(), description="How the input is listed and read.")
    plan: UnitLimits = Field(
        UnitLimits(),
        description="How large a unit is: what is read, segmented and committed as a whole.",
    )
    decode: DecodeOptions = Field(
        DecodeOptions(), description="How pixels are made, and what one image may cost."
    )
    storage: StorageOptions = Field(StorageOptions(), description="How object stores are accessed.")
    ray: RayOptions = Field(
        RayOptions(),
        description="Where the job runs and on how many workers. Nothing here changes results.",
    )
    run: RunOptions = Field(RunOptions(), description="When a run counts as successful.")
    log: LogOptions = Field(
        LogOptions(), description="What is said on stderr; each run keeps a log in the output, too."
    )
    metrics: MetricsOptions = Field(
        MetricsOptions(), description="What Prometheus gets; docs/metrics.md names all metrics."
    )
