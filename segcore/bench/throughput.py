"""Images per second of the whole Ray job against a plain loop of the same work.

The plain loop is the one a person would write by hand to fill the machine: as many processes as
the job has actors, each with its model and its share of the units; read, decode, model, write, one
after another, and nothing else. Both are measured without starting processes and loading models.
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

from segcore.bench.images import Shards, plan_shards
from segcore.bench.machine import ProcessWatch, own_peak_mb
from segcore.config import Config
from segcore.errors import ErrorCode, ImageError, SegcoreError
from segcore.images import DecodeOptions
from segcore.models.base import Model, ModelOptions
from segcore.models.torch_runtime import use_one_thread
from segcore.output.parts import ImageResult, Parts
from segcore.output.report import RunReport
from segcore.sources import Sample, SourceOptions, read_unit
from segcore.sources.units import Unit
from segcore.storage import Storage, join
from segcore.worker.preprocessing import Preprocessor

Notify = Callable[[str], None]
START_SECONDS = 300  # a process that has not loaded its model by then is stuck


@dataclass(frozen=True)
class Throughput:
    """The whole job against the plain loop, both on the same images in one run.

    Attributes:
        job_images_per_s: Steady state: from the first part on, without those first parts.
        plain_images_per_s: Mean of a pass before the job and one after it.
        plain_passes: Both of them; their difference is the noise of the machine.
        efficiency: `job_images_per_s` / `plain_images_per_s`.
        job_cpu_ms: CPU time of one image in steady state, of all processes of the job, Ray's
            included; other work on the machine disturbs it far less. 0 when not known.
        plain_cpu_ms: The same of the plain loop.
        cpu_efficiency: `plain_cpu_ms` / `job_cpu_ms`; 0 when not known.
        job_seconds: All of it, with starting Ray and loading models.
        actor_peak_mb: Largest resident memory of one actor; 0 when the system does not tell.
        plain_peak_mb: The same of a process of the plain loop.
    """

    images: int
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
class BenchJob:
    """What both do. Travels to processes."""

    shards: Shards
    model: str
    options: ModelOptions
    output: str
    decode: DecodeOptions = field(default_factory=DecodeOptions)


def compare(work: BenchJob, processes: int, notify: Notify) -> Throughput:
    """Plain loop, job, plain loop.

    Raises:
        SegcoreError: The job failed, or a process of the plain loop did.
    """
    notify("Plain loop, first pass.")
    first = plain_loop(work, processes, "plain-1")
    notify("The whole job, on Ray.")
    watch = ProcessWatch()
    with watch.watching():
        report, seconds = job(work, processes)
    images, start, stop = steady_state(report.prefix, processes)
    rate = images / (stop - start)
    cpu = 1e3 * watch.cpu_seconds(start, stop) / images
    notify("Plain loop, second pass.")
    second = plain_loop(work, processes, "plain-2")
    plain = (first.images_per_s + second.images_per_s) / 2
    plain_cpu = (first.cpu_ms + second.cpu_ms) / 2
    return Throughput(
        images=report.images,
        workers=report.pool,
        job_images_per_s=rate,
        plain_images_per_s=plain,
        plain_passes=(first.images_per_s, second.images_per_s),
        efficiency=rate / plain,
        job_cpu_ms=cpu,
        plain_cpu_ms=plain_cpu,
        cpu_efficiency=plain_cpu / cpu if cpu else 0.0,
        job_seconds=seconds,
        actor_peak_mb=watch.actor_peak_mb,
        plain_peak_mb=first.peak_mb,
    )


def job(work: BenchJob, actors: int) -> tuple[RunReport, float]:
    """Run `segcore segment`; (report, seconds in all)."""
    from segcore.run.segment import segment

    settings = {
        "input": work.shards.folder,
        "output": join(work.output, "job"),
        "model": {"name": work.model, **work.options.model_dump()},
        "decode": work.decode,
        "ray": {"address": "local", "min_actors": actors, "max_actors": actors},
        "run": {"max_failed_fraction": 1.0},
    }
    began = time.monotonic()
    report = segment(Config.model_validate(settings))
    seconds = time.monotonic() - began
    if report.exit_code:
        raise SegcoreError(f"The job did not finish: {'; '.join(report.errors) or report.status}")
    return report, seconds


def steady_state(prefix: str, actors: int) -> tuple[int, float, float]:
    """(images, start, stop) between two commits, by the times that the file system keeps.

    The first fifth of the commits is left out: actors do not start together.

    Raises:
        SegcoreError: There are too few units to tell.
    """
    commits = sorted(
        (os.stat(entry.path).st_mtime, pq.read_metadata(entry.path).num_rows)
        for entry in os.scandir(join(prefix, "images"))
        if entry.name.endswith(".parquet")
    )
    skip = max(actors, len(commits) // 5)
    if len(commits) <= skip + 1:
        raise SegcoreError(
            f"{len(commits)} units are too few to see a steady state of {actors} actors.",
            hint="Give more --images.",
        )
    images = sum(rows for _, rows in commits[skip:])
    return images, commits[skip - 1][0], commits[-1][0]


class PlainPass(NamedTuple):
    """What one pass of the plain loop gave; `peak_mb` is of one process, resident."""

    images_per_s: float
    cpu_ms: float
    peak_mb: float


def plain_loop(work: BenchJob, processes: int, name: str) -> PlainPass:
    """One pass over all images.

    Raises:
        SegcoreError: A process of it failed.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    results: Any = context.Queue()
    workers = [
        context.Process(target=_plain, args=(work, rank, processes, name, barrier, results))
        for rank in range(processes)
    ]
    for worker in workers:
        worker.start()
    try:
        rows = [results.get(timeout=START_SECONDS + 600) for _ in workers]
    finally:
        for worker in workers:
            worker.join(timeout=10)
            if worker.is_alive():
                worker.kill()
    for row in rows:
        if isinstance(row, str):
            raise SegcoreError(f"The plain loop failed: {row}")
    done, began, ended, cpu, peak = zip(*rows, strict=True)
    return PlainPass(
        images_per_s=sum(done) / (max(ended) - min(began)),
        cpu_ms=1e3 * sum(cpu) / sum(done),
        peak_mb=max(peak),
    )


