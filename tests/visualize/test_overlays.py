"""Overlays show the right pixels in the right colours; sheets keep them legible and in place."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from segcore import masks
from segcore.visualize.overlays import COLOURS, Tile, brighten, contact_sheet, overlay, to_png


def _mask(height: int, width: int, y: int, x: int, side: int) -> bytes:
    bitmap = np.zeros((height, width), bool)
    bitmap[y : y + side, x : x + side] = True
    return masks.encode(bitmap)


def test_only_masked_pixels_change() -> None:
    image = np.full((60, 80, 3), 90, np.uint8)
    before = image.copy()
    drawn = overlay(image, [_mask(60, 80, 10, 20, 20), _mask(60, 80, 35, 50, 15)])
    np.testing.assert_array_equal(image, before)
    inside = np.zeros((60, 80), bool)
    inside[10:30, 20:40] = inside[35:50, 50:65] = True
    assert (drawn[~inside] == 90).all()
    assert (drawn[inside] != 90).any(axis=-1).all()


def test_outlines_are_opaque_and_fills_translucent() -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    drawn = overlay(image, [_mask(60, 80, 10, 20, 20), _mask(60, 80, 35, 50, 15)])
    assert tuple(drawn[10, 30]) == COLOURS[0]
    assert tuple(drawn[35, 57]) == COLOURS[1]
    assert 0 < drawn[20, 30].max() < max(COLOURS[0])


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.5])
def test_scaling_keeps_masks_in_place(scale: float) -> None:
    drawn = overlay(np.zeros((60, 80, 3), np.uint8), [_mask(60, 80, 10, 20, 20)], scale)
    assert drawn.shape == (round(60 * scale), round(80 * scale), 3)
    rows, columns = np.nonzero(drawn.any(axis=-1))
    for actual, expected in (
        (rows.min(), 10), (rows.max() + 1, 30), (columns.min(), 20), (columns.max() + 1, 40),
    ):  # fmt: skip
        assert abs(actual - expected * scale) <= 1


def test_a_mask_on_another_canvas_is_refused() -> None:
    with pytest.raises(ValueError, match="60x80"):
        overlay(np.zeros((60, 80, 3), np.uint8), [_mask(50, 80, 10, 20, 20)])


def test_dark_images_are_brightened_and_bright_ones_unchanged() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (4, 1, 3))
    np.testing.assert_array_equal(brighten(ramp), ramp)
    brightened = brighten(ramp // 10)
    assert 230 <= brightened.max() <= 255
    assert not brighten(np.zeros((4, 4, 3), np.uint8)).any()


def test_every_tile_lies_completely_in_the_sheet() -> None:
    sizes = [(256, 256), (520, 696), (900, 30), (1, 1), (256, 256)]
    tiles = [
        Tile(np.full((h, w, 3), 220, np.uint8) * np.array([1, 0, 0], np.uint8), [], f"{n}.png")
        for n, (h, w) in enumerate(sizes)
    ]
    sheet = contact_sheet(tiles, "Title", "Note", columns=2, side=200)
    red = (sheet == (220, 0, 0)).all(axis=-1).astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(red)
    shapes = sorted((int(s[cv2.CC_STAT_HEIGHT]), int(s[cv2.CC_STAT_WIDTH])) for s in stats[1:])
    assert count - 1 == len(tiles)
    assert shapes == [(149, 200), (200, 7), (200, 200), (200, 200), (200, 200)]


def test_text_is_written_and_long_names_lose_their_beginning() -> None:
    image = np.zeros((50, 50, 3), np.uint8)
    long_name = "a/very/long/path/" * 20 + "end.png"
    sheets = [
        contact_sheet([Tile(image, [], title)], "T", columns=1, side=300)
        for title in (long_name, "b" + long_name, "", "ü.png")
    ]
    np.testing.assert_array_equal(sheets[0], sheets[1])  # the difference was cut off
    assert (sheets[0] != sheets[2]).any()
    assert (sheets[3] != sheets[2]).any()
    margin = sheets[0][:, -10:]
    assert (margin == margin[0, 0]).all()


def test_png_holds_the_pixels_and_empty_sheets_are_refused() -> None:
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    decoded = cv2.imdecode(np.frombuffer(to_png(image), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), image)
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([], "Title")


def test_a_caption_of_any_length_is_cut_at_once() -> None:
    tile = Tile(np.zeros((4, 4, 3), np.uint8), [], "x" * 2_000_000, "y" * 2_000_000)
    assert contact_sheet([tile], "title").shape[2] == 3  # did not end before
