from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from segcore.errors import ErrorCode, ImageError
from segcore.instances import Instances
from segcore.models.base import ModelOptions
from segcore.sources import Sample
from segcore.worker.batching import Batcher, BatchRunner, ConcurrentBatches, DeviceLost
from segcore.worker.prefetch import PreparedSample
from segcore.worker.watchdog import Watchdog
from tests.support.fake_models import HUNGRY, RAISES, BrightModel


def _prepared(model: BrightModel, *firsts: tuple[int, int, int]) -> list:
    images = []
    for i, first in enumerate(firsts):
        image = np.zeros((8, 8 + i, 3), np.uint8)
        image[4:, 4:, 1] = 255
        image[0, 0] = first
        images.append(image)
    return [model.preprocess(image) for image in images]


GOOD = (0, 0, 0)


def test_one_bad_image_costs_only_itself():
    model = BrightModel(ModelOptions(batch_size=4))
    found = BatchRunner(model).run(_prepared(model, GOOD, RAISES, GOOD, GOOD))
    assert [isinstance(one, Instances) for one in found] == [True, False, True, True]
    assert isinstance(found[1], ImageError)
    assert found[1].code is ErrorCode.MODEL_ERROR
    assert found[1].message == "ValueError: cannot segment this image"
    assert [one.width for one in found if isinstance(one, Instances)] == [8, 10, 11]


def test_out_of_memory_halves_the_batch_for_good():
    model = BrightModel(ModelOptions(batch_size=8))
    runner = BatchRunner(model)
    limit = 2
    forward = model.forward

    def scarce(prepared):
        model.batches.append(len(prepared))
        if len(prepared) > limit:
            raise MemoryError
        return forward(prepared)

    model.forward = scarce  # type: ignore[method-assign]
    found = runner.run(_prepared(model, *[GOOD] * 8))
    assert len(found) == 8
    assert all(isinstance(one, Instances) for one in found)
    assert [one.width for one in found] == list(range(8, 16))
    assert runner.size == 2
    assert model.batches[:3] == [8, 4, 2]


def test_an_image_too_large_alone_becomes_its_error():
    model = BrightModel(ModelOptions(batch_size=4))
    found = BatchRunner(model).run(_prepared(model, GOOD, GOOD, HUNGRY, GOOD))
    assert [isinstance(one, Instances) for one in found] == [True, True, False, True]
    assert isinstance(found[2], ImageError)
    assert found[2].code is ErrorCode.OUT_OF_MEMORY


def test_a_lost_device_blames_no_image():
    model = BrightModel()

    def lost(prepared):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    model.forward = lost  # type: ignore[method-assign]
    with pytest.raises(DeviceLost):
        BatchRunner(model).run(_prepared(model, GOOD))


def test_a_model_that_loses_results_is_an_error():
    model = BrightModel()
    model.postprocess = lambda raw, prepared: []  # type: ignore[method-assign,assignment]
    found = BatchRunner(model).run(_prepared(model, GOOD, GOOD))
    assert [one.code for one in found if isinstance(one, ImageError)] == [
        ErrorCode.MODEL_ERROR,
        ErrorCode.MODEL_ERROR,
    ]


class Shaped(BrightModel):
    """Images of one width go together; remembers which threads were in `forward` at once."""

    def __init__(self, options: ModelOptions | None = None) -> None:
        super().__init__(options)
        self.inside = 0
        self.most = 0
        self.lock = threading.Lock()

    def batch_key(self, prepared):
        return prepared.image.shape[1]

    def forward(self, prepared):
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        assert len({self.batch_key(one) for one in prepared}) == 1
        time.sleep(0.02)
        try:
            return super().forward(prepared)
        finally:
            with self.lock:
                self.inside -= 1


def _lined(
    model: BrightModel, images, max_concurrent_batches: int
) -> tuple[dict[int, object], int]:
    found: dict[int, object] = {}
    most = 0

    def take(batch, outcomes):
        found.update(zip((place for place, _ in batch), outcomes, strict=True))

    sample = Sample("", "", "", b"")
    with Batcher(ConcurrentBatches(model, max_concurrent_batches, Watchdog(60)), take) as line:
        for place, image in enumerate(images):
            line.add(place, PreparedSample(sample, model.preprocess(image)))
            most = max(most, place + 1 - len(found))
    return found, most


@pytest.mark.parametrize("max_concurrent_batches", [1, 3])
def test_images_that_go_together_share_batches_and_none_is_lost(max_concurrent_batches):
    images = [np.zeros((8, 8 + i % 5, 3), np.uint8) for i in range(43)]
    images[7][0, 0] = RAISES
    model = Shaped(ModelOptions(batch_size=4))
    found, waiting = _lined(model, images, max_concurrent_batches)
    assert sorted(found) == list(range(43))
    assert isinstance(found.pop(7), ImageError)
    assert all(one.width == images[place].shape[1] for place, one in found.items())
    assert model.most <= max_concurrent_batches
    assert (model.most > 1) == (max_concurrent_batches > 1)
    assert waiting <= 4 * 4 + (max_concurrent_batches + 1) * 4  # bounded, whatever the mixture


def test_models_that_are_not_thread_safe_get_one_lane():
    model = Shaped(ModelOptions(batch_size=1))
    model.thread_safe = False
    _lined(model, [np.zeros((8, 8, 3), np.uint8)] * 6, 3)
    assert model.most == 1


def test_a_lost_device_ends_the_line():
    model = BrightModel(ModelOptions(batch_size=1))

    def lost(prepared):
        raise RuntimeError("CUDA error: device-side assert triggered")

    model.forward = lost  # type: ignore[method-assign]
    with pytest.raises(DeviceLost):
        _lined(model, [np.zeros((8, 8, 3), np.uint8)] * 20, 2)
