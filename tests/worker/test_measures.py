"""What a worker measures of itself, against what a model and a clock of the test did."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcore.models.base import ModelOptions
from segcore.worker import measures
from segcore.worker.batching import ConcurrentBatches
from segcore.worker.measures import MEASURES, Measures
from segcore.worker.watchdog import Watchdog
from tests.support.fake_models import BrightModel


class _Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@given(st.lists(st.tuples(st.sampled_from("abx"), st.integers(0, 9)), max_size=30))
def test_seconds_of_stages_add_up_and_are_taken_once(steps: list[tuple[str, int]]) -> None:
    clock, collected, expected = _Clock(), Measures(), dict[str, float]()
    taken: dict[Any, float] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "time", clock)
        for stage, seconds in steps:
            if stage == "x":
                for key, value in collected.take().items():
                    taken[key] = taken.get(key, 0.0) + value
                continue
            with collected.stage(stage):
                clock.now += seconds
            expected[stage] = expected.get(stage, 0.0) + seconds
        for key, value in collected.take().items():
            taken[key] = taken.get(key, 0.0) + value
    assert {key[1]: value for key, value in taken.items()} == pytest.approx(expected)
    assert collected.take() == {}


@given(st.lists(st.sampled_from(["begin", "end", "wait", "take"]), max_size=40))
def test_the_model_is_busy_while_it_has_a_batch(steps: list[str]) -> None:
    """Batches overlap; the union of their times counts, whenever it is taken."""
    clock, collected = _Clock(), Measures()
    running: list[Any] = []
    busy = expected = 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "time", clock)
        for step in [*steps, *["end"] * 40]:
            if step == "begin":
                running.append(collected.in_model(3, 4))
                running[-1].__enter__()
            elif step == "end" and running:
                running.pop(0).__exit__(None, None, None)
            elif step == "wait":
                clock.now += 1
                expected += bool(running)
            elif step == "take":
                busy += collected.take().get(("segcore_model_busy_seconds_total", ""), 0.0)
    busy += collected.take().get(("segcore_model_busy_seconds_total", ""), 0.0)
    assert busy == expected


def test_batches_are_counted_with_the_room_they_had() -> None:
    MEASURES.take()
    model = BrightModel(ModelOptions(batch_size=4))
    batches = ConcurrentBatches(model, 2, Watchdog(60))

    class _Image:
        value = model.preprocess(__import__("numpy").zeros((8, 8, 3), "uint8"))

    threads = [
        threading.Thread(target=batches.run, args=([(0, _Image())] * size,)) for size in (4, 3, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = MEASURES.take()
    assert taken["segcore_batches_total", ""] == 3
    assert taken["segcore_batch_images_total", ""] == 8
    assert taken["segcore_batch_slots_total", ""] == 12
    for stage in ("network", "masks"):
        assert taken["segcore_stage_seconds_total", stage] >= 0
    assert ("segcore_wait_seconds_total", "model") in taken
