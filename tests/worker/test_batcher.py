"""Units in progress share batches; none waits for another for long, and none takes another down."""

from __future__ import annotations

import threading
import time
from collections import Counter

import numpy as np
import pytest

from segcore.models.base import ModelOptions
from segcore.sources import Sample
from segcore.worker import batcher as batcher_module
from segcore.worker.batcher import Batcher, BatchQueue
from segcore.worker.batching import ConcurrentBatches, DeviceLost
from segcore.worker.preprocessing import PreparedSample
from segcore.worker.watchdog import Watchdog
from tests.support.fake_models import BrightModel

SAMPLE = Sample("", "", "", b"")


class WidthModel(BrightModel):
    """Batches images of one width, and notes the widths and size of each."""

    def __init__(self, options: ModelOptions | None = None) -> None:
        super().__init__(options)
        self.seen: list[tuple[int, int]] = []

    def batch_key(self, prepared):
        return prepared.image.shape[1]

    def forward(self, prepared):
        (width,) = {self.batch_key(image) for image in prepared}
        self.seen.append((width, len(prepared)))
        return super().forward(prepared)


class Unit:
    """A unit whose images have these widths, in a thread of its own."""

    def __init__(self, queue: BatchQueue, model: BrightModel, widths: list[int]) -> None:
        self.widths: dict[int, int] = {}
        self.error: BaseException | None = None
        self.may_end = threading.Event()
        self._queue, self._model, self._todo = queue, model, widths
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        def deliver(batch, outcomes):
            for (position, _), outcome in zip(batch, outcomes, strict=True):
                assert position not in self.widths
                self.widths[position] = outcome.width

        try:
            with Batcher(self._queue, deliver) as batcher:
                for position, width in enumerate(self._todo):
                    image = self._model.preprocess(np.zeros((8, width, 3), np.uint8))
                    batcher.add(position, PreparedSample(SAMPLE, image))
                self.may_end.wait(10)
        except BaseException as error:
            self.error = error


def make_queue(model: BrightModel, max_batches: int = 2) -> BatchQueue:
    return BatchQueue(ConcurrentBatches(model, max_batches, Watchdog(60)))


def end(*units: Unit) -> None:
    for unit in units:
        unit.may_end.set()
    for unit in units:
        unit.thread.join(20)
        assert not unit.thread.is_alive()


@pytest.mark.parametrize("max_batches", [1, 2])
def test_units_fill_batches_together(max_batches: int) -> None:
    model = WidthModel(ModelOptions(batch_size=4))
    queue = make_queue(model, max_batches)
    first = Unit(queue, model, [8, 9, 8, 9, 9])
    while queue._n_added < 5:
        time.sleep(0.001)
    second = Unit(queue, model, [9, 8, 8, 10])
    while queue._n_added < 9:
        time.sleep(0.001)
    end(first, second)
    assert [first.widths[i] for i in range(5)] == [8, 9, 8, 9, 9]
    assert [second.widths[i] for i in range(4)] == [9, 8, 8, 10]
    assert Counter(model.seen) == Counter([(8, 4), (9, 4), (10, 1)])


@pytest.mark.parametrize("seed", range(6))
def test_each_unit_gets_its_own_images_whatever_the_mixture(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = WidthModel(ModelOptions(batch_size=int(rng.integers(1, 6))))
    queue = make_queue(model, int(rng.integers(1, 4)))
    todo = [rng.integers(8, 14, rng.integers(0, 60)).tolist() for _ in range(4)]
    units = [Unit(queue, model, widths) for widths in todo]
    end(*units)
    for unit, widths in zip(units, todo, strict=True):
        assert unit.error is None
        assert [unit.widths[i] for i in range(len(widths))] == widths
    assert sum(size for _, size in model.seen) == sum(map(len, todo))
    assert not queue._waiting


def test_a_unit_at_its_end_does_not_wait_long_for_one_that_stands_still(monkeypatch) -> None:
    monkeypatch.setattr(batcher_module, "_PATIENCE_S", 0.05)
    model = WidthModel(ModelOptions(batch_size=4))
    queue = make_queue(model)
    slow = Unit(queue, model, [8])
    while queue._n_added < 1:
        time.sleep(0.001)
    quick = Unit(queue, model, [9, 8])
    end(quick)
    assert quick.widths == {0: 9, 1: 8}
    assert model.seen[-1] == (8, 2) or model.seen[0] == (8, 2)  # the slow unit's image went along
    end(slow)
    assert slow.widths == {0: 8}


def test_an_error_of_one_unit_leaves_the_images_of_others() -> None:
    model = WidthModel(ModelOptions(batch_size=4))
    queue = make_queue(model)
    other = Unit(queue, model, [8, 8])
    while queue._n_added < 2:
        time.sleep(0.001)
    failing = Batcher(queue, lambda batch, outcomes: None).__enter__()
    failing.add(0, PreparedSample(SAMPLE, model.preprocess(np.zeros((8, 8, 3), np.uint8))))
    failing.__exit__(OSError, OSError("gone"))
    end(other)
    assert other.widths == {0: 8, 1: 8}
    assert model.seen == [(8, 2)]


def test_a_lost_device_reaches_every_unit_with_images_in_the_batch() -> None:
    model = WidthModel(ModelOptions(batch_size=4))

    def forward(prepared):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    model.forward = forward  # type: ignore[method-assign]
    queue = make_queue(model)
    units = [Unit(queue, model, [8, 8]), Unit(queue, model, [8, 8])]
    end(*units)
    assert [type(unit.error) for unit in units] == [DeviceLost] * 2
