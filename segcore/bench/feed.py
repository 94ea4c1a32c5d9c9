"""How fast a GPU can be fed: the layout `split`, with a model that holds batches in place of a GPU.

Needs no GPU. Decoding alone, in one process for each core and without Ray, is measured with the
same images before and after; the ratio to it is what a machine with a GPU would keep.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2

from segcore.bench.held_model import HELD_MODEL, HOLD_MS, IMGSZ, LOG_FOLDER, checksum
from segcore.bench.images import BenchArchive, parse_size, plan_archive, write_synthetic
from segcore.bench.machine import Machine, describe_machine
from segcore.config import Config, load_config
from segcore.distributed.cluster import local_ray_with_gpus
from segcore.errors import SegcoreError
from segcore.evaluation.resources import n_cores
from segcore.images import DecodeOptions
from segcore.models.yolo.model import Preprocess
from segcore.run.segment import segment
from segcore.sources import SourceOptions, read_unit
from segcore.sources.units import Unit
from segcore.storage import Storage
from segcore.worker.read_options import ReadOptions
from segcore.worker.watchdog import Watchdog

_STAT = Path("/proc/stat")
_MAX_DECODED_BYTES = 512 << 20


@dataclass(frozen=True)
class DecodingCost:
    """Decoding and preprocessing alone, in one process for each core.

    Attributes:
        images_per_s: By the clock, once all processes have started.
        cpu_ms: CPU time for an image, of all processes.
        checksum: Sum of the checksums of all canvases.
    """

    images_per_s: float
    cpu_ms: float
    checksum: int

    def mean_with(self, other: DecodingCost) -> DecodingCost:
        """The mean of two measurements of the same images."""
        return DecodingCost(
            images_per_s=round((self.images_per_s + other.images_per_s) / 2, 2),
            cpu_ms=round((self.cpu_ms + other.cpu_ms) / 2, 3),
            checksum=self.checksum,
        )


@dataclass(frozen=True)
class FeedCost:
    """What reached the model, and what it cost.

    Attributes:
        images_per_s: In the steady state: without the start of Ray and of the workers.
        cpu_ms: CPU time of the whole machine for an image in the steady state; None where the
            system does not tell.
        checksum: As of `DecodingCost`.
        batch_fill: Images in a batch, over its size.
        pool: The processes, for people.
    """

    images_per_s: float
    cpu_ms: float | None
    checksum: int
    batch_fill: float
    pool: str


@dataclass(frozen=True)
class FeedReport:
    """The result of `segcore bench feed`."""

    images: int
    size: str
    hold_ms: float
    machine: Machine
    decoding: DecodingCost
    feed: FeedCost

    @property
    def speed_ratio(self) -> float:
        """Images per second at the model over those of decoding alone."""
        return round(self.feed.images_per_s / self.decoding.images_per_s, 3)

    @property
    def cpu_ratio(self) -> float | None:
        """CPU time for an image over that of decoding alone."""
        if self.feed.cpu_ms is None:
            return None
        return round(self.feed.cpu_ms / self.decoding.cpu_ms, 3)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"speed_ratio": self.speed_ratio, "cpu_ratio": self.cpu_ratio}

    def summary(self) -> str:
        """For people, as lines of text."""
        feed, decoding = self.feed, self.decoding
        feed_cpu = "" if feed.cpu_ms is None else f"{feed.cpu_ms:10.2f} ms of CPU an image"
        ratio = "" if self.cpu_ratio is None else f"{self.cpu_ratio:13.2f} x"
        rows = [
            f"decoding alone    {decoding.images_per_s:8.1f} images/s"
            f"{decoding.cpu_ms:10.2f} ms of CPU an image",
            f"at the model      {feed.images_per_s:8.1f} images/s{feed_cpu}",
            f"ratio             {self.speed_ratio:8.2f} x{ratio}",
        ]
        return "\n".join(
            [
                f"{self.images:,} JPEGs of {self.size}; the model holds each batch for "
                f"{self.hold_ms:g} ms",
                f"{self.machine.cpu}, {self.machine.cores} cores; {feed.pool}",
                "",
                *rows,
                "",
                f"Batches were full to {feed.batch_fill:.0%}. The pixels at the model are "
                "those of decoding alone.",
            ]
        )


def bench_feed(
    images: int,
    size: str = "640x480",
    hold_ms: float = 5.0,
    unit_images: int = 256,
    notify: Callable[[str], None] = lambda text: None,
) -> FeedReport:
    """Feed a model that holds each batch of 32 for `hold_ms`; before and after, decode alone.

    Raises:
        SegcoreError: The job failed, or other pixels reached the model.
    """
    with tempfile.TemporaryDirectory(prefix="segcore-feed-") as folder:
        archive = str(Path(folder) / "archive")
        notify("Making images.")
        write_synthetic(Storage(), archive, parse_size(size), images, unit_images)
        notify("Decoding alone.")
        before = _decode_alone(archive, images)
        notify("Feeding the model.")
        feed = _feed(archive, str(Path(folder) / "out"), Path(folder) / "log", hold_ms, images)
        notify("Decoding alone, once more.")
        decoding = before.mean_with(_decode_alone(archive, images))
    if feed.checksum != decoding.checksum:
        raise SegcoreError("Other pixels reached the model than decoding alone gives.")
    return FeedReport(images, size, hold_ms, describe_machine(), decoding, feed)


def _decode_alone(archive: str, images: int) -> DecodingCost:
    units = list(_archive_units(archive))
    cores = n_cores()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores, mp_context=context) as pool:
        list(pool.map(_decode_units, [[]] * cores * 2))  # starts and imports
        shares = [units[start::cores] for start in range(cores)]
        started = time.monotonic()
        results = list(pool.map(_decode_units, shares))
        seconds = time.monotonic() - started
    return DecodingCost(
        images_per_s=round(images / seconds, 2),
        cpu_ms=round(1e3 * sum(cpu_s for cpu_s, _ in results) / images, 3),
        checksum=sum(total for _, total in results),
    )


def _archive_units(archive: str) -> Sequence[Unit]:
    """The units of a folder of tar shards."""
    return list(plan_archive(BenchArchive(archive, "", 0, 0), Storage()).units)


def _decode_units(units: Sequence[Unit]) -> tuple[float, int]:
    """CPU seconds of reading, decoding and preprocessing, and the sum of the checksums."""
    cv2.setNumThreads(1)
    options = ReadOptions(Storage(), SourceOptions(), DecodeOptions(), 1, _MAX_DECODED_BYTES)
    watchdog, preprocess, total = Watchdog(options.image_timeout_s), Preprocess(IMGSZ, "rect"), 0
    cpu_before = time.process_time()
    for unit in units:
        samples = read_unit(unit, options.storage, options.source)
        for image in options.prefetcher(8, watchdog).stream(samples, preprocess, options.decode):
            if image.error is not None:
                raise SegcoreError(f"{image.sample.image_id}: {image.error.message}")
            total += checksum(image.value)
    return time.process_time() - cpu_before, total


def _feed(archive: str, output: str, log: Path, hold_ms: float, images: int) -> FeedCost:
    log.mkdir()
    os.environ.update({LOG_FOLDER: str(log), HOLD_MS: str(hold_ms)})
    sampler = CpuSampler()
    try:
        flags = {"input": ("input", archive), "output": ("output", output)}
        config: Config = load_config(
            sets=[f"model.name={HELD_MODEL}", "model.device=cuda"], flags=flags
        )
        # One CPU more than the machine has: the process that launches kernels hardly computes.
        with local_ray_with_gpus(config.ray, cpus=n_cores() + 1, gpus=1), sampler:
            report = segment(config)
    finally:
        os.environ.pop(LOG_FOLDER)
        os.environ.pop(HOLD_MS)
    if report.exit_code or report.images != images:
        raise SegcoreError(f"The run is not complete:\n{report.summary()}")
    batches = [json.loads(line) for file in log.iterdir() for line in file.open()]
    return summarize_batches(batches, images, sampler, report.pool)


def summarize_batches(
    batches: Sequence[tuple[float, int, int]], images: int, sampler: CpuSampler, pool: str
) -> FeedCost:
    """The steady state of what a model wrote about its batches: (time, images, checksum) of each.

    Grey images with which a worker tried its memory come first, and do not count.
    """
    ordered = sorted(batches)
    n_tried = sum(count for _, count, _ in ordered) - images
    while n_tried > 0:
        n_tried -= ordered.pop(0)[1]
    counts = [count for _, count, _ in ordered]
    start, end = ordered[0][0], ordered[-1][0]
    seconds, steady_images = max(end - start, 1e-9), sum(counts[:-1])
    cpu_s = sampler.cpu_seconds(start, end)
    return FeedCost(
        images_per_s=round(steady_images / seconds, 2),
        cpu_ms=None if cpu_s is None else round(1e3 * cpu_s / max(steady_images, 1), 3),
        checksum=sum(total for _, _, total in ordered),
        batch_fill=round(sum(counts) / (len(counts) * max(counts)), 3),
        pool=pool,
    )


class CpuSampler:
    """Samples the CPU time of the whole machine while the block runs."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []
        self._stop = threading.Event()

    def __enter__(self) -> CpuSampler:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            if _STAT.exists():
                self._samples.append((time.time(), _machine_cpu_seconds()))
            if self._stop.wait(0.5):
                return

    def cpu_seconds(self, start: float, end: float) -> float | None:
        """Between two times; None where the system does not tell."""
        inside = [sample for sample in self._samples if start <= sample[0] <= end]
        if len(inside) < 2:
            return None
        (first, cpu_first), (last, cpu_last) = inside[0], inside[-1]
        return (cpu_last - cpu_first) * (end - start) / (last - first)


def _machine_cpu_seconds() -> float:
    """User, nice and system time of all cores since the machine started."""
    user, nice, system = _STAT.read_text().split("\n", 1)[0].split()[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")
