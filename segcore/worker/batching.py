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
from segcore.worker.prefetch import PreparedSample, is_out_of_memory
from segcore.worker.watchdog import Watchdog

_MAX_WAITING_BATCHES = 4
OUT_OF_MEMORY_ALONE = "memory ran out for this image alone"


class DeviceLost(Exception):
    """The accelerator is in a state that only a new process leaves; no image is to blame."""


class BatchRunner:
    """Runs prepared images through a model and survives what a batch can do.

    When memory runs out the batch is halved, for good. When the model raises, its images are
    tried one by one, and the one that raises again gets the error.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self.size = max(1, model.batch_size)

    def run(self, prepared: Sequence[Any]) -> list[Instances | ImageError]:
        """One result for each prepared image, in order.

        Raises:
            DeviceLost: The process must be replaced.
        """
        results: list[Instances | ImageError] = []
        start = 0
        while start < len(prepared):
            batch = prepared[start : start + self.size]
            results += self._batch(batch)
            start += len(batch)
        return results

    def _batch(self, batch: Sequence[Any]) -> list[Instances | ImageError]:
        error = None
        try:
            raw = self._model.forward(batch)
            found = list(self._model.postprocess(raw, batch))
            if len(found) != len(batch):
                raise ValueError(f"model gave {len(found)} results for {len(batch)} images")
            return list(found)
        except Exception as caught:
            error = caught.with_traceback(None)  # the traceback would keep the batch's tensors
        if error is not None:
            code, message = _judge(error)
        del error
        if len(batch) == 1:
            _free()
            if code is ErrorCode.OUT_OF_MEMORY:  # this image is to blame, not the batch size
                self.size = max(1, self._model.batch_size)
            return [ImageError(code, message)]
        if code is ErrorCode.OUT_OF_MEMORY:
            _free()
            self.size = max(1, min(self.size, len(batch)) // 2)
            return self.run(batch)
        return [result for one in batch for result in self._batch([one])]


Batch = list[tuple[int, PreparedSample]]
Outcomes = list[Instances | ImageError]


class ConcurrentBatches:
    """How many batches may be in a model at once, whichever units they come from.

    More than one only for models that are `thread_safe`: while one batch is in the network, another
    one can be in its masks.
    """

    def __init__(self, model: Model, count: int, watchdog: Watchdog) -> None:
        self.count = count if getattr(model, "thread_safe", False) else 1
        self.key: Callable[[Any], Hashable] = getattr(model, "batch_key", lambda prepared: None)
        self.runner = BatchRunner(model)
        self._watchdog = watchdog
        self._free = threading.Semaphore(self.count)

    @property
    def prefetch_images(self) -> int:
        """Images that reading may be ahead, so that no lane waits for it."""
        return (self.count + 1) * self.runner.size

    def run(self, batch: Batch) -> Outcomes:
        """Results of a batch, once there is a lane for it.

        Raises:
            DeviceLost: See `BatchRunner`.
        """
        with self._free, self._watchdog.working(len(batch)):
            return self.runner.run([image.value for _, image in batch])


class Batcher:
    """Prepared images on their way through the model: alike ones together, some batches at once.

    Images wait until a batch of those with the same `Model.batch_key` is full, and no longer than
    `_MAX_WAITING_BATCHES` batches in all. Results come in the order in which batches were started.

    Args:
        take: Gets each batch (place and image) with its results, in the caller's thread.
    """

    def __init__(
        self, max_concurrent_batches: ConcurrentBatches, take: Callable[[Batch, Outcomes], None]
    ) -> None:
        self._key = max_concurrent_batches.key
        self._runner = max_concurrent_batches.runner
        self._run = max_concurrent_batches.run
        self._take = take
        self._lanes = max_concurrent_batches.count
        self._pool = ThreadPoolExecutor(self._lanes, "forward") if self._lanes > 1 else None
        self._waiting: dict[Hashable, Batch] = {}
        self._running: deque[tuple[Batch, Future[Outcomes]]] = deque()

    def add(self, place: int, image: PreparedSample) -> None:
        """Put an image in line; `take` may be called.

        Raises:
            DeviceLost: See `BatchRunner`.
        """
        key = self._key(image.value)
        self._waiting.setdefault(key, []).append((place, image))
        if len(self._waiting[key]) >= self._runner.size:
            self._start(key)
        elif sum(map(len, self._waiting.values())) >= _MAX_WAITING_BATCHES * self._runner.size:
            self._start(max(self._waiting, key=lambda name: len(self._waiting[name])))

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        """Let all that wait go through; after an error, drop it."""
        try:
            if kind is None:
                for key in list(self._waiting):
                    self._start(key)
                while self._running:
                    self._collect()
        finally:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)

    def _start(self, key: Hashable) -> None:
        batch = self._waiting.pop(key)
        if self._pool is None:
            self._take(batch, self._run(batch))
            return
        self._running.append((batch, self._pool.submit(self._run, batch)))
        if len(self._running) > self._lanes:
            self._collect()

    def _collect(self) -> None:
        batch, outcomes = self._running.popleft()
        self._take(batch, outcomes.result())


def _judge(error: Exception) -> tuple[ErrorCode, str]:
    """What an exception of the model means for its batch."""
    text = str(error)
    if is_out_of_memory(error):
        return ErrorCode.OUT_OF_MEMORY, OUT_OF_MEMORY_ALONE
    if "CUDA error" in text or "device-side assert" in text:
        raise DeviceLost(describe_error(error))
    return ErrorCode.MODEL_ERROR, describe_error(error)


def _free() -> None:
    """Give cached blocks back to the device, where there is one."""
    import gc

    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
