"""Batches through the model, so that one bad image costs only itself."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from segcore.errors import ErrorCode, ImageError, describe_error
from segcore.instances import Instances
from segcore.models.base import Model
from segcore.models.torch_runtime import free_cached_device_memory
from segcore.worker.faults import model_failure
from segcore.worker.measures import MEASURES
from segcore.worker.memory import is_out_of_memory
from segcore.worker.preprocessing import PreparedSample
from segcore.worker.result_checks import ResultChecks
from segcore.worker.watchdog import Watchdog

Batch = list[tuple[int, PreparedSample]]  # each image with its position in the unit
Outcomes = list[Instances | ImageError]  # one for each image of a batch, in order

_OUT_OF_MEMORY_MESSAGE = "memory ran out for this image alone"
_PAUSES_S = (0.5, 2.0, 5.0)  # in which other processes may give memory of a GPU back
# After these each call in this process fails: CUDA's errors stay, as do those of its libraries.
_DEVICE_ERROR = re.compile(
    r"CUDA (driver )?error|device-side assert|CUDNN_STATUS_|CUBLAS_STATUS_|CUSPARSE_STATUS_|"
    r"NVML_SUCCESS|NCCL error",
)


class DeviceLost(Exception):
    """The accelerator is in a state that only a new process leaves; no image is to blame."""


class BatchRunner:
    """Runs prepared images through a model, whatever a batch does.

    When memory runs out the batch size is halved, for good, that of the model too: a network that
    always gets full batches needs less memory only then. On a GPU other processes may have taken
    it and may give it back, so there the batch is first tried again, after pauses. When the model
    raises, the images of the batch are tried one by one, and the one that raises again gets the
    error. A result that is wrong is an error of its image.

    Attributes:
        batch_size: Images that go into the model together, at most.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._checks = ResultChecks(model)
        self._full_batch_size = self.batch_size = max(1, model.batch_size)
        self._lock = threading.Lock()

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
        size_before = self.batch_size
        result = self._try_batch(batch)
        for pause_s in _PAUSES_S:
            if isinstance(result, list) or not result.of_device_memory:
                break
            free_cached_device_memory()
            MEASURES.add("segcore_retries_total", 1, "batch")
            time.sleep(pause_s)
            result = self._try_batch(batch)
        if isinstance(result, list):
            return result
        free_cached_device_memory()
        if len(batch) > 1:
            MEASURES.add("segcore_retries_total", 1, "batch")
        if result.error.code is ErrorCode.OUT_OF_MEMORY:
            if size_before > 1:
                self._set_batch_size(min(self.batch_size, size_before // 2))
                return self.run(batch)
            self._set_batch_size(self._full_batch_size)  # the image is to blame, not the size
        if len(batch) == 1:
            return [result.error]
        return [outcome for image in batch for outcome in self._run_batch([image])]

    def _try_batch(self, batch: Sequence[Any]) -> Outcomes | _Failure:
        """Raises DeviceLost."""
        network_ended = False
        try:
            with MEASURES.stage("network"):
                raw = self._model.forward(batch)
            network_ended = True
            with MEASURES.stage("masks"):
                detections = list(self._model.postprocess(raw, batch))
            if len(detections) != len(batch):
                raise ValueError(f"model gave {len(detections)} results for {len(batch)} images")
            return [self._checks.checked(result) for result in detections]
        except Exception as error:
            # Not the exception itself: its traceback would keep the batch's tensors.
            return classify_error(error, self._model, in_network=not network_ended)

    def _set_batch_size(self, size: int) -> None:
        with self._lock:
            self.batch_size = size
            with contextlib.suppress(AttributeError):  # a model of the user may not allow it
                self._model.batch_size = size


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
        with MEASURES.wait("model"):
            self._free_slots.acquire()
        try:
            with (
                MEASURES.in_model(len(batch), self.runner.batch_size),
                self._watchdog.guard(len(batch)),
            ):
                return self.runner.run([image.value for _, image in batch])
        finally:
            self._free_slots.release()


@dataclass(frozen=True)
class _Failure:
    """What an exception of the model means for its batch.

    Attributes:
        of_device_memory: It was the memory of a GPU that ran out.
    """

    error: ImageError
    of_device_memory: bool = False


def classify_error(error: Exception, model: Model, *, in_network: bool) -> _Failure:
    """What an exception of the model means for its batch.

    Args:
        in_network: The network raised it, not what comes after.

    Raises:
        DeviceLost: The exception says so.
    """
    if is_out_of_memory(error):
        out_of_memory = ImageError(ErrorCode.OUT_OF_MEMORY, _OUT_OF_MEMORY_MESSAGE)
        return _Failure(out_of_memory, type(error).__name__ == "OutOfMemoryError")
    if type(error).__name__ == "AcceleratorError" or _DEVICE_ERROR.search(str(error)):
        raise DeviceLost(describe_error(error))
    return _Failure(model_failure(model, error, in_network=in_network))
