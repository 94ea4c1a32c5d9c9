"""Where labels are written on pictures."""

from __future__ import annotations

import numpy as np

from segcore.visualize.labels import draw_labels
from segcore.visualize.overlays import COLOURS


def _visible(picture: np.ndarray, number: int) -> int:
    """Pixels of the colour of a label."""
    return int((picture == COLOURS[number]).all(axis=2).sum())


def test_labels_of_boxes_at_one_place_do_not_cover_each_other() -> None:
    image = np.zeros((300, 400, 3), np.uint8)
    boxes = np.array([[150.0, 140, 80, 40]] * 4)
    texts = ["nucleus 0.91"] * 4
    crowded = draw_labels(image, texts, boxes)
    alone = [
        _visible(draw_labels(image, texts[: k + 1], np.array([[150.0, 40 + 60 * k, 80, 40]
                                                              for k in range(k + 1)])), k)
        for k in range(4)
    ]  # fmt: skip
    assert [_visible(crowded, k) for k in range(4)] == alone
    assert min(alone) > 500


def test_a_label_stays_inside_the_picture() -> None:
    image = np.zeros((60, 120, 3), np.uint8)
    places = [(-30, -30), (100, 0), (0, 50), (115, 55), (40, 20)]
    shown = [
        _visible(draw_labels(image, ["cell 0.50"], np.array([[x, y, 8.0, 8.0]])), 0)
        for x, y in places
    ]
    assert len(set(shown)) == 1


def test_more_labels_than_places_are_all_drawn_somewhere() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    picture = draw_labels(image, ["a 0.9", "b 0.8", "c 0.7"] * 3, np.zeros((9, 4)))
    assert _visible(picture, 0) > 50


def test_a_picture_without_labels_is_the_image() -> None:
    image = np.full((20, 30, 3), 7, np.uint8)
    assert (draw_labels(image, [], np.zeros((0, 4))) == image).all()
