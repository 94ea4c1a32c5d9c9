"""Bitmaps of many masks at once are those that pycocotools makes one by one."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco

from segcore.masks.bitmaps import to_bitmaps


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98, 1.0])
def test_each_bitmap_is_the_box_of_the_mask(share: float) -> None:
    rng = np.random.default_rng(int(share * 100))
    for _ in range(40):
        height, width = rng.integers(1, 40, 2).tolist()
        drawn = [rng.random((height, width)) < share for _ in range(int(rng.integers(1, 6)))]
        rles = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in drawn]
        bitmaps = to_bitmaps([rle["counts"].decode() for rle in rles], height, width)
        for mask, rle, bitmap in zip(drawn, rles, bitmaps, strict=True):
            if not mask.any():
                assert bitmap is None
                continue
            assert bitmap is not None
            box = [bitmap.left, bitmap.top, bitmap.width, bitmap.height]
            assert box == coco.toBbox(rle).tolist()
            rows = slice(bitmap.top, bitmap.top + bitmap.height)
            assert (bitmap.pixels == mask[rows, bitmap.left : bitmap.left + bitmap.width]).all()


def test_a_bad_string_has_no_bitmap_and_its_neighbours_have() -> None:
    good = coco.encode(np.asfortranarray(np.eye(6, dtype=np.uint8)))["counts"].decode()
    bad = ["", "o", "~", "é", good + "1", good[:-1], "0" * 400, "oooooooo1", "11"]
    texts = [text for one in bad for text in (good, one)]
    bitmaps = to_bitmaps([*texts, good], 6, 6)
    assert [bitmap is not None for bitmap in bitmaps] == [True, False] * len(bad) + [True]
    assert to_bitmaps([good], 7, 6) == [None]
    assert to_bitmaps([good], 0, 6) == [None]
    assert to_bitmaps([], 6, 6) == []
