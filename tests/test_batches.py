from __future__ import annotations

import numpy as np
import pytest
from fake_models import HUNGRY, RAISES, BrightModel

from segcore.batches import BatchRunner, DeviceLost
from segcore.errors import ErrorCode, ImageError
from segcore.instances import Instances
from segcore.models.base import ModelOptions


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
