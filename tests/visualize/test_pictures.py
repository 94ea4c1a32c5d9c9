"""Pictures show the masks, the scores and the reasons of their images."""

from __future__ import annotations

import numpy as np
import pytest

import segcore
from segcore import masks
from segcore.errors import UsageError
from segcore.output.image_rows import read_instances
from segcore.output.results import open_results
from segcore.storage import Storage
from segcore.visualize.labels import labels_fit
from segcore.visualize.overlays import COLOURS, picture_scale
from segcore.visualize.pictures import draw_card, draw_picture, draw_tile, read_pictures
from segcore.visualize.selection import Choice, Selection, select_images
from segcore.visualize.sheet import picture_name
from tests.support.finished_output import FinishedOutput, finish_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedOutput:
    return finish_run(str(tmp_path_factory.mktemp("run")), n_images=6)


def test_masks_and_labels_lie_on_their_image(finished: FinishedOutput) -> None:
    results = open_results(Storage(), finished.output)
    selected = select_images(results, Selection(Choice.FIRST, limit=20))
    pictures = {
        p.record.key.rpartition("/")[2]: p for p in read_pictures(results, selected.records)
    }
    assert len(pictures) == 7
    for name, picture in pictures.items():
        if name == "words.png":
            assert picture.image is None
            assert "not_an_image" in picture.reason
            continue
        assert picture.image is not None
        plain = draw_picture(picture, scale=1, labels=False, as_read=True)
        inside = masks.decode(picture.counts()[0], *picture.image.shape[:2]) > 0
        assert (plain[~inside] == picture.image[~inside]).all()
        assert (plain[inside] != picture.image[inside]).any(axis=-1).all()
        labelled = draw_picture(picture, scale=1, as_read=True)
        assert (labelled == COLOURS[0]).all(axis=-1).sum() > 50  # the ground of the label
        assert picture.labels() == [f"bright {picture.instances['score'][0].as_py():.2f}"]


@pytest.mark.parametrize(
    ("size", "scale"),
    [((43, 56), 4), ((256, 256), 3), ((384, 100), 2), ((385, 100), 1), ((4000, 9), 1)],
)
def test_small_images_are_enlarged(size: tuple[int, int], scale: float) -> None:
    image = np.zeros((*size, 3), np.uint8)
    assert picture_scale(image) == scale
    assert picture_scale(image, 0.5) == 0.5


def test_labels_that_would_hide_the_masks_are_left_out() -> None:
    """Nineteen labels cover a third of an image of 256 pixels, and a tenth of it enlarged."""
    texts = ["nucleus 0.86"] * 19
    assert not labels_fit(texts, (256, 256, 3))
    assert labels_fit(texts, (768, 768, 3))
    assert labels_fit(texts[:3], (40, 40, 3))  # a few are always drawn
    assert not labels_fit(texts, (768, 768, 3), max_labels=18)
    assert labels_fit(texts * 3, (1500, 1500, 3))
    assert not labels_fit(texts * 4, (1500, 1500, 3))


@pytest.mark.parametrize("side", [40, 200])
def test_tiles_have_the_size_of_the_sheet(finished: FinishedOutput, side: int) -> None:
    results = open_results(Storage(), finished.output)
    selected = select_images(results, Selection(Choice.FIRST, limit=20))
    for picture in read_pictures(results, selected.records):
        tile = draw_tile(picture, side)
        assert max(tile.image.shape[:2]) == side
        assert tile.subtitle.startswith("failed" if picture.image is None else "1 instance")


def test_cards_give_the_reason_whatever_it_is() -> None:
    for size in ((30, 20), (340, 340), (640, 480)):
        cards = [draw_card(reason, False, size) for reason in ("", "why " * 200, "é\x1b[31m日本")]
        assert all(card.shape == (size[1], size[0], 3) for card in cards)
        assert size < (100, 100) or (cards[0] != cards[1]).any()


def test_plot_gives_a_picture_of_an_image(finished: FinishedOutput) -> None:
    results = segcore.open_results(finished.output)
    assert results.plot("image03.png", scale=1).size == (56, 43)
    assert results.plot("image03.png").size == (224, 172)  # small ones are enlarged
    assert results.plot("image03.png", scale=2).size == (112, 86)
    with_labels, without = (results.plot("image03.png", labels=on) for on in (True, False))
    assert (np.asarray(with_labels) != np.asarray(without)).any()
    with pytest.raises(UsageError, match="not_an_image"):
        results.plot("words.png")
    with pytest.raises(UsageError, match="end of several"):
        results.plot("image*.png")
    with pytest.raises(UsageError, match="no image nix"):
        results.plot("nix")


def test_files_are_named_after_their_images(finished: FinishedOutput) -> None:
    results = open_results(Storage(), finished.output)
    record = select_images(results, Selection(Choice.FIRST, "image03.png")).records[0]
    names = {
        "a/b.c.jpg": "b.c-masks.png",
        "a/.png": "png-masks.png",
        "a/..": "image-masks.png",
        "x/\x1b[31m/../é.tif": "é-masks.png",
        "a/" + "y" * 300 + ".jpg": "y" * 100 + "-masks.png",
    }
    for image_id, name in names.items():
        renamed = record.__class__(**{**vars(record), "image_id": image_id})
        assert picture_name(renamed) == name
    page = {**vars(record), "image_id": "a/b.tif#page=3", "page": 3}
    assert picture_name(record.__class__(**page)) == "b-page3-masks.png"


def test_instances_are_those_of_their_image(finished: FinishedOutput) -> None:
    results = open_results(Storage(), finished.output)
    records = select_images(results, Selection(Choice.FIRST, limit=20)).records
    for record, rows, damage in read_instances(results, records):
        assert not damage
        assert rows["image_id"].to_pylist() == [record.image_id] * record.n_instances
