"""`segcore.load_model(name).predict(image)`: any kind of input, the results of a job."""

from __future__ import annotations

import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import segcore
from segcore.errors import CheckpointError, StorageError, UsageError
from segcore.output.results import open_results
from segcore.prediction import Predictor, load_model
from segcore.storage import Storage
from segcore.testing.synthetic import render_scene
from tests.support import serial_run
from tests.support.jobs import job_config


@pytest.fixture(scope="module")
def model() -> Predictor:
    return load_model("nuclei-yolo11n", conf=0.4, imgsz=224, device="cpu")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    grey = render_scene(seed=3, index=0).pixels[:160, :224]
    return np.repeat(grey[:, :, None], 3, axis=2)


def _png(pixels: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1])


@pytest.fixture
def link(tmp_path: Path, pixels: np.ndarray) -> Iterator[str]:
    """A web server on loopback with one image."""
    (tmp_path / "a b.png").write_bytes(_png(pixels))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    def handler(*args: object) -> Quiet:
        return Quiet(*args, directory=str(tmp_path))  # type: ignore[arg-type]

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_every_kind_of_input_gives_the_same_masks(
    model: Predictor, pixels: np.ndarray, tmp_path: Path, link: str
) -> None:
    (tmp_path / "photo.png").write_bytes(_png(pixels))
    expected = model.predict(pixels)
    assert len(expected) > 3
    inputs = [
        str(tmp_path / "photo.png"),
        tmp_path / "photo.png",
        f"{link}/a%20b.png",
        _png(pixels),
        bytearray(_png(pixels)),
        Image.fromarray(pixels),
        pixels[:, ::-1][:, ::-1],  # not contiguous
    ]
    for image in inputs:
        found = model.predict(image)
        assert found.instances.counts == expected.instances.counts, image
        np.testing.assert_array_equal(found.boxes, expected.boxes)
        np.testing.assert_array_equal(found.scores, expected.scores)


def test_the_masks_are_those_of_a_job(pixels: np.ndarray, tmp_path: Path) -> None:
    Storage().write(f"{tmp_path}/in/a.png", _png(pixels))
    job = f"{tmp_path}/in", f"{tmp_path}/out", "model.imgsz=224"
    config = job_config(*job, model="nuclei-yolo11n")
    report = serial_run.segment(config)
    rows = next(open_results(Storage(), report.output).instances()).to_pylist()
    found = load_model(**config.model.options().model_dump()).predict(pixels)
    assert [row["counts"] for row in rows] == [text.decode() for text in found.instances.counts]
    assert [row["score"] for row in rows] == [float(score) for score in found.scores]
    assert [row["category"] for row in rows] == found.labels


def test_masks_boxes_and_tables_agree(model: Predictor, pixels: np.ndarray) -> None:
    found = model.predict(pixels)
    stack = found.masks
    assert stack.shape == (len(found), *pixels.shape[:2])
    assert stack.dtype == bool
    for number, row in enumerate(found):
        np.testing.assert_array_equal(stack[number], coco_mask.decode(row["segmentation"]) > 0)
        np.testing.assert_array_equal(found.mask(number), stack[number])
        assert row["area"] == stack[number].sum()
        assert row["label"] == found.labels[number]
    table = found.to_arrow()
    assert table.num_rows == len(found)
    assert table["score"].to_pylist() == [row["score"] for row in found]
    assert table["counts"].to_pylist() == [row["segmentation"]["counts"] for row in found]
    assert f"{len(found)} instances on 224 x 160 pixels" in str(found)


def test_a_picture_shows_masks_and_labels(
    model: Predictor, pixels: np.ndarray, tmp_path: Path
) -> None:
    found = model.predict(pixels)
    bare = np.asarray(found.plot(scale=2, labels=False))
    labelled = np.asarray(found.plot(scale=2))
    assert bare.shape == labelled.shape == (320, 448, 3)
    assert (bare != labelled).any()
    assert found.save_plot(tmp_path / "found.jpg").read_bytes()[:2] == b"\xff\xd8"
    nothing = load_model(conf=1.0, imgsz=224, device="cpu").predict(pixels)
    assert len(nothing) == 0
    np.testing.assert_array_equal(np.asarray(nothing.plot(scale=1, as_read=True)), pixels)
    assert nothing.masks.shape == (0, 160, 224)
    assert nothing.to_arrow().num_rows == 0


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 4), np.uint8), "shape (4, 4, 4)"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((0, 4, 3), np.uint8), "shape (0, 4, 3)"),
        (b"no image at all", "this image is not segmented"),
        (b"", "(empty)"),
        (17, "int is no image"),
        (None, "NoneType is no image"),
    ],
)
def test_what_is_no_image_is_a_usage_error(model: Predictor, image: object, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        model.predict(image)
    assert message in caught.value.message


def test_what_cannot_be_read_is_said(model: Predictor, link: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        model.predict(f"{link}/nothing.png?token=secret")
    assert "HTTP 404" in caught.value.message
    assert "secret" not in caught.value.message
    with pytest.raises(StorageError):
        model.predict(tmp_path / "nothing.png")
    with pytest.raises(StorageError) as caught:
        model.predict("http://127.0.0.1:9/a.png")
    assert "cannot be read" in caught.value.message


def test_wrong_options_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="imgsz"):
        load_model(imgsz=100)
    with pytest.raises(UsageError, match="confidence"):
        load_model(confidence=0.4)
    with pytest.raises(CheckpointError):
        load_model("no-such-model")
    assert segcore.load_model is load_model


def test_grey_arrays_are_taken(model: Predictor, pixels: np.ndarray) -> None:
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "png")
    assert model.predict(grey).instances.counts == model.predict(buffer.getvalue()).instances.counts
