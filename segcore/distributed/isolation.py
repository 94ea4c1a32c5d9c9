"""Units whose process died, image by image: the one that is to blame becomes a failed row.

A unit that loses its process twice comes here. An `Isolator` (safe: it touches no image) leads a
process of its own (`ImageActor`) through the unit, one image at a time, and knows at each moment
which one that is. When the process dies or does not come back in time, a new one tries the same
image once more, so that a lost machine is not held against it; the second time the image becomes a
row `crashed`, `timed_out` or `out_of_memory`, and the next one is tried. Each process first
segments a plain grey image: where that fails the machine or the model is at fault, and no image
is blamed.

Compared with halving a unit until one image is left, this costs two processes for a bad image, not
eight, and finds several bad ones in one pass.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from segcore.distributed.actors import (
    ActorSpec,
    UnitOutcome,
    load_worker_model,
    outcomes_to_columns,
    register,
)
from segcore.distributed.cluster import PoolSize
from segcore.errors import ErrorCode, ImageError, describe_error
from segcore.models.base import Model
from segcore.output.parts import ImageResult, PartCounts
from segcore.sources.unit_tables import units_from_table
from segcore.sources.units import Unit
from segcore.worker.batching import DeviceLost
from segcore.worker.unit_worker import ImageWorker

STRIKES = 2  # processes that an image may cost
STARTS = 2  # attempts to get a process that works
_MESSAGES = {
    ErrorCode.CRASHED: "the process died on this image, twice",
    ErrorCode.TIMED_OUT: "took longer than run.image_timeout_s ({limit:g} s), twice",
    ErrorCode.OUT_OF_MEMORY: "the process was ended for its use of memory on this image, twice",
}


class ImageActor:
    """The process that may die: `ImageWorker` behind Ray."""

    def __init__(self, spec: ActorSpec) -> None:
        model = load_worker_model(spec)
        _check(model)
        self._worker = ImageWorker(model, spec.read_options, spec.parts)

    def ready(self) -> None:
        """Comes back once the model is loaded and has segmented a plain image."""

    def open(self, unit: Unit, skip: int, retry_failed: bool) -> None:
        """See `ImageWorker.open`."""
        self._worker.open(unit, skip, retry_failed)

    def advance(self) -> ImageResult | None:
        """See `ImageWorker.advance`."""
        return self._worker.advance()

    def finish(self) -> ImageResult:
        """See `ImageWorker.finish`."""
        try:
            return self._worker.finish()
        except DeviceLost:
            os._exit(1)  # nothing works in this process any more

    def commit(self, unit: Unit, results: list[ImageResult], retry_failed: bool) -> PartCounts:
        """See `ImageWorker.commit`."""
        return self._worker.commit(unit, results, retry_failed)


def _check(model: Model) -> None:
    """Let a plain grey image go through; dying of it shows that no image is to blame."""
    with suppress(Exception):  # what a model raises is dealt with for each image
        prepared = [model.preprocess(np.full((64, 64, 3), 114, np.uint8))]
        model.postprocess(model.forward(prepared), prepared)


class _Died(Exception):
    """The process is gone; `code` says what is known of why."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(str(code))
        self.code = code


class _NoProcess(Exception):
    """There is no process that can segment anything."""


