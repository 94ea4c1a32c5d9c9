"""Labels and pixels belong to each other: folders, EXIF orientation, and what is left out."""

from __future__ import annotations

import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from segcore.errors import UsageError
from segcore.instances import Instances
from segcore.models.base import ModelOptions
from segcore.models.checkpoints import Checkpoint
from segcore.training.config import DataConfig, TrainConfig, ValidationConfig
from segcore.training.data import label_images, training_notes
from segcore.training.labelled_images import LabelledSet, read_labelled_set
from segcore.training.validate import (
    checkpoint_categories,
    load_validation,
    measure_accuracy,
)
from tests.support.coco_states import REFUSE, State, states

HEIGHT, WIDTH = 40, 64


def _picture(x: int, y: int) -> np.ndarray:
    """Dark, with a bright rectangle of 16 x 8 pixels."""
    image = np.full((HEIGHT, WIDTH, 3), 30, np.uint8)
    image[y : y + 8, x : x + 16] = 220
    return image


def _save(path: Path, image: np.ndarray, orientation: int = 1) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=95, subsampling=0, exif=exif.tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.getvalue())


def _rectangle(x: int, y: int, w: int, h: int) -> list[list[int]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def _read(folder: Path, document: dict, **options: str) -> LabelledSet:
    path = folder / "coco.json"
    path.write_text(json.dumps(document))
    data = {"images": folder / "images", "train": path, "val": path, **options}
    return read_labelled_set(path, DataConfig.model_validate(data))


def _document(*entries: tuple[str, list]) -> dict:
    """One rectangle for each file name, on stored pixels."""
    return {
        "images": [
            {"id": f"i{n}", "file_name": name, "width": WIDTH, "height": HEIGHT}
            for n, (name, _) in enumerate(entries)
        ],
        "annotations": [
            {"id": n + 1, "image_id": f"i{n}", "category_id": "c", "segmentation": polygon}
            for n, (_, polygon) in enumerate(entries)
        ],
        "categories": [{"id": "c", "name": "thing"}],
    }


def _assert_labels_fit(labelled: LabelledSet) -> None:
    """Bright pixels are those of the instance."""
    for item in label_images(labelled):
        bright = item.image.mean(axis=2) > 128
        assert (bright == (item.labels == 1)).mean() > 0.995
        assert bright.sum() > 100


def test_folders_of_file_names_are_kept(tmp_path: Path) -> None:
    places = {"a/1.jpg": (4, 5), "b/1.jpg": (30, 20), "1.jpg": (40, 2)}
    for name, place in places.items():
        _save(tmp_path / "images" / name, _picture(*place))
    entries = [(name, _rectangle(*place, 16, 8)) for name, place in places.items()]
    _assert_labels_fit(_read(tmp_path, _document(*entries)))
    entries[1] = ("b\\1.jpg", entries[1][1])
    labelled = _read(tmp_path, _document(*entries))
    _assert_labels_fit(labelled)
    assert not [note for note in labelled.notes if "fewer folders" in note]


def test_a_folder_that_is_not_there_is_dropped_unless_images_would_share_a_file(
    tmp_path: Path,
) -> None:
    _save(tmp_path / "images/1.jpg", _picture(4, 5))
    one = ("train2017/1.jpg", _rectangle(4, 5, 16, 8))
    labelled = _read(tmp_path, _document(one))
    _assert_labels_fit(labelled)
    assert "1 image found in" in labelled.notes[-1]
    with pytest.raises(UsageError, match=r"would have the pixels of .*1\.jpg.* and val/1\.jpg"):
        _read(tmp_path, _document(one, ("val/1.jpg", one[1])))


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a/../../secret.jpg", "\x00"])
def test_no_file_outside_of_the_folder_is_read(tmp_path: Path, name: str) -> None:
    _save(tmp_path / "secret.jpg", _picture(4, 5))
    (tmp_path / "images").mkdir()
    with pytest.raises(UsageError, match=r"outside of|no such file"):
        _read(tmp_path, _document((name, _rectangle(4, 5, 16, 8))))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_labels_on_stored_pixels_turn_with_them(tmp_path: Path, orientation: int) -> None:
    _save(tmp_path / "images/p.jpg", _picture(40, 5), orientation)
    document = _document(("p.jpg", _rectangle(40, 5, 16, 8)))
    document["annotations"][0]["bbox"] = [40, 5, 16, 8]
    labelled = _read(tmp_path, document, exif_labels="stored")
    _assert_labels_fit(labelled)
    (found,) = labelled.truth.objects("i0")
    assert list(found.bbox) == coco_mask.toBbox(found.rle).tolist()
    canvas = (WIDTH, HEIGHT) if orientation >= 5 else (HEIGHT, WIDTH)
    assert labelled.truth.canvas("i0") == tuple(found.rle["size"]) == canvas


def test_sizes_before_exif_rotation_are_refused_or_taken_as_shown(tmp_path: Path) -> None:
    _save(tmp_path / "images/p.jpg", _picture(40, 5), 6)
    document = _document(("p.jpg", _rectangle(HEIGHT - 5 - 8, 40, 8, 16)))  # as shown
    with pytest.raises(UsageError, match=r"p\.jpg is 40 x 64 .*orientation 6.* says 64 x 40") as e:
        _read(tmp_path, document)
    assert "data.exif_labels" in e.value.hint
    _assert_labels_fit(_read(tmp_path, document, exif_labels="shown"))
    document["images"][0] |= {"width": HEIGHT, "height": WIDTH}
    _assert_labels_fit(_read(tmp_path, document))
    document["images"][0] |= {"width": WIDTH + 1, "height": HEIGHT}
    with pytest.raises(UsageError, match="says 65 x 40"):
        _read(tmp_path, document, exif_labels="shown")


@pytest.mark.parametrize("state", [s for s in states() if s.table == "annotations"][::9], ids=str)
def test_training_checks_annotations_as_evaluating_does(tmp_path: Path, state: State) -> None:
    for name in ("a.jpg", "b.jpg"):
        _save(tmp_path / "images" / name, _picture(4, 5))
    document = _document(*((name, _rectangle(4, 5, 16, 8)) for name in ("a.jpg", "b.jpg")))
    if state.field in ("image_id", "category_id", "segmentation") and state.effect == "drop":
        row = document["annotations"][0]
        document["annotations"][0] = {**row, state.field: None}
        labelled = _read(tmp_path, document)
        assert [len(item.classes) for item in label_images(labelled)] == [0, 1]
        assert "left out" in " ".join(labelled.notes)
    elif state.effect != REFUSE:
        assert len(label_images(_read(tmp_path, document))) == 2


def test_classes_of_the_validation_set_must_be_those_of_the_training_set(tmp_path: Path) -> None:
    _save(tmp_path / "images/p.jpg", _picture(40, 5))
    document = _document(("p.jpg", _rectangle(40, 5, 16, 8)))
    training = _read(tmp_path, document)
    document["categories"][0]["name"] = "other"
    path = tmp_path / "val.json"
    path.write_text(json.dumps(document))
    data = DataConfig(images=tmp_path / "images", train=tmp_path / "coco.json", val=path)
    with pytest.raises(UsageError, match=r"class other with the id c, but .* has thing"):
        load_validation(data, training.truth)


class _PerfectModel:
    """Finds each bright disc; takes what `YoloSegModel` takes."""

    def __init__(self, checkpoint: Checkpoint, options: ModelOptions) -> None:
        self.category_id = checkpoint.meta.categories[0].id

    def preprocess(self, image: np.ndarray) -> np.ndarray:
        return image

    def forward(self, prepared: list[np.ndarray]) -> list[np.ndarray]:
        return prepared

    def postprocess(self, output: list[np.ndarray], prepared: object) -> list[Instances]:
        bright = (output[0].mean(axis=2) > 128).astype(np.uint8)
        n, parts = cv2.connectedComponents(bright)
        rles = [coco_mask.encode(np.asfortranarray(parts == k, np.uint8)) for k in range(1, n)]
        return [
            Instances(
                *bright.shape,
                boxes=np.array([coco_mask.toBbox(rle) for rle in rles], np.float32).reshape(-1, 4),
                scores=np.ones(len(rles), np.float32),
                category_ids=np.full(len(rles), self.category_id, np.int32),
                areas=np.array([coco_mask.area(rle) for rle in rles], np.int64),
                counts=[rle["counts"] for rle in rles],
            )
        ]


def test_text_ids_train_and_measure_with_notes(
    tiny_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = json.loads(tiny_config.data.train.read_text())
    for row in (*document["images"], *document["annotations"]):
        key = "image_id" if "image_id" in row else "id"
        row[key] = f"img_{row[key]}"
    document["categories"][0]["id"] = "disc"
    for annotation in document["annotations"]:
        annotation["category_id"] = "disc"
    document["annotations"][0]["segmentation"] = []
    document["annotations"][1]["iscrowd"] = 1
    tiny_config.data.train.write_text(json.dumps(document))
    config = tiny_config.model_copy(update={"validation": ValidationConfig(imgsz=96)})
    monkeypatch.setattr("segcore.training.validate.YoloSegModel", _PerfectModel)
    training = read_labelled_set(config.data.train, config.data)
    assert sum(len(image.classes) for image in label_images(training)) == 16
    text = "\n".join(training_notes(training))
    assert "1 annotation with an empty segmentation: left out (id 1)" in text
    assert "1 crowd region not trained on" in text
    labelled = load_validation(config.data, training.truth)
    assert checkpoint_categories(labelled.truth) == [{"id": 1, "name": "disc"}]
    scores = measure_accuracy(config, {}, labelled)
    assert scores.per_class[0].category_id == "disc"
    assert (scores.n_images, scores.n_ground_truth) == (6, 16)
    assert scores.mask.ap50 > 0.3  # ids of the model lead to those of the file; some discs touch
