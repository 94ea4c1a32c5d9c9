"""A path of SVG shows exactly the pixels of its mask: holes, corners, parts of one pixel."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from segcore import masks
from segcore.visualize.paths import svg_path
from tests.masks.test_overlap import draw_mask


def _fill(path: str, height: int, width: int) -> np.ndarray:
    """The pixels whose centres lie inside a path by the even-odd rule, edge by edge."""
    inside = np.zeros((height, width), bool)
    for ring in path.split("z")[:-1]:
        start = re.match(r"M(\d+) (\d+)", ring)
        assert start is not None
        x, y = x0, y0 = int(start[1]), int(start[2])
        steps = [(kind, int(n)) for kind, n in re.findall(r"([hv])(-?\d+)", ring)]
        assert f"M{x0} {y0}" + "".join(f"{k}{n}" for k, n in steps) == ring
        edges = []
        for kind, n in steps:
            if kind == "v":
                edges.append((x, y, y + n))
            x, y = (x + n, y) if kind == "h" else (x, y + n)
        assert x == x0 or y == y0  # what `z` draws is straight, too
        if x == x0:
            edges.append((x, y, y0))
        for edge_x, top, bottom in edges:
            inside[min(top, bottom) : max(top, bottom), edge_x:] ^= True
    return inside


@given(seed=st.integers(0, 2**32 - 1), canvas=st.tuples(st.integers(1, 25), st.integers(1, 25)))
def test_a_path_fills_the_mask(seed: int, canvas: tuple[int, int]) -> None:
    bitmap = draw_mask(np.random.default_rng(seed), *canvas)
    path = svg_path(masks.encode(bitmap), *canvas)
    np.testing.assert_array_equal(_fill(path, *canvas), bitmap)
    assert (path == "") == (not bitmap.any())


def test_a_ring_is_two_outlines() -> None:
    bitmap = np.ones((3, 3), bool)
    bitmap[1, 1] = False
    assert svg_path(masks.encode(bitmap), 3, 3) == "M0 0h3v3h-3zM1 1h1v1h-1z"
