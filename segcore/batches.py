"""Batches through the model, so that one bad image costs only itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segcore.errors import ErrorCode, ImageError
from segcore.instances import Instances
from segcore.models.base import Model
from segcore.readahead import is_out_of_memory, sentence

ALONE = "memory ran out for this image alone"


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


def _judge(error: Exception) -> tuple[ErrorCode, str]:
    """What an exception of the model means for its batch."""
    text = str(error)
    if is_out_of_memory(error):
        return ErrorCode.OUT_OF_MEMORY, ALONE
    if "CUDA error" in text or "device-side assert" in text:
        raise DeviceLost(sentence(error))
    return ErrorCode.MODEL_ERROR, sentence(error)


def _free() -> None:
    """Give cached blocks back to the device, where there is one."""
    import gc

    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
