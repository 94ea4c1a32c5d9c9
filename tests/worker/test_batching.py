from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from segcore.errors import ErrorCode, ImageError
from segcore.instances import Instances
from segcore.models.base import ModelOptions
from segcore.sources import Sample
from segcore.worker import batching
from segcore.worker.batcher import Batcher, BatchQueue
from segcore.worker.batching import BatchRunner, ConcurrentBatches, DeviceLost
from segcore.worker.preprocessing import PreparedSample
from segcore.worker.watchdog import Watchdog
from tests.support.fake_models import HUNGRY, RAISES, BrightModel

GOOD = (0, 0, 0)


def _prepare(model: BrightModel, *first_pixels: tuple[int, int, int]) -> list:
    """Prepared images that are 8, 9, 10, ... pixels wide."""
    images = []
    for i, first_pixel in enumerate(first_pixels):
        image = np.zeros((8, 8 + i, 3), np.uint8)
        image[4:, 4:, 1] = 255
        image[0, 0] = first_pixel
        images.append(image)
    return [model.preprocess(image) for image in images]


@pytest.mark.slow
def test_one_bad_image_costs_only_itself():
    model = BrightModel(ModelOptions(batch_size=4))
    outcomes = BatchRunner(model).run(_prepare(model, GOOD, RAISES, GOOD, GOOD))
    assert [isinstance(outcome, Instances) for outcome in outcomes] == [True, False, True, True]
    assert isinstance(outcomes[1], ImageError)
    assert outcomes[1].code is ErrorCode.MODEL_ERROR
    assert outcomes[1].message == "ValueError: cannot segment this image"
    assert [outcome.width for outcome in outcomes if isinstance(outcome, Instances)] == [8, 10, 11]


@pytest.mark.slow
def test_out_of_memory_halves_the_batch_size_for_good():
    model = BrightModel(ModelOptions(batch_size=8))
    runner = BatchRunner(model)
    max_images = 2
    forward = model.forward

    def forward_few(prepared):
        model.batches.append(len(prepared))
        if len(prepared) > max_images:
            raise MemoryError
        return forward(prepared)

    model.forward = forward_few  # type: ignore[method-assign]
    outcomes = runner.run(_prepare(model, *[GOOD] * 8))
    assert len(outcomes) == 8
    assert all(isinstance(outcome, Instances) for outcome in outcomes)
    assert [outcome.width for outcome in outcomes] == list(range(8, 16))
    assert runner.batch_size == 2
    assert model.batches[:3] == [8, 4, 2]


@pytest.mark.slow
def test_an_image_that_needs_too_much_memory_alone_fails_alone():
    model = BrightModel(ModelOptions(batch_size=4))
    outcomes = BatchRunner(model).run(_prepare(model, GOOD, GOOD, HUNGRY, GOOD))
    assert [isinstance(outcome, Instances) for outcome in outcomes] == [True, True, False, True]
    assert isinstance(outcomes[2], ImageError)
    assert outcomes[2].code is ErrorCode.OUT_OF_MEMORY
    assert outcomes[2].message == "memory ran out for this image alone"


class FullBatches(BrightModel):
    """Takes memory for `batch_size` images however few it gets, as a network with fixed shapes."""

    fits = 3

    def forward(self, prepared):
        self.batches.append(self.batch_size)
        if self.batch_size > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(prepared)


@pytest.mark.parametrize("n_images", [1, 2, 8])
def test_a_network_that_always_gets_full_batches_gets_smaller_ones(n_images, monkeypatch):
    monkeypatch.setattr(batching, "_PAUSES_S", ())
    model = FullBatches(ModelOptions(batch_size=16))
    outcomes = BatchRunner(model).run(_prepare(model, *[GOOD] * n_images))
    assert [outcome.width for outcome in outcomes if isinstance(outcome, Instances)] == list(
        range(8, 8 + n_images)
    )
    assert model.batch_size == 2


def test_memory_that_others_give_back_is_waited_for(monkeypatch):
    monkeypatch.setattr(batching, "_PAUSES_S", (0.0, 0.0, 0.0))
    model = FullBatches(ModelOptions(batch_size=4))
    monkeypatch.setattr(time, "sleep", lambda seconds: setattr(model, "fits", model.fits + 1))
    outcomes = BatchRunner(model).run(_prepare(model, *[GOOD] * 4))
    assert all(isinstance(outcome, Instances) for outcome in outcomes)
    assert model.batch_size == 4  # another size might give other bits


