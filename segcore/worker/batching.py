"""Batches through the model, so that one bad image costs only itself."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from segcore.errors import ErrorCode, ImageError, describe_error
from segcore.instances import Instances
from segcore.models.base import Model
from segcore.models.torch_runtime import free_cached_device_memory
from segcore.worker.faults import model_failure
from segcore.worker.memory import is_out_of_memory
from segcore.worker.preprocessing import PreparedSample
from segcore.worker.result_checks import ResultChecks
from segcore.worker.watchdog import Watchdog

Batch = list[tuple[int, PreparedSample]]  # each image with its position in the unit
Outcomes = list[Instances | ImageError]  # one for each image of a batch, in order

_MAX_WAITING_BATCHES = 4
_OUT_OF_MEMORY_MESSAGE = "memory ran out for this image alone"


class DeviceLost(Exception):
    """The accelerator is in a state that only a new process leaves; no image is to blame."""


class BatchRunner:
    """Runs prepared images through a model, whatever a batch does.

    When memory runs out the batch size is halved, for good. When the model raises, the images of
    the batch are tried one by one, and the one that raises again gets the error. A result that is
    wrong is an error of its image.

    Attributes:
        batch_size: Images that go into the model together, at most.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._checks = ResultChecks(model)
        self.batch_size = max(1, model.batch_size)

    def run(self, prepared: Sequence[Any]) -> Outcomes:
        """One outcome for each prepared image, in order.

        Raises:
            DeviceLost: The process must be replaced.
        """
        outcomes: Outcomes = []
        start = 0
        while start < len(prepared):
            batch = prepared[start : start + self.batch_size]
            outcomes += self._run_batch(batch)
            start += len(batch)
        return outcomes

    def _run_batch(self, batch: Sequence[Any]) -> Outcomes:
        network_ended = False
        try:
            raw = self._model.forward(batch)
            network_ended = True
            detections = list(self._model.postprocess(raw, batch))
            if len(detections) != len(batch):
                raise ValueError(f"model gave {len(detections)} results for {len(batch)} images")
            return [self._checks.checked(result) for result in detections]
        except Exception as error:
            # Not the exception itself: its traceback would keep the batch's tensors.
            failure = _describe_failure(error, self._model, network_ended)
        if len(batch) == 1:
            free_cached_device_memory()
            if failure.code is ErrorCode.OUT_OF_MEMORY:  # this image is to blame, not the size
                self.batch_size = max(1, self._model.batch_size)
            return [failure]
        if failure.code is ErrorCode.OUT_OF_MEMORY:
            free_cached_device_memory()
            self.batch_size = max(1, min(self.batch_size, len(batch)) // 2)
            return self.run(batch)
        return [outcome for image in batch for outcome in self._run_batch([image])]


class ConcurrentBatches:
    """Runs batches of any units in one model, no more at once than it may have.

    More than one at once only for models that are `thread_safe`: while one batch is in the
    network, the masks of another one are made.

    Attributes:
        max_batches: Most batches in the model at once.
        batch_key: The model's `batch_key`; where it has none, all images may share batches.
        runner: What runs each batch.
    """

    def __init__(self, model: Model, max_batches: int, watchdog: Watchdog) -> None:
        self.max_batches = max_batches if getattr(model, "thread_safe", False) else 1
        self.batch_key: Callable[[Any], Hashable] = getattr(
            model, "batch_key", lambda prepared: None
        )
        self.runner = BatchRunner(model)
        self._watchdog = watchdog
        self._free_slots = threading.Semaphore(self.max_batches)

    @property
    def prefetch_images(self) -> int:
        """Images that must be read ahead so that the model never waits for reading."""
        return (self.max_batches + 1) * self.runner.batch_size

    def run(self, batch: Batch) -> Outcomes:
        """Wait until the model may take another batch, and return the outcomes of this one.

        Raises:
            DeviceLost: See `BatchRunner`.
        """
        with self._free_slots, self._watchdog.guard(len(batch)):
            return self.runner.run([image.value for _, image in batch])


class Batcher:
    """Collects the prepared images of a unit into batches of like ones and runs these.

    Images wait until a batch of those with the same `Model.batch_key` is full, but no more than
    `_MAX_WAITING_BATCHES` batches wait in all. Outcomes are delivered in the order in which their
    batches were started. Used as a context manager: a normal exit runs all that still wait, an
    exception drops them.

    Args:
        deliver: Gets each batch with its outcomes, in the thread that calls `add` or leaves the
            block.
    """

    def __init__(
        self, concurrent_batches: ConcurrentBatches, deliver: Callable[[Batch, Outcomes], None]
    ) -> None:
        self._batch_key = concurrent_batches.batch_key
        self._runner = concurrent_batches.runner
        self._run = concurrent_batches.run
        self._deliver = deliver
        self._max_running = concurrent_batches.max_batches
        self._pool = (
            ThreadPoolExecutor(self._max_running, "forward") if self._max_running > 1 else None
        )
        self._waiting: dict[Hashable, Batch] = {}
        self._running: deque[tuple[Batch, Future[Outcomes]]] = deque()

    def add(self, position: int, image: PreparedSample) -> None:
        """Add an image; `deliver` may be called for earlier ones.

        Raises:
            DeviceLost: See `BatchRunner`.
        """
        key = self._batch_key(image.value)
        self._waiting.setdefault(key, []).append((position, image))
        batch_size = self._runner.batch_size
        if len(self._waiting[key]) >= batch_size:
            self._start(key)
        elif sum(map(len, self._waiting.values())) >= _MAX_WAITING_BATCHES * batch_size:
            self._start(max(self._waiting, key=lambda name: len(self._waiting[name])))

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        try:
            if kind is None:
                for key in list(self._waiting):
                    self._start(key)
                while self._running:
                    self._deliver_oldest()
        finally:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)

    def _start(self, key: Hashable) -> None:
        """Start the waiting batch of `key`."""
        batch = self._waiting.pop(key)
        if self._pool is None:
            self._deliver(batch, self._run(batch))
            return
        self._running.append((batch, self._pool.submit(self._run, batch)))
        if len(self._running) > self._max_running:
            self._deliver_oldest()

    def _deliver_oldest(self) -> None:
        """Wait for the batch that was started first, and deliver its outcomes."""
        batch, outcomes = self._running.popleft()
        self._deliver(batch, outcomes.result())


def _describe_failure(error: Exception, model: Model, network_ended: bool) -> ImageError:
    """What an exception of the model means for its batch.

    Args:
        network_ended: What comes after the network raised it.

    Raises:
        DeviceLost: The exception says so.
    """
    if is_out_of_memory(error):
        return ImageError(ErrorCode.OUT_OF_MEMORY, _OUT_OF_MEMORY_MESSAGE)
    text = str(error)
    if "CUDA error" in text or "device-side assert" in text:
        raise DeviceLost(describe_error(error))
    return model_failure(model, error, in_network=not network_ended)
