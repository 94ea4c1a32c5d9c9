"""RoIAlign over a pyramid: equal to the loop over bins, points and neighbours."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.models.maskrcnn.roi_align import Pyramid, roi_align

STRIDES = (4, 8, 16, 32)


def value_at(level: torch.Tensor, y: float, x: float) -> torch.Tensor:
    """Bilinear sample (C,) of (C, h, w); zero more than a cell outside."""
    height, width = level.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return torch.zeros(level.shape[0], dtype=level.dtype)
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    fy, fx = y - y0, x - x0
    upper = level[:, y0, x0] * (1 - fx) + level[:, y0, x1] * fx
    lower = level[:, y1, x0] * (1 - fx) + level[:, y1, x1] * fx
    return upper * (1 - fy) + lower * fy


def align_by_loops(levels: list[torch.Tensor], box: list[float], size: int) -> torch.Tensor:
    """(C, size, size) of one box, in float64."""
    x0, y0, x1, y1 = box
    k = math.floor(4 + math.log2(math.sqrt((x1 - x0) * (y1 - y0)) / 224) + 1e-6)
    index = min(max(k, 2), 5) - 2
    level, scale = levels[index][0].double(), 1 / STRIDES[index]
    width, height = (max((b - a) * scale, 1.0) for a, b in ((x0, x1), (y0, y1)))
    out = torch.zeros(level.shape[0], size, size, dtype=torch.float64)
    for row in range(size):
        for column in range(size):
            for sy in (0.25, 0.75):
                for sx in (0.25, 0.75):
                    y = y0 * scale + (row + sy) * height / size
                    x = x0 * scale + (column + sx) * width / size
                    out[:, row, column] += value_at(level, y, x) / 4
    return out


def random_levels(height: int, width: int, channels: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return [torch.randn(1, channels, height // s, width // s, generator=generator) for s in STRIDES]


coordinate = st.floats(0, 1, width=32)


@settings(max_examples=25)
@given(
    size=st.sampled_from([1, 2, 7]),
    boxes=st.lists(
        st.tuples(coordinate, coordinate, coordinate, coordinate), min_size=1, max_size=2
    ),
)
def test_features_of_regions_are_those_of_the_loop(
    size: int, boxes: list[tuple[float, float, float, float]]
) -> None:
    levels = random_levels(96, 160)
    corners = torch.tensor(boxes) * torch.tensor([160.0, 96.0, 160.0, 96.0])
    low = torch.minimum(corners[:, :2], corners[:, 2:])
    high = torch.maximum(torch.maximum(corners[:, :2], corners[:, 2:]), low + 0.01)
    pooled = roi_align(Pyramid.from_levels(levels, STRIDES), torch.cat((low, high), dim=1), size)
    for box, features in zip(torch.cat((low, high), dim=1).tolist(), pooled, strict=True):
        torch.testing.assert_close(
            features.double(), align_by_loops(levels, box, size), rtol=0, atol=2e-4
        )


def test_large_boxes_and_boxes_at_the_border_are_those_of_the_loop() -> None:
    levels = random_levels(1024, 1024, channels=1)
    boxes = [
        [0.0, 0.0, 1024.0, 1024.0],
        [900.0, 0.0, 1024.0, 1024.0],
        [1023.5, 1023.5, 1024.0, 1024.0],
        [0.0, 0.0, 224.0, 224.0],
        [10.0, 20.0, 121.9, 131.9],
    ]
    pooled = roi_align(Pyramid.from_levels(levels, STRIDES), torch.tensor(boxes), 7)
    for box, features in zip(boxes, pooled, strict=True):
        expected = align_by_loops(levels, box, 7)
        torch.testing.assert_close(features.double(), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("side", "level"), [(1, 0), (111, 0), (112, 1), (223.9, 1), (224, 2), (448, 3), (3000, 3)]
)
def test_the_size_of_a_box_decides_its_level(side: float, level: int) -> None:
    box = torch.tensor([[5.0, 7.0, 5.0 + side, 7.0 + side]])
    assert Pyramid.from_levels(random_levels(64, 64), STRIDES).level_of(box).tolist() == [level]


def test_without_boxes_there_are_no_features() -> None:
    pooled = roi_align(Pyramid.from_levels(random_levels(64, 64), STRIDES), torch.zeros(0, 4), 7)
    assert pooled.shape == (0, 3, 7, 7)
