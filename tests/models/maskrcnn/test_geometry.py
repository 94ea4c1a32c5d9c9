"""Sizes, anchors and boxes of Mask R-CNN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from segcore.models.maskrcnn.geometry import (
    Frame,
    boxes_to_image,
    clip_boxes,
    decode_boxes,
    is_large,
    to_input,
)
from segcore.models.maskrcnn.rpn import anchor_grid

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("height", "width", "resized"),
    [
        (480, 640, (800, 1066)),  # 1066.67 is truncated
        (640, 480, (1066, 800)),
        (426, 640, (800, 1201)),
        (427, 640, (800, 1199)),
        (333, 500, (800, 1201)),
        (360, 640, (749, 1333)),  # the longer side decides: 749.8
        (1080, 1920, (749, 1333)),
        (100, 3000, (44, 1333)),
        (800, 1333, (800, 1333)),
        (1, 1, (800, 800)),
        (1, 5000, (1, 1333)),  # at least one pixel
    ],
)
def test_images_are_resized_to_the_known_size(
    height: int, width: int, resized: tuple[int, int]
) -> None:
    frame = Frame.fit(height, width, 800, 1333)
    assert (frame.resized_height, frame.resized_width) == resized


@settings(max_examples=25)
@given(height=st.integers(1, 700), width=st.integers(1, 700))
def test_the_resized_size_is_that_of_interpolate(height: int, width: int) -> None:
    scale = min(80 / min(height, width), 133 / max(height, width))
    assume(min(height, width) * scale >= 1)
    frame = Frame.fit(height, width, 80, 133)
    resized = torch.nn.functional.interpolate(
        torch.zeros(1, 1, height, width),
        scale_factor=scale,
        mode="bilinear",
        recompute_scale_factor=True,
        align_corners=False,
    )
    assert tuple(resized.shape[2:]) == (frame.resized_height, frame.resized_width)
    for padded_side, side in zip(frame.padded, resized.shape[2:], strict=True):
        assert padded_side % 32 == 0
        assert 0 <= padded_side - side < 32


def test_the_input_is_normalised_resized_and_padded_with_zeros() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[..., 0], image[..., 1], image[..., 2] = 255, 128, 0
    frame = Frame.fit(40, 60, 64, 107)
    x = to_input(image, frame, CPU)
    assert x.shape == (1, 3, 64, 96)
    expected = [(1 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, -0.406 / 0.225]
    for channel, value in enumerate(expected):
        torch.testing.assert_close(x[0, channel], torch.full((64, 96), value))
    padded = to_input(image[:, :50], Frame.fit(40, 50, 64, 107), CPU)
    assert padded.shape == (1, 3, 64, 96)
    assert (padded[..., 80:] == 0).all()
    assert (padded[..., :80] != 0).all()


def test_anchors_have_the_published_shapes_and_places() -> None:
    anchors = anchor_grid((3, 5), (24, 40), 32, CPU)
    assert anchors.shape == (45, 4)
    # Ratio of height to width 1/2, 1, 2; corners rounded to whole pixels, halves to even.
    assert anchors[:3].tolist() == [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]
    assert (anchors[3 * 7] - anchors[0]).tolist() == [16, 8, 16, 8]  # row 1, column 2


def test_deltas_move_and_scale_the_anchor() -> None:
    anchors = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    deltas = torch.tensor([[[0.0, 0, 0, 0], [1, -1, math.log(2) * 5, 0], [0, 0, 1e9, 0]]])
    same, moved, huge = decode_boxes(deltas, anchors, (10.0, 10.0, 5.0, 5.0))[0]
    assert same.tolist() == [10, 20, 30, 60]
    torch.testing.assert_close(moved, torch.tensor([2.0, 16.0, 42.0, 56.0]))
    torch.testing.assert_close(huge[2] - huge[0], torch.tensor(20 * 1000 / 16))


def test_boxes_are_clipped_and_small_ones_recognised() -> None:
    frame = Frame(480, 640, 800, 1066)
    boxes = clip_boxes(torch.tensor([[-5.0, -7.0, 2000.0, 900.0], [3, 4, 3.005, 80]]), frame)
    assert boxes[0].tolist() == [0, 0, 1066, 800]
    assert is_large(boxes, 1e-2).tolist() == [True, False]


def test_boxes_return_to_the_image_by_the_scale_of_each_axis() -> None:
    frame = Frame(480, 640, 800, 1066)
    box = boxes_to_image(torch.tensor([[0.0, 400.0, 1066.0, 800.0]]), frame)
    torch.testing.assert_close(box, torch.tensor([[0.0, 240.0, 640.0, 480.0]]))