class Isolator:
    """Leads a process through units image by image; called with one unit at a time."""

    def __init__(self, spec: ActorSpec, progress: Any, retry_failed: bool, pool: PoolSize) -> None:
        register(progress)
        self._progress = progress
        self._spec = spec
        self._retry_failed = retry_failed
        self._pool = pool
        self._actor: Any = None

    def __call__(self, batch: pa.Table) -> dict[str, list]:
        """Segment the units of a batch (one) and say what became of them."""
        return outcomes_to_columns([self._segment(unit) for unit in units_from_table(batch)])

    def _segment(self, unit: Unit) -> UnitOutcome:
        try:
            counts = self._lead(unit)
        except Exception as error:  # tells the driver; the unit stays undone
            self._end()
            return UnitOutcome(unit.unit, error=describe_error(error))
        totals = (counts.ok, counts.failed, counts.instances)
        self._progress.close.remote(unit.unit, *totals, unit.n_bytes)
        return UnitOutcome(unit.unit, *totals)

    def _lead(self, unit: Unit) -> PartCounts:
        results: list[ImageResult] = []
        strikes = 0
        opened = False
        while True:
            name: ImageResult | None = None
            reading = True
            try:
                if not opened:
                    self._start()
                    self._call("open", unit, len(results), self._retry_failed)
                    opened = True
                name = self._call("advance")
                reading = False
                if name is None:
                    return self._call("commit", unit, results, self._retry_failed)
                results.append(self._call("finish"))
                strikes = 0
            except _Died as death:
                opened = False
                strikes += 1
                if strikes < STRIKES:
                    continue
                strikes = 0
                message = _MESSAGES[death.code].format(
                    limit=self._spec.read_options.image_timeout_s
                )
                error = ImageError(death.code, message)
                if reading:
                    return self._give_up(unit, results, error)
                if name is None:  # in the commit: no image is to blame, the unit stays undone
                    raise error from None
                results.append(replace(name, error=error))
            self._report(unit, results)

    def _give_up(self, unit: Unit, results: list[ImageResult], error: ImageError) -> PartCounts:
        """Commit a unit that kills whoever reads on: all that is left of it has failed."""
        if self._retry_failed:  # what is there stays
            raise error
        return self._spec.parts.commit(unit, [*results, *_rest(unit, len(results), error)])

    def _start(self) -> None:
        """A process with a model that works.

        Raises:
            _NoProcess: There is none to be had.
        """
        import ray

        if self._actor is not None:
            return
        pool = self._pool
        make = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, max_restarts=0)(ImageActor)
        for attempt in range(STARTS):
            self._actor = make.remote(self._spec)
            try:
                ray.get(self._actor.ready.remote())
                return
            except ray.exceptions.RayError as error:
                self._end()
                if attempt + 1 == STARTS:
                    raise _NoProcess(
                        "a process that only segments a plain grey image dies, too: the machine "
                        f"or the model is at fault, not an image ({describe_error(error)})"
                    ) from None

    def _call(self, method: str, *args: Any) -> Any:
        """A method of the process.

        Raises:
            _Died: It is gone, or was ended because it did not come back.
        """
        import ray

        errors = ray.exceptions
        gone = (errors.RayActorError, errors.NodeDiedError, errors.WorkerCrashedError)
        reading = self._spec.read_options
        # decoding and the model may each take the limit
        patience = 2 * reading.image_timeout_s + (
            0 if method == "finish" else reading.read_timeout_s
        )
        began = time.monotonic()
        try:
            return ray.get(getattr(self._actor, method).remote(*args), timeout=patience)
        except errors.OutOfMemoryError:
            code = ErrorCode.OUT_OF_MEMORY
        except errors.GetTimeoutError:
            code = ErrorCode.TIMED_OUT
        except gone:
            slow = time.monotonic() - began >= reading.image_timeout_s
            code = ErrorCode.TIMED_OUT if slow else ErrorCode.CRASHED
        self._end()
        raise _Died(code)

    def _end(self) -> None:
        import ray

        if self._actor is not None:
            ray.kill(self._actor, no_restart=True)
        self._actor = None

    def _report(self, unit: Unit, results: list[ImageResult]) -> None:
        done = [result.instances for result in results if result.instances is not None]
        counts = (len(done), len(results) - len(done), sum(map(len, done)))
        self._progress.report.remote(unit.unit, *counts)


def _rest(unit: Unit, done: int, error: ImageError) -> list[ImageResult]:
    """A failed row for each image behind the first `done`; one for all where nobody knows them."""
    if unit.kind == "objects":
        left = [(m.image_id, m.uri, m.etag) for m in unit.members[done:]]
    else:
        count = 1 if unit.n_images is None else unit.n_images - done
        names = (f"{unit.shard}#{unit.start}-unread{done + i}" for i in range(count))
        left = [(name, unit.shard, unit.etag) for name in names]
    return [ImageResult(*names, error=error) for names in left]
