"""The torch path against the NumPy one, byte for byte; on CUDA as well where there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore import masks
from segcore.masks import Window
from segcore.masks.device import encode as device_encode
from segcore.masks.device.edges import NO_KEY, DeviceCrops, mix
from segcore.masks.device.encode import BYTE_LIMIT, ImageMasks, encode_images
from segcore.masks.device.strings import write_strings
from segcore.masks.edges import encode_edges
from segcore.masks.rle import MAX_CANVAS
from tests.masks.test_from_logits import KINDS, draw_boxes, draw_logits

f32 = np.float32
CUDA = pytest.param(
    "cuda",
    marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
)


@pytest.fixture(params=["cpu", CUDA])
def device(request):
    return request.param


def check_encoding(scenes, device, **limit):
    """Compare (logits, boxes, canvas, window) of several images with NumPy; how many strings."""
    images = [
        ImageMasks(torch.from_numpy(planes).to(device), None, boxes, canvas, window)
        for planes, boxes, canvas, window in scenes
    ]
    results = encode_images(images, **limit)
    assert len(results) == len(scenes)
    for encoded, (planes, boxes, canvas, window) in zip(results, scenes, strict=True):
        expected = masks.encode_logits(planes, boxes, canvas, window, backend="numpy")
        assert encoded.keep.tolist() == expected.keep.tolist()
        assert encoded.counts == expected.counts
        assert encoded.areas.tolist() == expected.areas.tolist()
        assert encoded.areas.dtype == encoded.keep.dtype == np.int64
    return sum(len(encoded.counts) for encoded in results)


def draw_scene(rng, kind, side=300):
    h, w = (int(v) for v in rng.integers(1, 60, 2))
    canvas = tuple(int(v) for v in rng.integers(1, side, 2)) if rng.random() < 0.9 else (h, w)
    window = None
    if rng.random() < 0.8:
        upsample = int(rng.choice([1, 1, 2, 4]))
        top, left = (int(rng.integers(0, s * upsample)) for s in (h, w))
        bottom = int(rng.integers(top + 1, h * upsample + 1))
        right = int(rng.integers(left + 1, w * upsample + 1))
        window = Window(top, left, bottom, right, upsample)
    n = int(rng.integers(0, 8))
    return draw_logits(rng, kind, n, h, w), draw_boxes(rng, n, canvas), canvas, window


@pytest.mark.slow
@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
    byte_limit=st.sampled_from([1, 1 << 14, BYTE_LIMIT]),
)
def test_equals_numpy(seed, kinds, byte_limit):
    rng = np.random.default_rng(seed)
    check_encoding([draw_scene(rng, kind) for kind in kinds], "cpu", byte_limit=byte_limit)


@pytest.mark.slow
def test_equals_numpy_in_many_scenes(device):
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng, kind, 200) for kind in KINDS * 40]
    for n_images in (1, len(scenes)):
        strings = sum(
            check_encoding(scenes[i : i + n_images], device)
            for i in range(0, len(scenes), n_images)
        )
        assert strings > 250


@pytest.mark.slow
def test_equals_numpy_on_instances_like_those_of_models(device):
    """Ragged blobs, each in its box; images of four shapes with their letterboxes at once."""
    rng = np.random.default_rng(1)
    shapes = [
        ((480, 640), Window.of_letterbox(80, 0, 560, 640)),
        ((1080, 1920), Window.of_letterbox(140, 0, 500, 640)),
        ((427, 640), Window.of_letterbox(106, 0, 533, 640)),
        ((300, 200), Window.of_letterbox(0, 106, 640, 533)),
    ]
    noise = draw_logits(rng, "smooth", 60, 160, 160)
    total = 0
    for _ in range(2 if device == "cpu" else 20):
        total += check_encoding([blobs(rng, noise, 40, *shape) for shape in shapes], device)
    assert total > (250 if device == "cpu" else 2500)


def blobs(rng, noise, n, canvas, window):
    """Logits (n, 160, 160) of discs with ragged outlines, their boxes, canvas and window."""
    sides = np.array([canvas[1], canvas[0]])
    centre, size = rng.uniform(0, 1, (n, 2)) * sides, rng.uniform(0.05, 0.4, (n, 2)) * sides
    boxes = np.concatenate([centre - size / 2, centre + size / 2], 1)
    boxes = np.clip(boxes, 0, np.tile(sides, 2)).astype(f32)
    origin = np.array([window.left, window.top]) / window.upsample
    scale = (np.array([window.right, window.bottom]) / window.upsample - origin) / sides
    middle, radius = origin + centre * scale, (size * scale).mean(axis=1) / 2
    y, x = np.mgrid[:160, :160]
    squared_distance = (x - middle[:, :1, None]) ** 2 + (y - middle[:, 1:, None]) ** 2
    planes = 1 - squared_distance / radius[:, None, None] ** 2
    planes = planes + 0.5 * noise[rng.permutation(len(noise))[:n]]
    return planes.astype(f32), boxes, canvas, window


@pytest.mark.slow
@pytest.mark.parametrize("canvas", [(3000, 4000), (1, 5000), (5000, 1), (70_000, 3), (1, 1)])
def test_equals_numpy_on_uncommon_canvases(canvas, device):
    rng = np.random.default_rng(2)
    planes = np.concatenate([draw_logits(rng, kind, 2, 120, 160) for kind in KINDS])
    boxes = draw_boxes(rng, 8, canvas)
    boxes[::2] = (0, 0, canvas[1], canvas[0])
    assert check_encoding([(planes, boxes, canvas, None)], device) > 0


def test_equals_numpy_on_extreme_numbers(device):
    values = np.array([0, -0.0, 1e-45, -1e-45, 4e-45, -4e-45, 1e-38, -1e-38, 1, 3e38, -3e38], f32)
    rng = np.random.default_rng(3)
    for upsample in (1, 4):
        planes = rng.choice(values, (40, 12, 9))
        window = Window(0, 0, 12 * upsample, 9 * upsample, upsample)
        for canvas in [(100, 150), (12, 9), (2000, 3)]:
            check_encoding([(planes, draw_boxes(rng, 40, canvas), canvas, window)], device)


def test_the_longest_runs_are_written(device):
    """Numbers of seven characters, and positions beyond 32 bits, from edges alone."""
    rng = np.random.default_rng(9)
    pixels = np.array([MAX_CANVAS, MAX_CANVAS, 1000, MAX_CANVAS, 3, 2**31])
    positions = [
        np.array([0, MAX_CANVAS]),
        np.sort(rng.choice(2**32 - 1, 40, replace=False)),
        np.array([], int),
        np.array([2**31, 2**31 + 1, 2**31 + 2, MAX_CANVAS]),
        np.array([0, 1, 2, 3]),
        np.array([1, 2**31 - 1]),
    ]
    starts = np.cumsum(pixels + 1) - (pixels + 1)
    keys = np.concatenate([p + start for p, start in zip(positions, starts, strict=True)])
    keys = np.append(keys, [NO_KEY] * 5)
    zeros = torch.zeros(len(pixels), dtype=torch.int64, device=device)
    crops = DeviceCrops(*[zeros] * len(DeviceCrops._fields))._replace(
        pixels=torch.from_numpy(pixels).to(device), key_at=torch.from_numpy(starts).to(device)
    )
    strings = write_strings(torch.from_numpy(keys).to(device), crops, MAX_CANVAS)
    text, at = strings.chars.cpu().numpy().tobytes(), 0
    for length, area, edges, canvas in zip(
        strings.lengths.tolist(), strings.areas.tolist(), positions, pixels, strict=True
    ):
        expected = encode_edges(edges, int(canvas))
        assert [text[at : at + length]] == (expected.counts or [b""])
        assert [area] == (expected.areas.tolist() or [0])
        at += length
    assert at == len(text)


def test_mix_rounds_once(device):
    rng = np.random.default_rng(4)
    low, high = (rng.standard_normal(100_000).astype(f32) for _ in range(2))
    high[:50_000] = -low[:50_000] * rng.choice([1, 1.0000001, 0.5], 50_000).astype(f32)
    w = rng.random(100_000).astype(f32)
    arrays = low, f32(1) - w, high, w
    mixed = mix(*(torch.from_numpy(a).to(device) for a in arrays)).cpu().numpy()
    assert mixed.tobytes() == masks.bilinear.mix(*arrays).tobytes()


@pytest.mark.slow
def test_products_depend_on_each_image_alone(device):
    """Coefficients x prototypes; neither the limit nor the other images change the result."""
    rng = np.random.default_rng(5)
    images, logits = [], []
    for n in (3, 0, 11, 300):
        prototypes = torch.from_numpy(draw_logits(rng, "smooth", 32, 40, 40)).to(device)
        coefficients = torch.from_numpy(rng.standard_normal((n, 32)).astype(f32)).to(device)
        boxes = draw_boxes(rng, n, (333, 222))
        images.append(ImageMasks(prototypes, coefficients, boxes, (333, 222)))
        logits.append((coefficients @ prototypes.flatten(1)).view(n, 40, 40).cpu().numpy())
    for limit in (1, 1 << 22, 1 << 30):
        results = encode_images(images, limit)
        for encoded, image, planes in zip(results, images, logits, strict=True):
            expected = masks.encode_logits(planes, image.boxes, image.canvas)
            assert encoded.counts == expected.counts
            assert encoded.keep.tolist() == expected.keep.tolist()


def test_images_without_masks_to_encode(device):
    assert encode_images([]) == []
    no_instance = (np.zeros((0, 4, 4), f32), np.zeros((0, 4), f32), (10, 12), None)
    negative = (np.full((2, 4, 4), -1, f32), np.full((2, 4), (1, 1, 3, 3), f32), (10, 12), None)
    outside = (
        np.ones((3, 4, 4), f32),
        np.array([[5, 5, 5, 9], [40, 0, 50, 9], [np.nan, 0, 9, 9]], f32),
        (10, 12),
        None,
    )
    full = (np.ones((1, 1, 1), f32), np.array([[0, 0, 1, 1]], f32), (1, 1), None)
    mixed = [no_instance, negative, full, outside, no_instance, full]
    for scenes in ([no_instance], [negative], [outside], mixed):
        check_encoding(scenes, device)


def test_logits_that_are_views(device):
    rng = np.random.default_rng(6)
    planes, boxes = draw_logits(rng, "smooth", 6, 40, 30), draw_boxes(rng, 6, (90, 80))
    transposed = torch.from_numpy(np.ascontiguousarray(planes.transpose(2, 1, 0))).to(device)
    (encoded,) = encode_images([ImageMasks(transposed.permute(2, 1, 0), None, boxes, (90, 80))])
    assert encoded.counts == masks.encode_logits(planes, boxes, (90, 80)).counts


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("upsample", [1, 4])
def test_logits_that_are_not_finite_are_refused_where_a_box_needs_them(value, upsample, device):
    planes = np.ones((3, 8, 8), f32)
    planes[1, 4, 4] = value
    window = Window(0, 0, 8 * upsample, 8 * upsample, upsample)
    for box, is_needed in [
        ((0, 0, 20, 20), True),
        ((0, 0, 4, 4), False),
        ((3, 0, 4, 20), False),
    ]:
        scene = (planes, np.full((3, 4), box, f32), (20, 20), window)
        if not is_needed:
            assert check_encoding([scene], device) == 3
            continue
        with pytest.raises(ValueError, match="not finite"):
            masks.encode_logits(*scene, backend="numpy")
        with pytest.raises(ValueError, match="not finite"):
            check_encoding([scene], device)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prototypes": torch.zeros(2, 4, 4, dtype=torch.float64)}, "float32"),
        ({"prototypes": torch.zeros(2, 4)}, r"expected logits \(N, h, w\)"),
        ({"coefficients": torch.zeros(2, 3)}, r"\(2, 4, 4\) with \(2, 3\)"),
        ({"boxes": np.zeros((3, 4), f32)}, "boxes are"),
        ({"canvas": (0, 4)}, "canvas"),
        ({"window": Window(0, 0, 5, 4)}, "not inside"),
    ],
)
def test_invalid_arguments_are_refused(change, message):
    valid = ImageMasks(torch.ones(2, 4, 4), None, np.full((2, 4), (0, 0, 4, 4), f32), (8, 8))
    with pytest.raises(ValueError, match=message):
        encode_images([valid._replace(**change)])


def test_the_number_of_waits_does_not_grow_with_the_number_of_images(monkeypatch):
    """The host waits twice for a chunk and once for the batch."""
    rng = np.random.default_rng(7)
    waits = []
    download, to_int = device_encode.download, torch.Tensor.__int__
    monkeypatch.setattr(device_encode, "download", lambda t: waits.append(1) or download(t))
    monkeypatch.setattr(torch.Tensor, "__int__", lambda t: waits.append(1) or to_int(t))
    for name in ("item", "tolist", "nonzero", "__bool__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda t, *a, f=original: waits.append(1) or f(t, *a)
        )
    for n_images in (1, 20):
        scenes = [(draw_logits(rng, "smooth", 3, 30, 30), draw_boxes(rng, 3, (90, 80)), (90, 80))]
        waits.clear()
        encode_images(
            [
                ImageMasks(torch.from_numpy(planes), None, boxes, canvas)
                for planes, boxes, canvas in scenes * n_images
            ]
        )
        assert len(waits) == 3
