"""One measurement from options to report."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field

from segcore.bench.images import Shards, copied, parse_size, synthetic
from segcore.bench.machine import cores, describe
from segcore.bench.report import BenchReport
from segcore.bench.stages import measure_stages
from segcore.bench.throughput import BenchJob, Throughput, compare, parts_for
from segcore.errors import UsageError
from segcore.images import DecodeOptions
from segcore.masks import implementation
from segcore.models import torch_runtime
from segcore.models.base import Model, ModelOptions
from segcore.models.registry import load_model
from segcore.sources import SourceOptions
from segcore.storage import Storage, join

Notify = Callable[[str], None]
_UNITS = 24  # of the job, at least: enough to see its steady state
_UNITS_OF_A_PROCESS = 3
_UNIT_IMAGES = 20  # where only stages are measured
_PASS_SECONDS = 15  # that a pass over the images of the job takes, where the user does not say
_MAX_IMAGES = 2000  # of the job, where the user does not say


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        input: Archive whose images are used; None: synthetic ones of `sizes`.
        sizes: WIDTHxHEIGHT or names; the job runs on the first.
        images: Of the job; None: as many as take about a quarter of a minute.
        stage_images: Of each size; the time of one size is also bounded by `stage_seconds`.
        whole_job: False leaves the job out.
    """

    model: str
    options: ModelOptions = field(default_factory=ModelOptions)
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    input: str | None = None
    sizes: tuple[str, ...] = ("640x480", "1920x1080", "4000x3000")
    images: int | None = None
    stage_images: int = 48
    stage_seconds: float = 5.0
    whole_job: bool = True
    price_per_hour: float | None = None


def run_bench(options: BenchOptions, notify: Notify = lambda text: None) -> BenchReport:
    """Measure; works in a temporary folder and leaves nothing behind.

    Raises:
        SegcoreError: The model, the images or the job cannot be used.
    """
    if options.price_per_hour is not None and not options.whole_job:
        raise UsageError("--price-per-hour needs the whole job, and --stages-only leaves it out.")
    sizes = [parse_size(size) for size in options.sizes]
    model = load_model(options.model, options.options)
    device = str(getattr(model, "device", "cpu"))
    with tempfile.TemporaryDirectory(prefix="segcore-bench-") as folder:
        archives = _archives(options, sizes, folder, notify)
        processes = _processes(device)
        with torch_runtime.one_thread():
            stages = [
                _stages(model, shards, options, join(folder, f"stages-{number}"), notify)
                for number, shards in enumerate(archives)
            ]
        peak_bytes = torch_runtime.peak_device_memory_bytes(device)
        info, batch_size = model.info, model.batch_size
        del model  # the job loads its own; on a GPU both must fit
        job = None
        if options.whole_job:
            images = options.images or images_of_a_pass(stages[0].total_ms, processes)
            shards = _job_images(options, sizes[0], images, processes, folder)
            job = _job(options, shards, processes, folder, device, notify)
    return BenchReport(
        machine=describe(),
        model=info.name,
        device=device,
        batch_size=batch_size,
        masks_by=implementation(),
        stages=tuple(stages),
        device_peak_mb=None if peak_bytes is None else peak_bytes / 1e6,
        job=job,
        price_per_hour=options.price_per_hour,
    )


def _archives(
    options: BenchOptions, sizes: list[tuple[int, int]], folder: str, notify: Notify
) -> list[Shards]:
    storage, many = Storage(), options.stage_images
    if options.input is not None:
        notify(f"Reading images of {options.input}.")
        target = join(folder, "given")
        source = SourceOptions()
        return [copied(storage, target, options.input, source, many, _UNIT_IMAGES)]
    notify("Making synthetic images.")
    names = (join(folder, f"images-{width}x{height}") for width, height in sizes)
    return [
        synthetic(storage, target, size, many, _UNIT_IMAGES)
        for target, size in zip(names, sizes, strict=True)
    ]


def images_of_a_pass(ms: float, processes: int) -> int:
    """How many images to run the job on when one takes `ms` in each of so many processes."""
    wanted = int(1e3 * _PASS_SECONDS * processes / ms)
    return max(_units(processes), min(wanted, _MAX_IMAGES))


def _units(processes: int) -> int:
    return max(_UNITS, _UNITS_OF_A_PROCESS * processes)


def _job_images(
    options: BenchOptions, size: tuple[int, int], images: int, processes: int, folder: str
) -> Shards:
    storage, target = Storage(), join(folder, "job-images")
    per_shard = max(1, images // _units(processes))
    if options.input is not None:
        return copied(storage, target, options.input, SourceOptions(), images, per_shard)
    return synthetic(storage, target, size, images, per_shard)


def _stages(model: Model, shards: Shards, options: BenchOptions, output: str, notify: Notify):  # type: ignore[no-untyped-def]
    notify(f"Stages at {shards.label}.")
    storage = Storage()
    parts = parts_for(model, storage, output)
    many, seconds = options.stage_images, options.stage_seconds
    return measure_stages(model, shards, parts, storage, many, seconds, options.decode)


def _processes(device: str) -> int:
    return torch_runtime.cuda_device_count() if device.startswith("cuda") else cores()


def _job(
    options: BenchOptions, shards: Shards, processes: int, folder: str, device: str, notify: Notify
) -> Throughput:
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch_runtime.free_cached_device_memory()
    name = os.path.abspath(options.model) if os.path.isfile(options.model) else options.model
    chosen = options.options.model_copy(update={"device": "cuda" if on_gpu else device})
    work = BenchJob(shards, name, chosen, join(folder, "output"), options.decode)
    return compare(work, processes, notify)
