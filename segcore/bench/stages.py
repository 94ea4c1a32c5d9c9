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

from segcore.bench.images import Shards, plan_shards
from segcore.errors import ImageError, UsageError
from segcore.images import DecodeOptions
from segcore.models.base import Model
from segcore.models.torch_runtime import device_synchronizer
from segcore.output.parts import ImageResult, Parts
from segcore.sources import Sample, SourceOptions, read_unit
from segcore.storage import Storage
from segcore.worker.preprocessing import Preprocessor

STAGES = ("read", "decode", "preprocess", "forward", "postprocess", "masks", "write")
# What models call to turn their masks into strings.
ENCODERS = ("encode_logits", "encode_images", "paste")


@dataclass(frozen=True)
class StageTimes:
    """One size of image.

    Attributes:
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
        """Sum over the stages."""
        return sum(self.ms.values())

    @property
    def percent(self) -> dict[str, float]:
        """Share of each stage in the total."""
        return {stage: 100 * ms / self.total_ms for stage, ms in self.ms.items()}


class _Clock:
    """Adds up seconds by stage. `synchronize` waits for the device, so that its work counts."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.reset()
        self._synchronize = synchronize

    def reset(self) -> None:
        """Begin anew."""
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def __call__(self, stage: str, work: Callable[..., Any], *args: Any) -> Any:
        began = time.perf_counter()
        result = work(*args)
        if stage in ("forward", "postprocess"):
            self._synchronize()
        self.seconds[stage] += time.perf_counter() - began
        return result


def measure_stages(
    model: Model,
    shards: Shards,
    parts: Parts,
    storage: Storage,
    images: int,
    seconds: float,
    decode: DecodeOptions = DecodeOptions(),
) -> StageTimes:
    """Time at least one batch and at most about `images`, for at most about `seconds`.

    Raises:
        UsageError: None of the images can be decoded, or the model needs them in full.
    """
    preparation = Preprocessor(model.preprocess, decode)
    clock = _Clock(_synchronizer(model))
    done = instances = 0
    ends: float | None = None  # unknown until warm
    units = itertools.chain.from_iterable(itertools.repeat(plan_shards(shards, storage).units, 2))
    for unit in units:
        samples = read_unit(unit, storage, SourceOptions())
        results: list[ImageResult] = []
        while batch := _next_batch(samples, model.batch_size, clock):
            found = _run(model, preparation, batch, clock)
            if ends is None:  # kernels are compiled and caches filled now
                clock.reset()
                ends = time.perf_counter() + seconds
                continue
            results += found
            if time.perf_counter() > ends or done + len(results) >= images:
                break
        if not results:
            continue
        clock("write", parts.commit, unit, results)
        done += len(results)
        instances += sum(len(result.instances or ()) for result in results)
        if done >= images or time.perf_counter() > (ends or 0):
            break
    if not done:
        raise UsageError(f"{shards.label}: not one image could be decoded and measured.")
    ms = {stage: 1e3 * spent / done for stage, spent in clock.seconds.items()}
    if shards.read_ms is not None:
        ms["read"] = shards.read_ms
    return StageTimes(shards.label, done, instances / done, ms)


def _next_batch(samples: Iterator[Sample], size: int, clock: _Clock) -> list[Sample]:
    """The next `size` samples that were read well; fewer at the end."""
    batch: list[Sample] = []
    while len(batch) < size:
        sample = clock("read", next, samples, None)
        if sample is None:
            break
        if sample.data is not None:
            batch.append(sample)
    return batch


def _run(
    model: Model, preparation: Preprocessor, batch: list[Sample], clock: _Clock
) -> list[ImageResult]:
    prepared, names = [], []
    for sample in batch:
        try:
            image = clock("decode", preparation.decode, sample.data)
        except ImageError:
            continue
        prepared.append(clock("preprocess", preparation.preprocess, image))
        names.append((sample, image))
    if not prepared:
        return []
    raw = clock("forward", model.forward, prepared)
    with _timed_masks(model, clock):
        found = clock("postprocess", model.postprocess, raw, prepared)
    return [
        ImageResult(sample.image_id, sample.uri, sample.etag, image.width, image.height, instances)
        for (sample, image), instances in zip(names, found, strict=True)
    ]


@contextmanager
def _timed_masks(model: Model, clock: _Clock) -> Iterator[None]:
    """Within the block, what the model's module calls to encode masks is timed on its own."""
    module = sys.modules[type(model).__module__]
    plain = {name: getattr(module, name) for name in ENCODERS if hasattr(module, name)}
    before = clock.seconds["masks"]
    for name, encode in plain.items():
        setattr(module, name, partial(clock, "masks", encode))
    try:
        yield
    finally:
        for name, encode in plain.items():
            setattr(module, name, encode)
        clock.seconds["postprocess"] -= clock.seconds["masks"] - before


def _synchronizer(model: Model) -> Callable[[], None]:
    """Waits until the model's device has done what it was given."""
    return device_synchronizer(str(getattr(model, "device", "cpu")))
