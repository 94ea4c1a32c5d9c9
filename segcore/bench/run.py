"""One measurement, from its options to its report."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field

from segcore.bench.images import BenchArchive, copy_images, parse_size, write_synthetic
from segcore.bench.machine import describe_machine
from segcore.bench.report import BenchReport
from segcore.bench.stages import StageTimes, measure_stages
from segcore.bench.throughput import (
    Notify,
    Throughput,
    Workload,
    compare_throughput,
    make_parts,
)
from segcore.errors import UsageError
from segcore.evaluation.resources import n_cores
from segcore.images import DecodeOptions
from segcore.masks import default_backend
from segcore.models import torch_runtime
from segcore.models.base import Model, ModelOptions
from segcore.models.registry import load_model
from segcore.sources import SourceOptions
from segcore.storage import Storage, join
from segcore.text import format_duration, plural

_MIN_JOB_UNITS = 24  # enough to see the steady state of the job
_MIN_UNITS_PER_PROCESS = 3
_STAGE_UNIT_IMAGES = 20  # images of a unit where stages are measured
# Unless the user says how many images the job runs on, or for how long:
_JOB_SECONDS = 45.0
_MAX_JOB_IMAGES = 2000
_PASSES = 3  # over the same images: plain loop, job, plain loop


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        model: What `load_model` takes.
        input: Archive whose images are used; None: synthetic ones of `sizes`.
        sizes: WIDTHxHEIGHT or names; the job runs on the first.
        images: Images of the job; None: as many as fit into `seconds`.
        seconds: What the three passes over them shall take about, besides their starts; None: 45,
            for at most 2,000 images.
        stage_images: Images of each size for the stages; `stage_seconds` is another limit.
        whole_job: False skips the job.
        price_per_hour: Of this machine, in any currency.
    """

    model: str
    model_options: ModelOptions = field(default_factory=ModelOptions)
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    input: str | None = None
    sizes: tuple[str, ...] = ("640x480", "1920x1080", "4000x3000")
    images: int | None = None
    seconds: float | None = None
    stage_images: int = 48
    stage_seconds: float = 5.0
    whole_job: bool = True
    price_per_hour: float | None = None


def run_bench(options: BenchOptions, notify: Notify = lambda text: None) -> BenchReport:
    """Measure this machine; works in a temporary folder and leaves nothing behind.

    Raises:
        SegcoreError: The model, the images or the job cannot be used.
    """
    if options.price_per_hour is not None and not options.whole_job:
        raise UsageError("--price-per-hour needs the whole job, which --stages-only skips.")
    if options.images is not None and options.seconds is not None:
        raise UsageError("--images and --seconds both say how long the job is; give one of them.")
    sizes = [parse_size(size) for size in options.sizes]
    model = load_model(options.model, options.model_options)
    device = str(getattr(model, "device", "cpu"))
    with tempfile.TemporaryDirectory(prefix="segcore-bench-") as folder:
        archives = _stage_archives(options, sizes, folder, notify)
        processes = _count_processes(device)
        with torch_runtime.one_thread():
            stages = [
                _measure_archive(model, archive, options, join(folder, f"stages-{number}"), notify)
                for number, archive in enumerate(archives)
            ]
        peak_bytes = torch_runtime.peak_device_memory_bytes(device)
        info, batch_size = model.info, model.batch_size
        del model  # the job loads its own; on a GPU there may be room for one only
        job = None
        if options.whole_job:
            ms_per_image = stages[0].total_ms
            images = options.images or choose_job_images(ms_per_image, processes, options.seconds)
            seconds = _PASSES * images * ms_per_image / 1e3 / processes
            notify(
                f"Three passes over {plural(images, 'image')}, plain loop, job, plain loop: about "
                f"{format_duration(seconds)}, besides their starts."
            )
            archive = _job_archive(options, sizes[0], images, processes, folder)
            job = _measure_job(options, archive, processes, folder, device, notify)
    return BenchReport(
        machine=describe_machine(),
        model=info.name,
        device=device,
        batch_size=batch_size,
        masks_by=default_backend(),
        stages=tuple(stages),
        device_peak_mb=None if peak_bytes is None else peak_bytes / 1e6,
        job=job,
        price_per_hour=options.price_per_hour,
    )


def _stage_archives(
    options: BenchOptions, sizes: list[tuple[int, int]], folder: str, notify: Notify
) -> list[BenchArchive]:
    """The archives to measure stages on: that of the user, or one for each synthetic size."""
    storage, n_images, per_shard = Storage(), options.stage_images, _STAGE_UNIT_IMAGES
    if options.input is not None:
        notify(f"Reading images of {options.input}.")
        target, source = join(folder, "given"), SourceOptions()
        return [copy_images(storage, target, options.input, source, n_images, per_shard)]
    notify("Making synthetic images.")
    targets = (join(folder, f"images-{width}x{height}") for width, height in sizes)
    return [
        write_synthetic(storage, target, size, n_images, per_shard)
        for target, size in zip(targets, sizes, strict=True)
    ]


def choose_job_images(ms_per_image: float, processes: int, seconds: float | None = None) -> int:
    """How many images the job runs on.

    Args:
        ms_per_image: What one takes in each of the processes.
        seconds: See `BenchOptions`.
    """
    affordable = int(1e3 * (seconds or _JOB_SECONDS) / _PASSES * processes / ms_per_image)
    limit = affordable if seconds else min(affordable, _MAX_JOB_IMAGES)
    return max(_min_units(processes), limit)


def _min_units(processes: int) -> int:
    return max(_MIN_JOB_UNITS, _MIN_UNITS_PER_PROCESS * processes)


def _job_archive(
    options: BenchOptions, size: tuple[int, int], images: int, processes: int, folder: str
) -> BenchArchive:
    storage, target = Storage(), join(folder, "job-images")
    per_shard = max(1, images // _min_units(processes))
    if options.input is not None:
        return copy_images(storage, target, options.input, SourceOptions(), images, per_shard)
    return write_synthetic(storage, target, size, images, per_shard)


def _measure_archive(
    model: Model, archive: BenchArchive, options: BenchOptions, output: str, notify: Notify
) -> StageTimes:
    notify(f"Stages at {archive.label}.")
    storage = Storage()
    return measure_stages(
        model,
        archive,
        make_parts(model, storage, output),
        storage,
        options.stage_images,
        options.stage_seconds,
        options.decode,
    )


def _count_processes(device: str) -> int:
    """Processes that fill the machine: one for each GPU, or one for each core."""
    return torch_runtime.cuda_device_count() if device.startswith("cuda") else n_cores()


def _measure_job(
    options: BenchOptions,
    archive: BenchArchive,
    processes: int,
    folder: str,
    device: str,
    notify: Notify,
) -> Throughput:
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch_runtime.free_cached_device_memory()
    model = os.path.abspath(options.model) if os.path.isfile(options.model) else options.model
    model_options = options.model_options.model_copy(
        update={"device": "cuda" if on_gpu else device}
    )
    workload = Workload(archive, model, model_options, join(folder, "output"), options.decode)
    return compare_throughput(workload, processes, notify)
