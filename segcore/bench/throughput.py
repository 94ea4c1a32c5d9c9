"""Images per second of the whole Ray job against a plain loop that does the same work.

The plain loop is what a person would write by hand to use the whole machine: as many processes as
the job has actors, each with its own model and its share of the units; read, decode, model, write,
one after another, and nothing else. Starting processes and loading models is measured in neither.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.synchronize import Barrier
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from segcore.bench.images import BenchArchive, plan_archive
from segcore.bench.machine import ProcessMonitor, own_peak_memory_mb
from segcore.config import Config
from segcore.errors import ErrorCode, ImageError, SegcoreError
from segcore.images import DecodeOptions
from segcore.models.base import Model, ModelOptions
from segcore.models.torch_runtime import use_one_thread
from segcore.output.layout import EditionLayout
from segcore.output.parts import Parts
from segcore.output.report import RunReport
from segcore.output.tables import ImageResult
from segcore.sources import Sample, SourceOptions, read_unit
from segcore.sources.units import Unit
from segcore.storage import Storage, join
from segcore.text import plural
from segcore.worker.preprocessing import Preprocessor

Notify = Callable[[str], None]
START_TIMEOUT_S = 300  # a process that has not loaded its model by then is stuck
PASS_TIMEOUT_S = 600  # of a whole pass after that
_JOIN_TIMEOUT_S = 10
_WARM_UP_BATCHES = 2
_STEADY_STATE_SKIP = 5  # the first fifth of the commits is left out


@dataclass(frozen=True)
class Throughput:
    """The whole job against the plain loop, both on the same images in one run.

    Attributes:
        images: Images of the job.
        bytes_per_image: Their mean encoded size.
        workers: The actors of the job, for people.
        job_images_per_s: In steady state: after the first parts, which are not counted.
        plain_images_per_s: Mean of a pass before the job and one after it.
        plain_passes: Both of them; their difference is the noise of the machine.
        efficiency: `job_images_per_s` / `plain_images_per_s`.
        job_cpu_ms: CPU time per image in steady state, of all processes of the job, Ray's
            included; other work on the machine disturbs it far less. 0 when not known.
        plain_cpu_ms: The same for the plain loop.
        cpu_efficiency: `plain_cpu_ms` / `job_cpu_ms`; 0 when not known.
        job_seconds: Of the whole job, starting Ray and loading models included.
        actor_peak_mb: Largest resident memory of one actor; 0 when not known.
        plain_peak_mb: The same for a process of the plain loop.
    """

    images: int
    bytes_per_image: float
    workers: str
    job_images_per_s: float
    plain_images_per_s: float
    plain_passes: tuple[float, float]
    efficiency: float
    job_cpu_ms: float
    plain_cpu_ms: float
    cpu_efficiency: float
    job_seconds: float
    actor_peak_mb: float
    plain_peak_mb: float

    def cost_per_million(self, price_per_hour: float) -> float:
        """Price of a million images on this machine, in the currency of `price_per_hour`."""
        return price_per_hour * 1e6 / self.job_images_per_s / 3600


@dataclass(frozen=True)
class Workload:
    """What the job and the plain loop both do; it is sent to processes.

    Attributes:
        model: What `load_model` takes.
        output: Folder under which both write.
    """

    archive: BenchArchive
    model: str
    model_options: ModelOptions
    output: str
    decode: DecodeOptions = field(default_factory=DecodeOptions)


def compare_throughput(workload: Workload, processes: int, notify: Notify) -> Throughput:
    """Run the plain loop, the job, and the plain loop again.

    Args:
        processes: Actors of the job, and processes of the plain loop.

    Raises:
        SegcoreError: The job failed, or a process of the plain loop did.
    """
    notify("Plain loop, first pass.")
    first = run_plain_loop(workload, processes, "plain-1")
    notify("The whole job, on Ray.")
    monitor = ProcessMonitor()
    with monitor.running():
        report, seconds = run_job(workload, processes)
    images, start, stop = find_steady_state(report.prefix, processes)
    job_images_per_s = images / (stop - start)
    job_cpu_ms = 1e3 * monitor.cpu_seconds(start, stop) / images
    notify("Plain loop, second pass.")
    second = run_plain_loop(workload, processes, "plain-2")
    plain_images_per_s = (first.images_per_s + second.images_per_s) / 2
    plain_cpu_ms = (first.cpu_ms + second.cpu_ms) / 2
    return Throughput(
        images=report.images,
        bytes_per_image=workload.archive.bytes / workload.archive.images,
        workers=report.pool,
        job_images_per_s=job_images_per_s,
        plain_images_per_s=plain_images_per_s,
        plain_passes=(first.images_per_s, second.images_per_s),
        efficiency=job_images_per_s / plain_images_per_s,
        job_cpu_ms=job_cpu_ms,
        plain_cpu_ms=plain_cpu_ms,
        cpu_efficiency=plain_cpu_ms / job_cpu_ms if job_cpu_ms else 0.0,
        job_seconds=seconds,
        actor_peak_mb=monitor.actor_peak_mb,
        plain_peak_mb=first.peak_mb,
    )


def run_job(workload: Workload, actors: int) -> tuple[RunReport, float]:
    """Run `segcore segment`; returns its report and the seconds it took in total."""
    from segcore.run.segment import segment

    settings = {
        "input": workload.archive.folder,
        "output": join(workload.output, "job"),
        "model": {"name": workload.model, **workload.model_options.model_dump()},
        "decode": workload.decode,
        "ray": {"address": "local", "min_actors": actors, "max_actors": actors},
        "run": {"max_failed_fraction": 1.0},
    }
    start = time.monotonic()
    report = segment(Config.model_validate(settings))
    seconds = time.monotonic() - start
    if report.exit_code:
        raise SegcoreError(f"The job did not finish: {'; '.join(report.errors) or report.status}")
    return report, seconds


def find_steady_state(prefix: str, actors: int) -> tuple[int, float, float]:
    """(images, start, stop) between two commits; times are the modification times of the parts.

    The first fifth of the commits is left out, because actors do not start together.

    Raises:
        SegcoreError: There are too few units for a steady state.
    """
    commits = sorted(
        (os.stat(entry.path).st_mtime, pq.read_metadata(entry.path).num_rows)
        for entry in os.scandir(EditionLayout(prefix).parts_folder("images"))
        if entry.name.endswith(".parquet")
    )
    n_skipped = max(actors, len(commits) // _STEADY_STATE_SKIP)
    if len(commits) <= n_skipped + 1:
        raise SegcoreError(
            f"{plural(len(commits), 'unit')} are too few to see the steady state of "
            f"{plural(actors, 'actor')}.",
            hint="Use more --images.",
        )
    images = sum(rows for _, rows in commits[n_skipped:])
    return images, commits[n_skipped - 1][0], commits[-1][0]


class PlainPass(NamedTuple):
    """One pass of the plain loop: CPU time per image, and the peak resident memory of a process."""

    images_per_s: float
    cpu_ms: float
    peak_mb: float


def run_plain_loop(workload: Workload, processes: int, name: str) -> PlainPass:
    """Run one pass over all images.

    Args:
        name: Of the folder for its output.

    Raises:
        SegcoreError: One of its processes failed.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    results: Any = context.Queue()
    workers = [
        context.Process(
            target=_plain_loop_process, args=(workload, rank, processes, name, barrier, results)
        )
        for rank in range(processes)
    ]
    for worker in workers:
        worker.start()
    try:
        rows = [results.get(timeout=START_TIMEOUT_S + PASS_TIMEOUT_S) for _ in workers]
    finally:
        for worker in workers:
            worker.join(timeout=_JOIN_TIMEOUT_S)
            if worker.is_alive():
                worker.kill()
    for row in rows:
        if isinstance(row, str):
            raise SegcoreError(f"The plain loop failed: {row}")
    images, starts, stops, cpu_seconds, peaks_mb = zip(*rows, strict=True)
    return PlainPass(
        images_per_s=sum(images) / (max(stops) - min(starts)),
        cpu_ms=1e3 * sum(cpu_seconds) / sum(images),
        peak_mb=max(peaks_mb),
    )


