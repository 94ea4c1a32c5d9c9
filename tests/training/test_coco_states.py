"""Training on ground truth with fields in any state: the right masks for it, or a sentence.

The masks are those of pycocotools on the document that is right for that state.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from segcore.errors import UsageError
from segcore.training.config import DataConfig
from segcore.training.data import label_images
from segcore.training.labelled_images import LabelledSet, read_labelled_set
from tests.evaluation.test_coco_states import STATES, _collide, pairs
from tests.support.coco_states import HEIGHT, REFUSE, WIDTH, State, changed, expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of the documents, each of another brightness."""
    folder = tmp_path_factory.mktemp("states")
    (folder / "images" / "f").mkdir(parents=True)
    for i in (1, 2, 3):
        grey = np.full((HEIGHT, WIDTH, 3), i, np.uint8)
        Image.fromarray(grey).save(folder / "images" / "f" / f"{i}.png")
    return folder


def masks_read(labelled: LabelledSet) -> Counter[tuple[int, str, bool, bytes]]:
    """(image by brightness, name of its class, crowd, mask) of each object."""
    truth = labelled.truth
    names = {category.id: category.name.strip().casefold() for category in truth.categories}
    return Counter(
        (int(pixels[0, 0, 0]), names[item.category_id], item.is_crowd,
         coco_mask.decode(item.rle).tobytes("F"))
        for image_id, pixels in labelled.images.items()
        for item in truth.objects(image_id)
    )  # fmt: skip


def masks_expected(document: dict[str, Any]) -> Counter[tuple[int, str, bool, bytes]]:
    """The same of a clean document, by pycocotools; objects without a pixel do not count."""
    names = {c["id"]: c["name"].strip().casefold() for c in document["categories"]}
    found: Counter[tuple[int, str, bool, bytes]] = Counter()
    for annotation in document["annotations"]:
        segmentation = annotation["segmentation"]
        rle = coco_mask.frPyObjects(segmentation, HEIGHT, WIDTH)
        rle = coco_mask.merge(rle) if isinstance(rle, list) else rle
        mask = coco_mask.decode(rle)
        name, is_crowd = names[annotation["category_id"]], annotation["iscrowd"] == 1
        found[annotation["image_id"], name, is_crowd, mask.tobytes("F")] += 1
    return found


def check(folder: Path, *chosen: State, apart: bool = False) -> None:
    """Compare the masks that training reads with those that are right."""
    document, right = changed(*chosen, apart=apart), expected(*chosen, apart=apart)
    label = " and ".join(map(str, chosen))
    path = folder / "coco.json"
    path.write_text(json.dumps(document))
    data = {"images": folder / "images", "train": path, "val": path}
    try:
        labelled = read_labelled_set(path, DataConfig.model_validate(data))
    except UsageError as error:
        is_name = any(state.field == "file_name" for state in chosen)
        # where evaluating needs only the last part of a name
        if len(error.message) > 1500 or not (right is None or is_name):
            raise AssertionError(label) from error
        return
    assert right is not None, label
    wanted = masks_expected(right)
    found = masks_read(labelled)
    extra = {key: n for key, n in (found - wanted).items() if np.frombuffer(key[3], "u1").any()}
    lacking = {key: n for key, n in (wanted - found).items() if np.frombuffer(key[3], "u1").any()}
    assert not extra, label
    assert not lacking, label
    assert len(label_images(labelled)) == 3, label
    if any(state.has_note for state in chosen if state.table == "annotations"):
        assert labelled.notes, label


@pytest.mark.parametrize("state", STATES[::12], ids=str)
def test_a_field_in_any_state(folder: Path, state: State) -> None:
    check(folder, state)


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_field_in_every_state_and_in_pairs(folder: Path) -> None:
    for state in STATES:
        check(folder, state)
    for first, second in random.Random(2).sample(pairs(), 600):
        if not _collide(first, second):
            check(folder, first, second, apart=first.field == second.field)


def test_refusals_are_generated() -> None:
    assert sum(state.effect == REFUSE for state in STATES) > 50
