"""Results of a user's model are checked when they arrive: a wrong one fails its image alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from segcore import masks
from segcore.errors import ErrorCode, ImageError
from segcore.instances import Instances
from segcore.worker.batching import BatchRunner
from segcore.worker.result_checks import ResultChecks
from tests.support.fake_models import BrightModel

MASK = np.zeros((6, 9), bool)
MASK[1:4, 2:7] = True
COUNTS = masks.encode(MASK)
GOOD = Instances(
    height=6,
    width=9,
    boxes=np.array([[2, 1, 5, 3], [2, 1, 5, 3]], np.float32),
    scores=np.array([1.0, 0.0], np.float32),
    category_ids=np.array([1, 1], np.int32),
    areas=np.array([15, 15], np.int64),
    counts=[COUNTS, COUNTS],
)


def boxes_with(value: float) -> np.ndarray:
    return np.array([[2, 1, 5, 3], [2, 1, value, 3]], np.float32)


@pytest.mark.parametrize(
    "result",
    [
        GOOD,
        Instances.empty(6, 9),
        replace(GOOD, scores=np.array([1, 0.5])),  # float64
        replace(GOOD, boxes=GOOD.boxes.astype(np.float16), areas=GOOD.areas.astype(np.uint8)),
    ],
)
def test_good_results_are_passed_on_as_they_are(result: Instances) -> None:
    assert ResultChecks(BrightModel()).checked(result) is result


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "a NoneType in place of Instances"),
        ({"boxes": []}, "a dict in place of Instances"),
        (replace(GOOD, counts=GOOD.counts[:1]), "boxes of shape (2, 4) for 1 masks"),
        (replace(GOOD, scores=[1.0, 0.5]), "scores of type list"),
        (replace(GOOD, scores=np.array(["a", "b"])), "scores of type <U1"),
        (replace(GOOD, category_ids=np.ones(2)), "category_ids of type float64"),
        (replace(GOOD, height=6.0), "a canvas whose height and width"),
        (replace(GOOD, counts=None), "that cannot be read (TypeError"),
        *(
            (replace(GOOD, scores=np.array([score, 0.5])), "outside of 0 to 1")
            for score in (np.nan, np.inf, -0.1, 1.01, 55.0)
        ),
        *((replace(GOOD, boxes=boxes_with(v)), "a box that is not") for v in (np.nan, np.inf)),
        (replace(GOOD, boxes=boxes_with(-4)), "a box of -4 pixels; boxes are x, y, width, height"),
        (replace(GOOD, category_ids=np.array([1, 7])), "the category id 7, which is not among"),
        (replace(GOOD, counts=[COUNTS, COUNTS.decode()]), "a mask of type str in place of bytes"),
        (replace(GOOD, counts=[COUNTS, b"xyz"]), "a mask (number 1) that is not a COCO RLE string"),
        (replace(GOOD, counts=[b"", COUNTS]), "a mask (number 0) that is not"),
        (replace(GOOD, width=10), "that is not a COCO RLE string for 10 x 6 pixels"),
        (replace(GOOD, areas=np.array([15, 14])), "an area of 14 for a mask of 15 pixels"),
        (
            replace(GOOD, counts=[masks.encode(MASK & False)] * 2, areas=np.zeros(2, np.int64)),
            "a mask without a pixel",
        ),
    ],
)
def test_wrong_results_become_errors_of_the_model(result: Any, message: str) -> None:
    outcome = ResultChecks(BrightModel()).checked(result)
    assert isinstance(outcome, ImageError)
    assert outcome.code is ErrorCode.MODEL_ERROR
    assert message in outcome.message


def test_a_wrong_result_costs_only_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    model = BrightModel()
    results = [GOOD, replace(GOOD, scores=np.array([np.nan, 0])), GOOD]
    monkeypatch.setattr(model, "postprocess", lambda raw, prepared: results)
    image = np.zeros((6, 9, 3), np.uint8)
    outcomes = BatchRunner(model).run([model.preprocess(image)] * 3)
    assert [type(outcome) for outcome in outcomes] == [Instances, ImageError, Instances]
    assert model.batches == [3]  # nothing is computed again
