"""RLE strings against pycocotools."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from segcore import masks

bitmaps = hnp.arrays(
    np.uint8,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40),
    elements=st.integers(0, 1),
)


def blobs(seed):
    rng = np.random.default_rng(seed)
    h, w = (int(v) for v in rng.integers(1, 300, 2))
    noise = rng.standard_normal((h, w)).cumsum(0).cumsum(1)
    return (noise > np.quantile(noise, rng.random())).astype(np.uint8)


def check_round_trip(bitmap):
    h, w = bitmap.shape
    expected = coco.encode(np.asfortranarray(bitmap))
    counts = masks.encode(bitmap)
    assert counts == expected["counts"]
    assert masks.encode(bitmap.astype(bool)) == counts
    decoded = masks.decode(counts, h, w)
    assert decoded.dtype == np.uint8
    assert (decoded == bitmap).all()
    assert masks.area(counts) == coco.area(expected)
    assert masks.bbox(counts, h, w) == tuple(coco.toBbox(expected))
    assert masks.counts_to_string(masks.string_to_counts(counts)) == counts


@pytest.mark.slow
@given(bitmaps)
@settings(max_examples=300, deadline=None)
def test_identical_to_pycocotools_on_small_bitmaps(bitmap):
    check_round_trip(bitmap)


@pytest.mark.parametrize("seed", range(30))
def test_identical_to_pycocotools_on_blobs(seed):
    check_round_trip(blobs(seed))


@pytest.mark.parametrize("shape", [(1, 1), (1, 70_000), (70_000, 1), (2100, 2100)])
@pytest.mark.parametrize("value", [0, 1])
def test_identical_to_pycocotools_on_long_runs(shape, value):
    check_round_trip(np.full(shape, value, np.uint8))
    mixed = np.full(shape, value, np.uint8)
    mixed[-1, -1] = 1 - value
    check_round_trip(mixed)


@pytest.mark.slow
@given(st.binary(max_size=60), st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=500, deadline=None)
def test_hostile_strings_decode_or_raise_value_error(data, h, w):
    try:
        bitmap = masks.decode(data, h, w)
    except ValueError:
        return
    assert bitmap.shape == (h, w)


@pytest.mark.slow
@given(bitmaps, st.data())
@settings(max_examples=300, deadline=None)
def test_mutated_strings_decode_as_pycocotools_or_raise(bitmap, data):
    h, w = bitmap.shape
    raw = bytearray(masks.encode(bitmap))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(48, 111))
    try:
        decoded = masks.decode(bytes(raw), h, w)
    except ValueError:
        return  # pycocotools reads or writes out of bounds on many of these
    assert (decoded == coco.decode({"size": [h, w], "counts": bytes(raw)})).all()


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (b"", "sum to 0"),
        (b"5", "sum to 5"),
        (b"P", "ends inside"),
        (b"PPPPPPPP0", "9 characters"),
        (b"\x00", "byte 0 at 0"),
        ("é", "ASCII"),
        (b"O", "outside"),  # -1
        (b"PPPPPP4", "outside"),  # 2**32 and more
        (masks.encode(np.ones((4, 5))), "sum to 20"),
    ],
)
def test_malformed_strings_say_what_is_wrong(counts, message):
    with pytest.raises(ValueError, match=message):
        masks.decode(counts, 4, 4)


def test_other_shapes_are_refused():
    for shape in [(3,), (0, 4), (2, 2, 1)]:
        with pytest.raises(ValueError, match=r"shape \(H, W\)"):
            masks.encode(np.zeros(shape, bool))
    with pytest.raises(ValueError, match="canvas"):
        masks.decode(b"0", 0, 0)
    with pytest.raises(ValueError, match="run lengths"):
        masks.counts_to_string(np.array([3, -1]))


def fill_holes(bitmap):
    padded = np.pad(bitmap, 1).astype(np.uint8)
    outside = cv2.floodFill(1 - padded, None, (0, 0), 2, flags=8)[1] == 2
    return (~outside)[1:-1, 1:-1]


@pytest.mark.slow
@given(bitmaps)
@settings(max_examples=300, deadline=None)
def test_polygons_of_a_mask_give_the_mask_again(bitmap):
    h, w = bitmap.shape
    polygons = masks.to_polygons(masks.encode(bitmap), h, w)
    if not bitmap.any():
        assert polygons == []
        return
    assert all(len(p) >= 4 for p in polygons)
    back = masks.from_polygons([p.ravel().tolist() for p in polygons], h, w)
    assert (masks.decode(back, h, w) == fill_holes(bitmap)).all()
    n_parts = cv2.connectedComponents(fill_holes(bitmap).astype(np.uint8), connectivity=4)[0] - 1
    assert len(polygons) == n_parts


def test_simplified_polygons_stay_close():
    y, x = np.mgrid[:200, :300]
    disc = (x - 140) ** 2 + (y - 90) ** 2 < 60**2
    exact = masks.to_polygons(masks.encode(disc), 200, 300)
    simplified = masks.to_polygons(masks.encode(disc), 200, 300, tolerance=1.0)
    assert len(simplified) == 1
    assert len(simplified[0]) < len(exact[0]) / 3
    back = masks.decode(masks.from_polygons([simplified[0].ravel().tolist()], 200, 300), 200, 300)
    assert (back & disc).sum() / (back | disc).sum() > 0.97


def test_polygons_are_rasterised_as_pycocotools_does():
    rng = np.random.default_rng(0)
    for _ in range(50):
        h, w = (int(v) for v in rng.integers(1, 200, 2))
        polygons = [
            (rng.uniform(-0.3, 1.3, (rng.integers(3, 12), 2)) * (w, h)).ravel().tolist()
            for _ in range(rng.integers(1, 4))
        ]
        expected = coco.decode(coco.frPyObjects(polygons, h, w)).any(axis=2)
        assert (masks.decode(masks.from_polygons(polygons, h, w), h, w) == expected).all()


@pytest.mark.parametrize(
    ("polygons", "message"),
    [
        ([], "at least one"),
        ([[0, 0, 1, 1]], "3 or more"),
        ([[0, 0, 1, 1, 2]], "3 or more"),
        ([["a", 0, 1, 1, 2, 2]], "flat list"),
        ([[0, 0, 1, 1, float("nan"), 2]], "far outside"),
        ([[0, 0, 1, 1, 1e9, 2]], "far outside"),
    ],
)
def test_malformed_polygons_are_refused(polygons, message):
    with pytest.raises(ValueError, match=message):
        masks.from_polygons(polygons, 10, 10)


def test_a_part_inside_a_hole_belongs_to_the_filled_outline():
    bitmap = np.ones((9, 9), np.uint8)
    bitmap[2:7, 2:7] = 0
    bitmap[4, 4] = 1
    (ring,) = masks.to_polygons(masks.encode(bitmap), 9, 9)
    assert ring.tolist() == [[0, 0], [9, 0], [9, 9], [0, 9]]
