"""What the families check of options, images, batches and tensors."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from segcore.errors import CheckpointError, UsageError
from segcore.models.base import ModelOptions
from segcore.models.checks import (
    check_batch,
    check_image,
    check_tensors,
    refuse_option,
    refuse_reduced_precision,
)


@pytest.mark.parametrize("option", [{"iou": 0.5}, {"shape": "square"}, {"imgsz": 64}])
def test_an_option_that_does_not_apply_is_refused_unless_it_has_its_default(
    option: dict[str, Any],
) -> None:
    ((name, value),) = option.items()
    refuse_option(ModelOptions(), name, "it", "that is how it is")
    message = re.escape(f"model.{name}={value} does not apply to it: that is how it is.")
    with pytest.raises(UsageError, match=message) as caught:
        refuse_option(ModelOptions(**option), name, "it", "that is how it is")
    assert caught.value.hint == f"Leave model.{name} out."


def test_models_that_compute_in_float32_refuse_the_others() -> None:
    for options in (ModelOptions(), ModelOptions(precision="float32")):
        refuse_reduced_precision(options, "it")
    for precision in ("float16", "bfloat16"):
        with pytest.raises(UsageError, match=f"model.precision={precision} does not apply to it"):
            refuse_reduced_precision(ModelOptions(precision=precision), "it")


def test_images_are_rgb_with_a_pixel_at_least() -> None:
    check_image(np.zeros((1, 1, 3), np.uint8))
    for image in (
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match=r"expected \(H, W, 3\) uint8"):
            check_image(image)


def test_batches_have_at_least_one_image_and_at_most_the_batch_size() -> None:
    check_batch([1], 2)
    check_batch([1, 2], 2)
    for batch in ([], [1, 2, 3]):
        with pytest.raises(ValueError, match=f"1 to 2 images, got {len(batch)}"):
            check_batch(batch, 2)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "x does not fit y: it lacks 1 tensor, e.g. a."),
        ({"a": torch.ones(2), "b": torch.ones(1)}, "it has 1 unknown tensor, e.g. b."),
        ({"a": torch.ones(3)}, "a has shape (3,) instead of (2,)."),
        ({"a": torch.ones(2, dtype=torch.int64)}, "a holds torch.int64, not torch.float32."),
        ({"a": torch.tensor([0.0, torch.inf])}, "x is damaged: a holds NaN or infinity."),
        (
            {"a": torch.tensor([0.0, 1e300], dtype=torch.float64)},
            "a holds a number that float32 cannot hold.",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tensors: dict[str, torch.Tensor], message: str) -> None:
    check_tensors({"a": torch.ones(2).half()}, {"a": torch.ones(2)}, "x", "y")
    with pytest.raises(CheckpointError, match=re.escape(message)):
        check_tensors(tensors, {"a": torch.ones(2)}, "x", "y")
