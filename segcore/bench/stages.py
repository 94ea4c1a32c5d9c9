"""Milliseconds of each stage for one image, on one thread, one stage after another."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from segcore.bench.images import BenchArchive, plan_archive
from segcore.errors import ImageError, UsageError
from segcore.images import DecodeOptions
from segcore.models.base import Model
from segcore.models.torch_runtime import device_synchronizer
from segcore.output.parts import Parts
from segcore.output.tables import ImageResult
from segcore.sources import Sample, SourceOptions, read_unit
from segcore.storage import Storage
from segcore.worker.preprocessing import Preprocessor

STAGES = ("read", "decode", "preprocess", "forward", "postprocess", "masks", "write")
# The functions that models call to turn their masks into RLE strings.
ENCODERS = ("encode_logits", "encode_images", "paste")


@dataclass(frozen=True)
class StageTimes:
    """The stages of one archive.

    Attributes:
        label: Size of the images, or where they came from.
        images: How many were measured.
        ms: Stage -> mean milliseconds of one image. ``masks`` is the part of postprocessing that
            makes RLE strings, ``postprocess`` the rest of it (NMS, boxes); for a model that
            encodes in its own way both are in ``postprocess``.
    """

    label: str
    images: int
    instances_per_image: float
    ms: dict[str, float]

    @property
    def total_ms(self) -> float:
        """Sum over all stages."""
        return sum(self.ms.values())

    @property
    def percent(self) -> dict[str, float]:
        """Share of each stage in the total."""
        return {stage: 100 * ms / self.total_ms for stage, ms in self.ms.items()}


class _StageTimer:
    """Adds up seconds by stage.

    Args:
        synchronize: Waits for the device, so that its work is counted where it was started.
    """

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.reset()
        self._synchronize = synchronize

    def reset(self) -> None:
        """Forget what was measured so far."""
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def measure(self, stage: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function, add the time to a stage, return the result."""
        start = time.perf_counter()
        result = function(*args)
        if stage in ("forward", "postprocess"):
            self._synchronize()
        self.seconds[stage] += time.perf_counter() - start
        return result


def measure_stages(
    model: Model,
    archive: BenchArchive,
    parts: Parts,
    storage: Storage,
    images: int,
    seconds: float,
    decode: DecodeOptions = DecodeOptions(),
) -> StageTimes:
    """Time at least one batch and at most about `images`, for at most about `seconds`.

    Args:
        parts: Where the stage ``write`` writes.

    Raises:
        UsageError: None of the images can be decoded, or the model needs them in full.
    """
    preprocessor = Preprocessor(model.preprocess, decode)
    timer = _StageTimer(_synchronizer(model))
    n_images = n_instances = 0
    deadline: float | None = None  # set once the first batch has warmed up everything
    units = plan_archive(archive, storage).units
    for unit in itertools.chain.from_iterable(itertools.repeat(units, 2)):
        samples = read_unit(unit, storage, SourceOptions())
        results: list[ImageResult] = []
        while batch := _next_batch(samples, model.batch_size, timer):
            batch_results = _segment_batch(model, preprocessor, batch, timer)
            if deadline is None:  # now kernels are compiled and caches are filled
                timer.reset()
                deadline = time.perf_counter() + seconds
                continue
            results += batch_results
            if time.perf_counter() > deadline or n_images + len(results) >= images:
                break
        if not results:
            continue
        timer.measure("write", parts.commit, unit, results)
        n_images += len(results)
        n_instances += sum(len(result.instances or ()) for result in results)
        if n_images >= images or time.perf_counter() > (deadline or 0):
            break
    if not n_images:
        raise UsageError(f"{archive.label}: not one image could be decoded and measured.")
    ms = {stage: 1e3 * stage_s / n_images for stage, stage_s in timer.seconds.items()}
    if archive.read_ms is not None:
        ms["read"] = archive.read_ms
    return StageTimes(archive.label, n_images, n_instances / n_images, ms)


def _next_batch(samples: Iterator[Sample], size: int, timer: _StageTimer) -> list[Sample]:
    """The next `size` samples that could be read; fewer at the end."""
    batch: list[Sample] = []
    while len(batch) < size:
        sample = timer.measure("read", next, samples, None)
        if sample is None:
            break
        if sample.data is not None:
            batch.append(sample)
    return batch


def _segment_batch(
    model: Model, preprocessor: Preprocessor, batch: list[Sample], timer: _StageTimer
) -> list[ImageResult]:
    """Decode and segment samples, every stage timed; those that cannot be decoded are left out."""
    prepared, decoded = [], []
    for sample in batch:
        try:
            image = timer.measure("decode", preprocessor.decode, sample.data)
        except ImageError:
            continue
        prepared.append(timer.measure("preprocess", preprocessor.preprocess, image))
        decoded.append((sample, image))
    if not prepared:
        return []
    raw = timer.measure("forward", model.forward, prepared)
    with _mask_stage(model, timer):
        instances = timer.measure("postprocess", model.postprocess, raw, prepared)
    return [
        ImageResult(sample.image_id, sample.uri, sample.etag, image.width, image.height, of_image)
        for (sample, image), of_image in zip(decoded, instances, strict=True)
    ]


@contextmanager
def _mask_stage(model: Model, timer: _StageTimer) -> Iterator[None]:
    """Within the block, time the encoders that the model's module calls as a stage of their own."""
    module = sys.modules[type(model).__module__]
    encoders = {name: getattr(module, name) for name in ENCODERS if hasattr(module, name)}
    mask_seconds_before = timer.seconds["masks"]
    for name, encode in encoders.items():
        setattr(module, name, partial(timer.measure, "masks", encode))
    try:
        yield
    finally:
        for name, encode in encoders.items():
            setattr(module, name, encode)
        timer.seconds["postprocess"] -= timer.seconds["masks"] - mask_seconds_before


def _synchronizer(model: Model) -> Callable[[], None]:
    """A function that waits until the model's device has completed its work."""
    return device_synchronizer(str(getattr(model, "device", "cpu")))
