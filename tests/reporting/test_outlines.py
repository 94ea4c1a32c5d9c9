"""A path filled by the even-odd rule is the mask again: parts, holes, corners that touch."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from segcore import masks
from segcore.reporting.outlines import outline_path


def fill(path: str, height: int, width: int) -> np.ndarray:
    """What a browser fills: each vertical edge turns the pixels to its right."""
    pixels = np.zeros((height, width), bool)
    for ring in filter(None, path.split("z")):
        x = y = start_y = 0
        for command, arguments in re.findall(r"([Mhv])([-0-9 ]+)", ring):
            if command == "M":
                x, y = map(int, arguments.split())
                start_y = y
            elif command == "h":
                x += int(arguments)
            else:
                _turn(pixels, x, y, y + int(arguments))
                y += int(arguments)
        _turn(pixels, x, y, start_y)  # z
    return pixels


def _turn(pixels: np.ndarray, x: int, y: int, other_y: int) -> None:
    low, high = sorted((y, other_y))
    pixels[low:high, x:] ^= True


def _path(bitmap: np.ndarray) -> str | None:
    height, width = bitmap.shape
    counts = masks.encode(bitmap).decode()
    return outline_path(counts, masks.bbox(counts, height, width), height, width)


@given(arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_a_filled_path_is_the_mask(bitmap: np.ndarray) -> None:
    path = _path(bitmap)
    assert np.array_equal(fill(path or "", *bitmap.shape), bitmap)


def test_a_part_in_a_hole_in_a_part() -> None:
    bitmap = np.zeros((40, 60), bool)
    for margin, value in ((3, True), (6, False), (9, True), (12, False)):
        bitmap[margin:-margin, margin + 10 : -margin] = value
    path = _path(bitmap)
    assert path is not None
    assert path.count("M") == 4
    assert np.array_equal(fill(path, 40, 60), bitmap)


@pytest.mark.parametrize("counts", ["", "0", "~~~", "é", "PP"])
def test_what_is_no_mask_has_no_path(counts: str) -> None:
    assert outline_path(counts, (0, 0, 4, 4), 4, 4) is None


def test_what_costs_too_much_is_not_drawn() -> None:
    noise = np.random.default_rng(0).random((300, 300)) > 0.5
    assert len(masks.encode(noise)) > 40_000
    assert _path(noise) is None
    assert outline_path("0", (0, 0, 1e5, 1e5), 10**5, 10**5) is None
    assert outline_path("0", (0, 0, float("nan"), 1), 4, 4) is None
