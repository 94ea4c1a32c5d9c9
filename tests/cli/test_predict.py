"""`segcore predict IMAGE`: what was found, and a picture of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from segcore.cli.predict import default_picture
from segcore.testing.synthetic import render_scene
from tests.support.commands import call_segcore


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(render_scene(seed=3, index=0).pixels[:96, :128]).save(path)
    return path


def test_it_prints_what_it_found_and_writes_a_picture(photo: Path) -> None:
    picture = photo.with_name("found.png")
    small = ("--set", "model.imgsz=128", "--device", "cpu", "--out", str(picture))
    done = call_segcore("predict", str(photo), *small)
    assert done.returncode == 0, done.stderr
    assert "on 128 x 96 pixels: nucleus" in done.stdout
    assert Image.open(picture).size == (512, 384)  # small images are enlarged
    document = json.loads(call_segcore("predict", str(photo), *small, "--json").stdout)
    assert document["model"] == "nuclei-yolo11n"
    assert f"{len(document['instances'])} instances" in done.stdout
    assert document["plot"] == str(picture)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["nowhere.jpg"], 2, "nowhere.jpg"),
        (["nowhere.jpg", "--model", "no-such-model"], 2, "no-such-model"),
        (["nowhere.jpg", "--set", "model.conf=2"], 2, "model.conf"),
    ],
)
def test_errors_are_sentences(args: list[str], code: int, message: str) -> None:
    done = call_segcore("predict", *args)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_picture_that_cannot_be_written_is_an_error(photo: Path) -> None:
    for name in ("no/x.png", "x.nothing"):
        out = str(photo.parent / name)
        done = call_segcore("predict", str(photo), "--set", "model.imgsz=128", "--out", out)
        assert done.returncode == 1
        assert "cannot be written" in done.stderr


def test_the_picture_is_named_after_the_image() -> None:
    assert default_picture("photos/a.b.jpg") == Path("a.b-masks.png")
    assert default_picture("s3://bucket/deep/c.png") == Path("c-masks.png")
    assert default_picture("https://host/d.jpg?signature=x") == Path("d-masks.png")
    assert default_picture("https://host/") == Path("image-masks.png")