def _plain_loop_process(
    workload: Workload, rank: int, processes: int, name: str, barrier: Barrier, results: Any
) -> None:
    """One process of the plain loop, on the units ``rank, rank + processes, ...``.

    Puts (images, start, stop, CPU seconds, peak MB) into `results`, or a sentence on its failure.
    """
    try:
        import cv2

        from segcore.models.registry import load_model

        use_one_thread()
        cv2.setNumThreads(1)
        model = load_model(workload.model, workload.model_options)
        storage = Storage()
        units = list(plan_archive(workload.archive, storage).units)
        parts = make_parts(model, storage, join(workload.output, name))
        segment = partial(segment_unit, model, parts=parts, storage=storage, decode=workload.decode)
        segment(units[0], limit=_WARM_UP_BATCHES * model.batch_size)
        barrier.wait(START_TIMEOUT_S)
        start, cpu_start = time.monotonic(), time.process_time()
        images = sum(segment(unit) for unit in units[rank::processes])
        cpu_seconds = time.process_time() - cpu_start
        results.put((images, start, time.monotonic(), cpu_seconds, own_peak_memory_mb()))
    except BaseException as error:
        barrier.abort()
        results.put(f"{type(error).__name__}: {error}")


def make_parts(model: Model, storage: Storage, prefix: str) -> Parts:
    """Where a loop without Ray writes the parts that a job would write."""
    categories = tuple((category.id, category.name) for category in model.info.categories)
    return Parts(storage, prefix, "bench", "bench", model.info.licence, categories)


def segment_unit(
    model: Model,
    unit: Unit,
    parts: Parts,
    storage: Storage,
    limit: int | None = None,
    decode: DecodeOptions = DecodeOptions(),
) -> int:
    """Segment and commit one unit, one step after another; returns the number of its images.

    Args:
        limit: Stop after about so many images.
    """
    preprocessor = Preprocessor(model.preprocess, decode)
    results: list[ImageResult] = []
    batch: list[tuple[Sample, Any]] = []

    def segment_batch() -> None:
        prepared = [item for _, item in batch]
        instances = model.postprocess(model.forward(prepared), prepared) if prepared else []
        for (sample, _), of_image in zip(batch, instances, strict=True):
            ids = (sample.image_id, sample.uri, sample.etag)
            results.append(ImageResult(*ids, of_image.width, of_image.height, of_image))
        batch.clear()

    for sample in read_unit(unit, storage, SourceOptions()):
        try:
            if sample.data is None:
                raise sample.error or ImageError(ErrorCode.READ_ERROR, "no bytes were read")
            batch.append((sample, preprocessor.preprocess(preprocessor.decode(sample.data))))
        except ImageError as error:
            ids = (sample.image_id, sample.uri, sample.etag)
            results.append(ImageResult(*ids, error=error))
        if len(batch) >= model.batch_size:
            segment_batch()
            if limit is not None and len(results) >= limit:
                break
    segment_batch()
    parts.commit(unit, results)
    return len(results)
