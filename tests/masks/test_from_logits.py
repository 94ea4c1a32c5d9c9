"""Logits -> RLE against torch at full size, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from segcore import masks
from segcore.masks import Window
from segcore.masks.bilinear import mix, resample_axis

f32 = np.float32
BACKENDS = sorted({"numpy", masks.default_backend()})


def torch_resize(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N, h, w) -> (N, H, W) by torch; padded to 4 planes, as torch has other kernels for fewer."""
    n = len(planes)
    padded = np.concatenate([planes, np.zeros((max(0, 4 - n), *planes.shape[1:]), f32)])
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(padded)[None], size, mode="bilinear", align_corners=False
    )
    return resized[0, :n].numpy()


def plain_resize(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The documented fp32 formula at full size; for sizes where torch uses another kernel."""
    y, x = resample_axis(planes.shape[1], size[0]), resample_axis(planes.shape[2], size[1])
    rows = mix(planes[:, :, x.low], x.weight_low, planes[:, :, x.high], x.weight_high)
    return mix(rows[:, y.low], y.weight_low[:, None], rows[:, y.high], y.weight_high[:, None])


def reference(logits, boxes, canvas, window=None, resize=torch_resize):
    """The definition, at full size: strings, areas, and which masks have a pixel."""
    if window is not None:
        u = window.upsample
        if u > 1:
            logits = resize(logits, (logits.shape[1] * u, logits.shape[2] * u))
        logits = logits[:, window.top : window.bottom, window.left : window.right].copy()
    full = resize(logits, canvas)
    y, x = np.arange(canvas[0], dtype=f32)[:, None], np.arange(canvas[1], dtype=f32)
    counts, areas, keep = [], [], []
    for i, (plane, (x1, y1, x2, y2)) in enumerate(zip(full, boxes, strict=True)):
        bitmap = (plane > 0) & (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
        if bitmap.any():
            counts.append(coco.encode(np.asfortranarray(bitmap, dtype=np.uint8))["counts"])
            areas.append(int(bitmap.sum()))
            keep.append(i)
    return counts, areas, keep


def smooth(rng, n, h, w):
    """Blobs like those of a model: noise at a lower resolution, upsampled."""
    coarse = rng.standard_normal((n, max(1, h // 4), max(1, w // 4))).astype(f32)
    return plain_resize(coarse, (h, w)) + 0.1 * rng.standard_normal((n, h, w)).astype(f32)


def draw_logits(rng, kind, n, h, w):
    if kind == "noise":
        return rng.standard_normal((n, h, w)).astype(f32)
    if kind == "smooth":
        return smooth(rng, n, h, w).astype(f32)
    if kind == "integers":  # exact zeros, ties and cancellations: the last bit of rounding shows
        return rng.integers(-2, 3, (n, h, w)).astype(f32)
    return (rng.standard_normal((n, h, w)) * 10.0 ** rng.integers(-6, 6, (n, h, w))).astype(f32)


def draw_boxes(rng, n, canvas):
    height, width = canvas
    corners = rng.uniform(-0.2, 1.2, (n, 2)) * (width, height)
    opposite = corners + rng.exponential(0.3, (n, 2)) * (width, height)
    boxes = np.concatenate([corners, opposite], 1).astype(f32)
    kind = rng.integers(0, 6, n)
    boxes[kind == 0] = (0, 0, width, height)
    boxes[kind == 1] = np.round(boxes[kind == 1])
    boxes[kind == 2] += f32(0.5)
    boxes[(kind == 3) & (rng.random(n) < 0.2)] += f32(3 * max(height, width))  # outside
    return boxes


def check_encoding(logits, boxes, canvas, window=None, resize=torch_resize):
    """Compare each implementation with the definition; how many masks have a pixel."""
    counts, areas, keep = reference(logits, boxes, canvas, window, resize)
    for backend in BACKENDS:
        encoded = masks.encode_logits(logits, boxes, canvas, window, backend=backend)
        assert encoded.keep.tolist() == keep
        assert encoded.counts == counts
        assert encoded.areas.tolist() == areas
    return len(counts)


KINDS = ["noise", "smooth", "integers", "scales"]


@pytest.mark.parametrize("kind", KINDS)
def test_identical_to_torch_on_random_shapes(kind):
    if not torch.backends.cpu.get_cpu_capability().startswith(("AVX2", "AVX512")):
        pytest.skip("torch rounds differently on a CPU without AVX2")
    rng = np.random.default_rng(KINDS.index(kind))
    strings = 0
    for _ in range(60):
        h, w = (int(v) for v in rng.integers(1, 60, 2))
        canvas = (int(rng.integers(1, 400)), int(rng.integers(1, 400)))
        if sum(canvas) <= 128:
            canvas = (canvas[0] + 128, canvas[1])
        n = int(rng.integers(1, 12))
        strings += check_encoding(
            draw_logits(rng, kind, n, h, w), draw_boxes(rng, n, canvas), canvas
        )
    assert strings > 100


@pytest.mark.parametrize("kind", KINDS)
def test_small_canvases_follow_the_formula(kind):
    rng = np.random.default_rng(10 + KINDS.index(kind))
    strings = 0
    for _ in range(150):
        h, w, *canvas = (int(v) for v in rng.integers(1, 20, 4))
        n = int(rng.integers(1, 6))
        logits = draw_logits(rng, kind, n, h, w)
        strings += check_encoding(
            logits, draw_boxes(rng, n, canvas), tuple(canvas), resize=plain_resize
        )
    assert strings > 100


@pytest.mark.parametrize("upsample", [1, 2, 4])
def test_windows_are_cut_before_resizing(upsample):
    rng = np.random.default_rng(upsample)
    for kind in KINDS:
        for _ in range(10):
            h, w = (int(v) for v in rng.integers(20, 50, 2))
            top, bottom = sorted(int(v) for v in rng.choice(h * upsample + 1, 2, replace=False))
            left, right = sorted(int(v) for v in rng.choice(w * upsample + 1, 2, replace=False))
            window = Window(top, left, bottom, right, upsample)
            canvas = tuple(int(v) for v in rng.integers(1, 300, 2))
            n = int(rng.integers(1, 6))
            logits = draw_logits(rng, kind, n, h, w)
            check_encoding(logits, draw_boxes(rng, n, canvas), canvas, window, plain_resize)


def test_upsampled_window_is_identical_to_torch():
    if not torch.backends.cpu.get_cpu_capability().startswith(("AVX2", "AVX512")):
        pytest.skip("torch rounds differently on a CPU without AVX2")
    rng = np.random.default_rng(5)
    for content in [(140, 0, 500, 640), (141, 0, 499, 640), (0, 106, 640, 534), (138, 0, 502, 640)]:
        window = Window.of_letterbox(*content)
        logits = draw_logits(rng, "integers", 5, 160, 160)
        assert check_encoding(logits, draw_boxes(rng, 5, (480, 853)), (480, 853), window) > 0


def test_of_letterbox_upsamples_only_where_padding_ends_between_samples():
    assert Window.of_letterbox(140, 0, 500, 640) == (35, 0, 125, 160, 1)
    assert Window.of_letterbox(142, 0, 498, 640) == (71, 0, 249, 320, 2)
    assert Window.of_letterbox(141, 0, 499, 640) == (141, 0, 499, 640, 4)
    with pytest.raises(ValueError, match="quarter"):
        Window.of_letterbox(1, 0, 8, 8, stride=8)


@pytest.mark.slow
@pytest.mark.parametrize("canvas", [(3000, 4000), (1, 5000), (5000, 1), (1080, 1920)])
def test_large_canvases_are_encoded_exactly(canvas):
    rng = np.random.default_rng(7)
    logits = np.concatenate([draw_logits(rng, kind, 1, 120, 160) for kind in KINDS])
    boxes = draw_boxes(rng, 4, canvas)
    boxes[0] = (0, 0, canvas[1], canvas[0])
    check_encoding(logits, boxes, canvas, None, plain_resize if min(canvas) == 1 else torch_resize)


def test_chunking_does_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(8)
    logits = draw_logits(rng, "noise", 20, 40, 50)
    boxes = draw_boxes(rng, 20, (300, 400))
    at_once = masks.encode_logits(logits, boxes, (300, 400), backend="numpy")
    monkeypatch.setattr("segcore.masks.numpy_kernel._GROUP_SAMPLES", 70)
    monkeypatch.setattr("segcore.masks.numpy_kernel._BATCH_SAMPLES", 3000)
    in_pieces = masks.encode_logits(logits, boxes, (300, 400), backend="numpy")
    assert in_pieces.counts == at_once.counts
    assert in_pieces.areas.tolist() == at_once.areas.tolist()
    assert in_pieces.keep.tolist() == at_once.keep.tolist()


def test_each_mask_depends_on_itself_alone():
    rng = np.random.default_rng(9)
    logits = draw_logits(rng, "integers", 12, 40, 40)
    boxes = draw_boxes(rng, 12, (200, 300))
    together = masks.encode_logits(logits, boxes, (200, 300))
    one_by_one = [
        masks.encode_logits(logits[i : i + 1], boxes[i : i + 1], (200, 300)) for i in range(12)
    ]
    assert together.counts == [counts for encoded in one_by_one for counts in encoded.counts]


def test_empty_and_invisible_masks_are_dropped():
    logits = np.stack([np.full((4, 4), v, f32) for v in (1, -1, 0, 1, 1, 1)])
    boxes = np.array([[1, 1, 3, 3]] * 3 + [[5, 5, 5, 9], [40, 0, 50, 9], [np.nan, 0, 9, 9]], f32)
    encoded = masks.encode_logits(logits, boxes, (10, 12))
    assert encoded.keep.tolist() == [0]
    assert encoded.areas.tolist() == [4]
    none = masks.encode_logits(np.zeros((0, 4, 4), f32), np.zeros((0, 4), f32), (10, 12))
    assert none.counts == []
    assert none.keep.shape == none.areas.shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": np.zeros((2, 4, 4))}, "float32"),
        ({"boxes": np.zeros((3, 4), f32)}, "boxes are"),
        ({"canvas": (0, 4)}, "canvas"),
        ({"window": Window(0, 0, 5, 4)}, "not inside"),
        ({"window": Window(2, 0, 2, 4)}, "empty"),
        ({"window": Window(0, 0, 4, 4, 3)}, "not inside"),
        ({"logits": np.full((2, 4, 4), np.nan, f32)}, "not finite"),
    ],
)
def test_invalid_arguments_are_refused(change, message):
    valid = {
        "logits": np.ones((2, 4, 4), f32),
        "boxes": np.full((2, 4), (0, 0, 4, 4), f32),
        "canvas": (8, 8),
    }
    for backend in BACKENDS:
        with pytest.raises(ValueError, match=message):
            masks.encode_logits(**(valid | change), backend=backend)
