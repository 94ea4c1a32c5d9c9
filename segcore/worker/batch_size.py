"""The batches that fit into the memory of a GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from segcore.errors import ClusterError, ErrorCode
from segcore.models.base import Model
from segcore.models.torch_runtime import free_cached_device_memory
from segcore.worker.batching import classify_error

_GREY = 114
_DEFAULT_SIDE = 1024  # pixels


def fit_batch_size(model: Model, max_batches: int) -> None:
    """Halve the model's `batch_size` until full batches of the largest canvas fit into memory.

    So the size is found once, when a worker starts, rather than by the images that come: with
    another size the last bits of the results may differ.

    Args:
        max_batches: Batches in the model at once, where it is `thread_safe`.

    Raises:
        ClusterError: Not even a batch of one image fits.
        DeviceLost: The device does not work.
    """
    max_batches = max_batches if getattr(model, "thread_safe", False) else 1
    side = model.info.parameters.get("imgsz")
    side = side if isinstance(side, int) else _DEFAULT_SIDE
    prepared = model.preprocess(np.full((side, side, 3), _GREY, np.uint8))
    while not _fits(model, prepared, max_batches):
        free_cached_device_memory()
        if model.batch_size == 1:
            raise ClusterError(
                f"The GPU has too little free memory for a single image of {side} x {side} pixels.",
                hint="Use fewer workers on each GPU (ray.gpus_per_actor), a smaller model or a "
                "smaller model.imgsz, or end what else uses the GPU.",
            )
        smaller = model.batch_size // 2
        try:
            model.batch_size = smaller
        except AttributeError:  # a model of the user that does not allow it
            return
    free_cached_device_memory()


def _fits(model: Model, prepared: Any, max_batches: int) -> bool:
    """Whether so many batches at once run without running out of memory.

    Raises:
        DeviceLost: See `classify_error`.
    """
    batch = [prepared] * model.batch_size

    def run(_: int) -> bool:
        try:
            model.postprocess(model.forward(batch), batch)
        except Exception as error:  # any other will meet the images, and is reported with them
            failure = classify_error(error, model, in_network=True)
            return failure.error.code is not ErrorCode.OUT_OF_MEMORY
        return True

    with ThreadPoolExecutor(max_batches) as pool:
        return all(list(pool.map(run, range(max_batches))))
