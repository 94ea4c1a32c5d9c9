"""Masks over boxes -> RLE: byte-identical to pasting at full size, thresholding and encoding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco
from torch.nn import functional as F

from segcore.models.maskrcnn.paste import paste

# The definition is that of torch's kernels for AVX2 and later; others round in another order.
needs_avx2 = pytest.mark.skipif(
    "AVX" not in torch.backends.cpu.get_cpu_capability(),
    reason="torch rounds differently on this CPU",
)


def paste_at_full_size(
    masks: np.ndarray, boxes: np.ndarray, canvas: tuple[int, int]
) -> list[np.ndarray]:
    """The definition, done naively: one bitmap of the entire image for each mask."""
    padded = F.pad(torch.from_numpy(masks)[:, None], (1, 1, 1, 1))
    ratio = padded.shape[-1] / masks.shape[-1]
    x0, y0, x1, y1 = torch.from_numpy(boxes).unbind(1)
    half_width, half_height = (x1 - x0) * 0.5 * ratio, (y1 - y0) * 0.5 * ratio
    centre_x, centre_y = (x1 + x0) * 0.5, (y1 + y0) * 0.5
    corners = torch.stack(
        (
            centre_x - half_width,
            centre_y - half_height,
            centre_x + half_width,
            centre_y + half_height,
        ),
        dim=1,
    ).to(torch.int64)
    bitmaps = []
    for mask, (left, top, right, bottom) in zip(padded, corners.tolist(), strict=True):
        size = (bottom - top + 1, right - left + 1)
        resized = F.interpolate(mask[None], size=size, mode="bilinear", align_corners=False)[0, 0]
        # A margin on all sides, so that nothing needs to be clipped before it is placed.
        margin = max(size)
        full = np.zeros((canvas[0] + 2 * margin, canvas[1] + 2 * margin), np.uint8)
        set_pixels = (resized > 0.5).numpy()
        full[margin + top : margin + bottom + 1, margin + left : margin + right + 1] = set_pixels
        bitmaps.append(full[margin:-margin, margin:-margin])
    return bitmaps


def check_paste(masks: np.ndarray, boxes: np.ndarray, canvas: tuple[int, int]) -> int:
    """Compares `paste` with the definition; returns the number of masks that have a pixel."""
    bitmaps = paste_at_full_size(masks, boxes, canvas)
    filled = [k for k, bitmap in enumerate(bitmaps) if bitmap.any()]
    pasted = paste(masks, boxes, canvas)
    assert pasted.keep.tolist() == filled
    assert pasted.counts == [coco.encode(np.asfortranarray(bitmaps[k]))["counts"] for k in filled]
    assert pasted.areas.tolist() == [bitmaps[k].sum() for k in filled]
    return len(filled)


def random_boxes(rng: np.random.Generator, n: int, canvas: tuple[int, int]) -> np.ndarray:
    """Boxes inside the image, half of them small and some along its borders."""
    sides = np.array([canvas[1], canvas[0]])
    size = rng.random((n, 2)) * sides
    size[::2] = np.minimum(size[::2], rng.random((len(size[::2]), 2)) * 50 + 0.01)
    corner = rng.random((n, 2)) * (sides - size)
    corner[::3] = 0
    return np.concatenate((corner, corner + size), axis=1).astype(np.float32)


def smooth_masks(rng: np.random.Generator, n: int) -> np.ndarray:
    coarse = torch.from_numpy(rng.normal(0, 4, (n, 1, 6, 6)).astype(np.float32))
    return F.interpolate(coarse, size=(28, 28), mode="bicubic").sigmoid()[:, 0].numpy()


def noise_masks(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.random((n, 28, 28), np.float32)


def undecided_masks(rng: np.random.Generator, n: int) -> np.ndarray:
    """Within a few roundings of the threshold, where only torch's own formula decides."""
    spread = rng.choice([1e-7, 3e-7, 1e-6, 1e-5, 1e-4])
    return (0.5 + rng.normal(0, spread, (n, 28, 28))).astype(np.float32)


def threshold_masks(rng: np.random.Generator, n: int) -> np.ndarray:
    half = np.float32(0.5)
    values = [0, half, 1, np.nextafter(half, np.float32(1)), np.nextafter(half, np.float32(0))]
    return rng.choice(np.array(values, np.float32), (n, 28, 28))


@needs_avx2
@pytest.mark.parametrize(
    "make_masks", [smooth_masks, noise_masks, undecided_masks, threshold_masks]
)
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 220), width=st.integers(1, 220))
def test_result_is_that_of_full_size_pasting(
    make_masks, seed: int, height: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    check_paste(make_masks(rng, 4), random_boxes(rng, 4, (height, width)), (height, width))


@needs_avx2
def test_result_is_that_of_full_size_pasting_on_large_images() -> None:
    rng = np.random.default_rng(3)
    for canvas in ((1080, 1920), (2000, 70), (40, 3000)):
        boxes = random_boxes(rng, 6, canvas)
        boxes[0] = [0, 0, canvas[1], canvas[0]]
        assert check_paste(smooth_masks(rng, 6), boxes, canvas) > 2


@needs_avx2
@pytest.mark.parametrize("side", [25.9, 28.0, 60.0, 118.9, 119.0, 119.5])
def test_result_is_that_of_full_size_pasting_at_sizes_where_kernels_change(side: float) -> None:
    # 30 pixels: no resizing; a sum of both sides over 128: another kernel.
    rng = np.random.default_rng(int(side))
    boxes = np.array([[40, 40, 40 + side, 40 + other] for other in (2, 28, 59.7, 60, 61, 119)])
    check_paste(undecided_masks(rng, 6), boxes.astype(np.float32), (200, 200))


def test_a_mask_without_a_pixel_is_dropped() -> None:
    masks = np.zeros((3, 28, 28), np.float32)
    masks[1] = 1
    boxes = np.array([[2, 3, 40, 50]] * 3, np.float32)
    pasted = paste(masks, boxes, (60, 60))
    assert pasted.keep.tolist() == [1]
    assert len(pasted.counts) == len(pasted.areas) == 1
    bitmap = coco.decode({"size": [60, 60], "counts": pasted.counts[0]})
    rows, columns = np.nonzero(bitmap)
    edges = np.array([columns.min(), rows.min(), columns.max(), rows.max()])
    assert np.abs(edges - [2, 3, 40, 50]).max() <= 1


def test_without_masks_the_result_is_empty() -> None:
    empty = paste(np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32), (5, 5))
    assert empty.counts == []
    assert len(empty.areas) == len(empty.keep) == 0


@pytest.mark.parametrize(
    ("masks", "boxes", "message"),
    [
        (np.zeros((1, 28, 27), np.float32), np.zeros((1, 4), np.float32), "masks are"),
        (np.zeros((2, 28, 28), np.float32), np.zeros((1, 4), np.float32), "masks are"),
        (np.zeros((1, 28, 28)), np.zeros((1, 4), np.float32), "float32"),
        (np.full((1, 28, 28), np.nan, np.float32), np.zeros((1, 4), np.float32), "finite"),
        (np.zeros((1, 28, 28), np.float32), np.array([[0, 0, 1e9, 1]], np.float32), "outside"),
    ],
)
def test_masks_and_boxes_that_cannot_be_pasted_are_refused(masks, boxes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paste(masks, boxes, (10, 10))