def test_an_image_that_fills_the_gpu_alone_leaves_the_batches_as_they_were(monkeypatch):
    monkeypatch.setattr(batching, "_PAUSES_S", ())
    model = FullBatches(ModelOptions(batch_size=4))
    model.fits = 0
    (outcome,) = BatchRunner(model).run(_prepare(model, GOOD))
    assert isinstance(outcome, ImageError)
    assert outcome.code is ErrorCode.OUT_OF_MEMORY
    assert model.batch_size == 4


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: device-side assert triggered",
        "CUDA driver error: unknown error",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`",
        "CUDA error: uncorrectable ECC error encountered",
    ],
)
def test_a_lost_device_blames_no_image(message):
    model = BrightModel()

    def forward(prepared):
        raise RuntimeError(message)

    model.forward = forward  # type: ignore[method-assign]
    with pytest.raises(DeviceLost):
        BatchRunner(model).run(_prepare(model, GOOD))


@pytest.mark.slow
def test_a_model_that_loses_results_is_an_error():
    model = BrightModel()
    model.postprocess = lambda raw, prepared: []  # type: ignore[method-assign,assignment]
    outcomes = BatchRunner(model).run(_prepare(model, GOOD, GOOD))
    assert [outcome.code for outcome in outcomes if isinstance(outcome, ImageError)] == [
        ErrorCode.MODEL_ERROR,
        ErrorCode.MODEL_ERROR,
    ]


class WidthModel(BrightModel):
    """Batches images of one width; counts how many threads are in `forward` at once."""

    def __init__(self, options: ModelOptions | None = None) -> None:
        super().__init__(options)
        self.lock = threading.Lock()
        self.threads_inside = 0
        self.max_threads_inside = 0

    def batch_key(self, prepared):
        return prepared.image.shape[1]

    def forward(self, prepared):
        with self.lock:
            self.threads_inside += 1
            self.max_threads_inside = max(self.max_threads_inside, self.threads_inside)
        assert len({self.batch_key(image) for image in prepared}) == 1
        time.sleep(0.02)
        try:
            return super().forward(prepared)
        finally:
            with self.lock:
                self.threads_inside -= 1


def _run_batcher(
    model: BrightModel, images, max_concurrent_batches: int
) -> tuple[dict[int, object], int]:
    """Outcomes by position, and the most images that were without an outcome at once."""
    outcomes_by_position: dict[int, object] = {}
    max_pending = 0

    def deliver(batch, outcomes):
        positions = (position for position, _ in batch)
        outcomes_by_position.update(zip(positions, outcomes, strict=True))

    sample = Sample("", "", "", b"")
    concurrent_batches = ConcurrentBatches(model, max_concurrent_batches, Watchdog(60))
    with Batcher(BatchQueue(concurrent_batches), deliver) as batcher:
        for position, image in enumerate(images):
            batcher.add(position, PreparedSample(sample, model.preprocess(image)))
            max_pending = max(max_pending, position + 1 - len(outcomes_by_position))
    return outcomes_by_position, max_pending


@pytest.mark.slow
@pytest.mark.parametrize("max_concurrent_batches", [1, 3])
def test_images_of_one_key_share_batches_and_none_is_lost(max_concurrent_batches):
    images = [np.zeros((8, 8 + i % 5, 3), np.uint8) for i in range(43)]
    images[7][0, 0] = RAISES
    model = WidthModel(ModelOptions(batch_size=4))
    outcomes, max_pending = _run_batcher(model, images, max_concurrent_batches)
    assert sorted(outcomes) == list(range(43))
    assert isinstance(outcomes.pop(7), ImageError)
    assert all(outcome.width == images[position].shape[1] for position, outcome in outcomes.items())
    assert model.max_threads_inside <= max_concurrent_batches
    assert (model.max_threads_inside > 1) == (max_concurrent_batches > 1)
    # Bounded, whatever the mixture of widths.
    assert max_pending <= 4 * 4 + (max_concurrent_batches + 1) * 4


def test_models_that_are_not_thread_safe_get_one_batch_at_a_time():
    model = WidthModel(ModelOptions(batch_size=1))
    model.thread_safe = False
    _run_batcher(model, [np.zeros((8, 8, 3), np.uint8)] * 6, 3)
    assert model.max_threads_inside == 1


def test_a_lost_device_ends_the_batcher():
    model = BrightModel(ModelOptions(batch_size=1))

    def forward(prepared):
        raise RuntimeError("CUDA error: device-side assert triggered")

    model.forward = forward  # type: ignore[method-assign]
    with pytest.raises(DeviceLost):
        _run_batcher(model, [np.zeros((8, 8, 3), np.uint8)] * 20, 2)
