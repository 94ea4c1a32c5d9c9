"""Crops keep images and labels together; bad data is reported by name."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.errors import UsageError
from segcore.training.augment import random_crop
from segcore.training.config import AugmentConfig, DataConfig
from segcore.training.data import renumber_instances
from segcore.training.labelled_images import read_coco, read_labelled_set


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_crops_keep_image_and_labels_together(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.zeros((60, 90), np.int32)
    labels[20:40, 30:60] = 1
    labels[45:58, 5:25] = 2
    image = np.repeat((labels * 100).astype(np.uint8)[..., None], 3, 2)
    config = AugmentConfig(crop=64, min_side=64, max_side=128, colour=0, noise=0)
    crop, crop_labels = random_crop(image, labels, config, rng)
    assert crop.shape == (64, 64, 3)
    # Away from edges, where interpolation mixes, the colour must be that of the label.
    for k in (1, 2):
        inner = cv2.erode((np.pad(crop_labels, 2) == k).astype(np.uint8), np.ones((5, 5)))
        assert (crop[inner[2:-2, 2:-2] > 0] == k * 100).all()
    renumbered, boxes, kept = renumber_instances(crop_labels, 2)
    for g, (box, old) in enumerate(zip(boxes, kept, strict=True)):
        y, x = np.nonzero(renumbered == g + 1)
        assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert ((renumbered == g + 1) == (crop_labels == old + 1)).all()


def test_bad_data_is_reported_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the annotations .*none\.json"):
        read_coco(tmp_path / "none.json")
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    with pytest.raises(UsageError, match="is not JSON"):
        read_coco(bad)
    bad.write_text('{"images": []}')
    with pytest.raises(UsageError, match="no list `annotations`"):
        read_coco(bad)
    entry = {"id": 1, "file_name": "gone.png", "height": 4, "width": 4}
    document = {"images": [entry], "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    bad.write_text(json.dumps(document))
    with pytest.raises(UsageError, match=r"gone\.png"):
        read_labelled_set(bad, DataConfig(images=tmp_path, train=bad, val=bad))
