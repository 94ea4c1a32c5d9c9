"""The kernels by Triton against NumPy, byte for byte.

On CUDA they are compiled; without it they run in Triton's interpreter where `TRITON_INTERPRET=1` is
set, as `make triton` does. Without Triton nothing runs.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (make triton)")

from segcore import masks
from segcore.masks import Window
from segcore.masks.device import automatic
from segcore.masks.device.encode import BYTE_LIMIT, ImageMasks, encode_images
from segcore.masks.device.triton_encode import Tiles, TritonChunk
from tests.masks.test_device import blobs, check_encoding, draw_scene
from tests.masks.test_from_logits import KINDS, draw_boxes, draw_logits

f32 = np.float32
ON_CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The interpreter takes about as long for a large tile as for a small one.
FEW_TILES = Tiles(4096, 256, 64, 8192, 4096)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ON_CUDA or INTERPRETED), reason="needs CUDA, or TRITON_INTERPRET=1 (make triton)"
    ),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]


def check(scenes: list[Any], tiles: Tiles | None = None, byte_limit: int = BYTE_LIMIT) -> int:
    """Compare (logits, boxes, canvas, window) of images with NumPy; how many strings."""
    tiles = tiles or (Tiles() if ON_CUDA else FEW_TILES)
    chunk = partial(TritonChunk, tiles=tiles)
    return check_encoding(
        scenes, "cuda" if ON_CUDA else "cpu", byte_limit=byte_limit, start_chunk=chunk
    )


@pytest.mark.parametrize("kind", KINDS)
def test_equals_numpy_in_many_scenes(kind: str) -> None:
    rng = np.random.default_rng(KINDS.index(kind))
    scenes = [draw_scene(rng, kind, 200) for _ in range(8)]
    assert check(scenes) > 3
    assert check(scenes[:3], byte_limit=1) >= 0  # a chunk for each crop


@pytest.mark.parametrize("tiles", [Tiles(), Tiles(16, 1, 1, 2, 1), Tiles(64, 4, 2, 8, 2)])
def test_tiles_do_not_change_the_result(tiles: Tiles) -> None:
    rng = np.random.default_rng(10)
    planes = np.concatenate([draw_logits(rng, kind, 1, 9, 11) for kind in KINDS])
    boxes = draw_boxes(rng, 4, (13, 17))
    assert check([(planes, boxes, (13, 17), None), (planes, boxes / 2, (7, 30), None)], tiles) > 2


def test_equals_numpy_on_instances_like_those_of_models() -> None:
    rng = np.random.default_rng(1)
    noise = draw_logits(rng, "smooth", 60, 160, 160)
    shapes = [
        ((480, 640), Window.of_letterbox(80, 0, 560, 640)),
        ((427, 640), Window.of_letterbox(106, 0, 533, 640)),
        ((3000, 4000), Window.of_letterbox(80, 0, 560, 640)),
    ]
    n = 40 if ON_CUDA else 4
    assert check([blobs(rng, noise, n, *shape) for shape in shapes]) > 2 * n


def hard_planes() -> np.ndarray:
    """(N, 12, 9): empty, full, one column or row, holes, rings, edges at 0, zeros on samples."""
    y, x = np.mgrid[:12, :9]
    sets = [
        np.zeros((12, 9), bool),
        np.ones((12, 9), bool),
        x == 0,
        x == 8,
        x == 4,
        y == 0,
        y == 11,
        (x == 0) | (x == 8),
        (y == 0) | (y == 11),
        (abs(x - 4) > 1) | (abs(y - 6) > 2),  # a hole
        (x + y) % 2 == 0,
        (x % 2 == 0),
        (y % 2 == 0),
        (x == 3) & (y == 5),
    ]
    planes = []
    for is_set in sets:
        # -0.0, 0.0 and the smallest numbers are on either side of the threshold.
        for positive, negative in (
            (1, -1),
            (1e-45, 0.0),
            (3e38, -0.0),
            (1, -1e-45),
            (1e-38, -3e38),
        ):
            planes.append(np.where(is_set, f32(positive), f32(negative)))
    return np.stack(planes).astype(f32)


@pytest.mark.parametrize("canvas", [(12, 9), (100, 150), (5, 4), (1, 40), (40, 1), (1, 1)])
@pytest.mark.parametrize("upsample", [1, 4])
def test_equals_numpy_on_hard_masks(canvas: tuple[int, int], upsample: int) -> None:
    planes = hard_planes()
    whole = np.full((len(planes), 4), (0, 0, canvas[1], canvas[0]), f32)
    window = Window(0, 0, 12 * upsample, 9 * upsample, upsample)
    part = draw_boxes(np.random.default_rng(3), len(planes), canvas)
    step = 1 if ON_CUDA else 3
    scenes = [(planes[::step], boxes[::step], canvas, window) for boxes in (whole, part)]
    assert check(scenes) > 0


@pytest.mark.parametrize("canvas", [(3000, 4000), (1, 5000), (5000, 1), (70_000, 3)])
def test_equals_numpy_on_uncommon_canvases(canvas: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    planes = np.concatenate([draw_logits(rng, kind, 1, 20, 30) for kind in KINDS])
    boxes = draw_boxes(rng, 4, canvas)
    boxes[::2] = (0, 0, canvas[1], canvas[0])
    assert check([(planes, boxes, canvas, None)], Tiles(4096, 1024, 32, 8192, 8192)) > 0


def test_a_thousand_instances_of_an_image() -> None:
    rng = np.random.default_rng(8)
    n = 1000 if ON_CUDA else 120
    planes = np.concatenate([draw_logits(rng, kind, n // 4, 8, 8) for kind in KINDS])
    corners = rng.uniform(0, 50, (n, 2))
    boxes = np.concatenate((corners, corners + rng.uniform(0, 14, (n, 2))), 1).astype(f32)
    assert check([(planes, boxes, (64, 64), None)]) > n // 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("upsample", [1, 4])
def test_logits_that_are_not_finite_are_refused_where_a_box_needs_them(
    value: float, upsample: int
) -> None:
    planes = np.ones((3, 8, 8), f32)
    planes[1, 4, 4] = value
    window = Window(0, 0, 8 * upsample, 8 * upsample, upsample)
    for box, is_needed in [((0, 0, 20, 20), True), ((0, 0, 4, 4), False), ((3, 0, 4, 20), False)]:
        scene = (planes, np.full((3, 4), box, f32), (20, 20), window)
        if is_needed:
            with pytest.raises(ValueError, match="not finite"):
                check([scene])
        else:
            assert check([scene]) == 3


def test_images_without_masks_to_encode() -> None:
    no_instance = (np.zeros((0, 4, 4), f32), np.zeros((0, 4), f32), (10, 12), None)
    negative = (np.full((2, 4, 4), -1, f32), np.full((2, 4), (1, 1, 3, 3), f32), (10, 12), None)
    outside = (np.ones((1, 4, 4), f32), np.array([[40, 0, 50, 9]], f32), (10, 12), None)
    full = (np.ones((1, 1, 1), f32), np.array([[0, 0, 1, 1]], f32), (1, 1), None)
    for scenes in ([no_instance], [negative], [outside], [no_instance, negative, full, outside]):
        check(scenes)


def test_products_are_those_of_torch() -> None:
    rng = np.random.default_rng(5)
    device = "cuda" if ON_CUDA else "cpu"
    prototypes = torch.from_numpy(draw_logits(rng, "smooth", 32, 40, 40)).to(device)
    coefficients = torch.from_numpy(rng.standard_normal((6, 32)).astype(f32)).to(device)
    image = ImageMasks(prototypes, coefficients, draw_boxes(rng, 6, (99, 60)), (99, 60))
    (encoded,) = encode_images([image], start_chunk=partial(TritonChunk, tiles=FEW_TILES))
    planes = (coefficients @ prototypes.flatten(1)).view(6, 40, 40).cpu().numpy()
    assert encoded.counts == masks.encode_logits(planes, image.boxes, image.canvas).counts


def test_the_check_at_first_use_passes_and_notices_a_kernel_that_rounds_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = torch.device("cuda" if ON_CUDA else "cpu")
    tiles = Tiles() if ON_CUDA else FEW_TILES
    assert automatic.kernels_agree(device, tiles=tiles)
    write = TritonChunk.write_strings

    def one_character_off(self: TritonChunk, n_edges: int) -> Any:
        strings = write(self, n_edges)
        strings.chars[int(strings.starts[-1])] += 1
        return strings

    monkeypatch.setattr(TritonChunk, "write_strings", one_character_off)
    assert not automatic.kernels_agree(device, tiles=tiles)
