"""Letterbox geometry: known cases, and the way to the canvas and back."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcore.masks import Window
from segcore.models.yolo.letterbox import PADDING_VALUE, Letterbox

SIDES = st.integers(1, 3000)


@pytest.mark.parametrize(
    ("shape", "content", "pads"),
    [
        ((480, 640), (480, 640), (80, 0, 80, 0)),
        ((427, 640), (427, 640), (106, 0, 107, 0)),  # the odd pixel goes to the bottom
        ((640, 427), (640, 427), (0, 106, 0, 107)),
        ((375, 500), (480, 640), (80, 0, 80, 0)),  # scaled up
        ((1080, 1920), (360, 640), (140, 0, 140, 0)),
        ((333, 500), (426, 640), (107, 0, 107, 0)),  # 426.24
        ((1, 10_000), (1, 640), (319, 0, 320, 0)),  # at least one pixel
    ],
)
def test_squares_have_the_known_geometry(shape, content, pads):
    box = Letterbox.fit(*shape, 640)
    assert (box.content_height, box.content_width) == content
    assert (box.top, box.left, box.bottom, box.right) == pads


@pytest.mark.parametrize(
    ("shape", "canvas", "pads"),
    [
        ((480, 640), (480, 640), (0, 0, 0, 0)),
        ((427, 640), (448, 640), (10, 0, 11, 0)),
        ((640, 427), (640, 448), (0, 10, 0, 11)),
        ((375, 500), (480, 640), (0, 0, 0, 0)),
        ((1080, 1920), (384, 640), (12, 0, 12, 0)),
        ((500, 500), (640, 640), (0, 0, 0, 0)),
        ((1, 10_000), (32, 640), (15, 0, 16, 0)),
    ],
)
def test_rectangles_have_as_little_padding_as_possible(shape, canvas, pads):
    box = Letterbox.fit(*shape, 640, "rect")
    assert (box.canvas_height, box.canvas_width) == canvas
    assert (box.top, box.left, box.bottom, box.right) == pads
    square = Letterbox.fit(*shape, 640)
    assert (box.content_height, box.content_width) == (square.content_height, square.content_width)


@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((480, 640), Window(20, 0, 140, 160, 1)),
        ((428, 640), Window(53, 0, 267, 320, 2)),
        ((427, 640), Window(106, 0, 533, 640, 4)),
        ((640, 640), Window(0, 0, 160, 160, 1)),
    ],
)
def test_masks_are_read_on_whole_pixels(shape, window):
    assert Letterbox.fit(*shape, 640).mask_window() == window


@given(
    height=SIDES,
    width=SIDES,
    size=st.sampled_from([32, 320, 640, 1024]),
    shape=st.sampled_from(["square", "rect"]),
)
def test_content_and_padding_add_up_to_the_canvas(height, width, size, shape):
    box = Letterbox.fit(height, width, size, shape)
    assert box.top + box.content_height + box.bottom == box.canvas_height
    assert box.left + box.content_width + box.right == box.canvas_width
    if shape == "square":
        assert (box.canvas_height, box.canvas_width) == (size, size)
    else:
        assert max(box.canvas_height, box.canvas_width) == size
        assert box.canvas_height % 32 == box.canvas_width % 32 == 0
        assert max(box.top + box.bottom, box.left + box.right) < 32
    assert max(box.content_height, box.content_width) == size
    assert 0 <= box.bottom - box.top <= 1
    assert 0 <= box.right - box.left <= 1
    window = box.mask_window()
    assert 0 <= window.top < window.bottom <= box.canvas_height // 4 * window.upsample
    assert 0 <= window.left < window.right <= box.canvas_width // 4 * window.upsample


@given(
    height=SIDES,
    width=SIDES,
    size=st.sampled_from([320, 640]),
    shape=st.sampled_from(["square", "rect"]),
)
def test_the_content_maps_back_to_the_entire_image(height, width, size, shape):
    box = Letterbox.fit(height, width, size, shape)
    content = [box.left, box.top, box.canvas_width - box.right, box.canvas_height - box.bottom]
    larger = [-50.0, -50.0, size + 50.0, size + 50.0]
    mapped = box.boxes_to_image(np.array([content, larger], np.float32))
    assert mapped.dtype == np.float32
    np.testing.assert_allclose(mapped[0], [0, 0, width, height], rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(mapped[1], [0, 0, width, height])  # clipped


def test_pixels_keep_their_channels_and_their_place():
    image = np.random.default_rng(0).integers(0, 256, (50, 100, 3), np.uint8)
    box = Letterbox.fit(50, 100, 64)
    canvas = box.apply(image)
    assert canvas.shape == (3, 64, 64)
    assert canvas.dtype == np.uint8
    assert canvas.transpose(1, 2, 0).flags.c_contiguous
    content = canvas[:, 16:48]
    expected = cv2.resize(image, (64, 32), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(content, expected.transpose(2, 0, 1))
    assert (canvas[:, :16] == PADDING_VALUE).all()
    assert (canvas[:, 48:] == PADDING_VALUE).all()
    tight = Letterbox.fit(50, 100, 64, "rect").apply(image)
    np.testing.assert_array_equal(tight, content)
    same = Letterbox.fit(64, 64, 64).apply(canvas.transpose(1, 2, 0).copy())
    np.testing.assert_array_equal(same, canvas)  # not resampled


def _bright_centre(canvas):
    """Centre of what is bright on a canvas, (y, x) in its pixels."""
    weight = canvas[0].astype(float) - canvas[0].min()
    return [
        (weight.sum(1 - axis) * np.arange(canvas.shape[1 + axis])).sum() / weight.sum()
        for axis in (0, 1)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("beyond", [0, 1, 7])
def test_reduced_images_are_placed_where_the_original_is(factor, beyond):
    height, width = 2048 - beyond, 2560 - beyond
    y, x = np.mgrid[:height, :width]
    blob = 250 * np.exp(-((y - 1900) ** 2 + (x - 2400) ** 2) / (2 * 40**2))  # far from the corner
    image = np.repeat(blob.round().astype(np.uint8)[..., None], 3, axis=2)
    padded = np.pad(
        image.astype(float), [(0, -height % factor), (0, -width % factor), (0, 0)], mode="edge"
    )
    blocks = padded.reshape(-(-height // factor), factor, -(-width // factor), factor, 3)
    reduced = blocks.mean(axis=(1, 3)).round().astype(np.uint8)
    box = Letterbox.fit(height, width, 256, "rect")
    rows = slice(box.top, box.canvas_height - box.bottom)
    expected = _bright_centre(box.apply(image)[:, rows])
    actual = _bright_centre(box.apply(reduced)[:, rows])
    # With the pixels beyond the original scaled into the content, too, it would be off by 0.08 to
    # 0.6.
    np.testing.assert_allclose(actual, expected, atol=0.06)


def test_reduced_images_must_be_at_least_as_large_as_the_scaled_one():
    box = Letterbox.fit(640, 640, 320)
    assert box.apply(np.zeros((320, 320, 3), np.uint8)).shape == (3, 320, 320)
    for shape in ((160, 160, 3), (320, 319, 3), (321, 321, 3), (1280, 1280, 3), (320, 320)):
        with pytest.raises(ValueError, match="expected uint8 pixels of shape"):
            box.apply(np.zeros(shape, np.uint8))


def test_images_of_another_size_or_type_are_refused():
    with pytest.raises(ValueError, match="expected uint8 pixels of shape"):
        Letterbox.fit(5, 6, 32).apply(np.zeros((6, 5, 3), np.uint8))
    with pytest.raises(ValueError, match="got float64"):
        Letterbox.fit(5, 6, 32).apply(np.zeros((5, 6, 3)))