def _plain(
    work: BenchJob, rank: int, processes: int, name: str, barrier: Barrier, results: Any
) -> None:
    """One process: says (images, began, ended, CPU s, peak MB), or what went wrong."""
    try:
        import cv2

        from segcore.models.registry import load_model

        use_one_thread()
        cv2.setNumThreads(1)
        model = load_model(work.model, work.options)
        storage = Storage()
        units = list(plan_shards(work.shards, storage).units)
        parts = parts_for(model, storage, join(work.output, name))
        segment = partial(segment_plainly, model, parts=parts, storage=storage, decode=work.decode)
        segment(units[0], limit=2 * model.batch_size)  # warm
        barrier.wait(START_SECONDS)
        began, cpu = time.monotonic(), time.process_time()
        done = sum(segment(unit) for unit in units[rank::processes])
        cpu = time.process_time() - cpu
        results.put((done, began, time.monotonic(), cpu, own_peak_mb()))
    except BaseException as error:
        barrier.abort()
        results.put(f"{type(error).__name__}: {error}")


def parts_for(model: Model, storage: Storage, prefix: str) -> Parts:
    """Where a loop of ours writes what the job would write."""
    categories = tuple((category.id, category.name) for category in model.info.categories)
    return Parts(storage, prefix, "bench", "bench", model.info.licence, categories)


def segment_plainly(
    model: Model,
    unit: Unit,
    parts: Parts,
    storage: Storage,
    limit: int | None = None,
    decode: DecodeOptions = DecodeOptions(),
) -> int:
    """Segment one unit, one step after another; returns how many images."""
    preparation = Preprocessor(model.preprocess, decode)
    results: list[ImageResult] = []
    batch: list[tuple[Sample, Any]] = []

    def flush() -> None:
        prepared = [item for _, item in batch]
        found = model.postprocess(model.forward(prepared), prepared) if prepared else []
        for (sample, _), one in zip(batch, found, strict=True):
            ids = (sample.image_id, sample.uri, sample.etag)
            results.append(ImageResult(*ids, one.width, one.height, one))
        batch.clear()

    for sample in read_unit(unit, storage, SourceOptions()):
        try:
            if sample.data is None:
                raise sample.error or ImageError(ErrorCode.READ_ERROR, "no bytes were read")
            batch.append((sample, preparation.preprocess(preparation.decode(sample.data))))
        except ImageError as error:
            ids = (sample.image_id, sample.uri, sample.etag)
            results.append(ImageResult(*ids, error=error))
        if len(batch) >= model.batch_size:
            flush()
            if limit is not None and len(results) >= limit:
                break
    flush()
    parts.commit(unit, results)
    return len(results)
