"""Which image a task means; what is not certain gets no masks."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from segcore.annotators.edition_images import EditionImages, NoAnswer
from segcore.annotators.task_names import MAX_LINK_CHARS, TaskName, name_of_link, upload_name
from segcore.errors import UsageError
from segcore.exports.export import export
from segcore.exports.formats.base import Tally
from segcore.exports.options import ExportOptions
from segcore.masks import decode
from segcore.output.results import Results
from tests.annotators.conftest import NAMES, drawn_masks
from tests.support.masks_output import HEIGHT, WIDTH


@pytest.fixture
def images(results: Results) -> EditionImages:
    return EditionImages(results, ExportOptions())


def _resolve(uri: str) -> str:
    return f"/tasks/7/resolve/?fileuri={base64.urlsafe_b64encode(uri.encode()).decode()}"


@pytest.mark.parametrize(
    ("link", "name"),
    [
        ("a.png", TaskName("a.png")),
        ("north/a.png", TaskName("north/a.png")),
        ("s3://bucket/north/a#1?.png", TaskName("s3://bucket/north/a#1?.png")),
        ("/data/local-files/?d=images/north/b%201.png", TaskName("images/north/b 1.png")),
        ("https://host/x/north/b%201.png?X-Amz-Signature=9", TaskName("/x/north/b 1.png")),
        ("https://studio/data/local-files/?d=a.png", TaskName("a.png")),
        ("/data/upload/3/0123abcd-b_1.png", TaskName("b_1.png", is_upload=True)),
        ("http://127.0.0.1:8080/data/upload/3/0123abcd-b_1.png", TaskName("b_1.png", True)),
        (_resolve("s3://bucket/in/a.png"), TaskName("s3://bucket/in/a.png")),
        ("/data/in/a.png", TaskName("/data/in/a.png")),
        (_resolve(_resolve("s3://bucket/a.png")), None),
        ("/tasks/7/resolve/?fileuri=!", None),
        ("/data/local-files/?x=a.png", None),
        ("https://host/", None),
        ("", None),
        ("x" * (MAX_LINK_CHARS + 1), None),
    ],
)
def test_the_name_in_a_link(link: str, name: TaskName | None) -> None:
    assert name_of_link(link) == name


def test_names_of_uploaded_copies() -> None:
    assert upload_name("north/b 1 (2).png") == "b_1_2.png"
    assert upload_name("ümläut.jpg") == "ümläut.jpg"


def test_each_image_is_found_by_all_that_names_it_alone(
    images: EditionImages, archive: Path
) -> None:
    """And its masks are its own, with their classes and scores."""
    for name in NAMES:
        image_id = f"{archive}/in/{name}"
        spellings = [image_id, name, name.replace("/", "\\"), f"s3://elsewhere/in/{name}"]
        for text in [*spellings, *([name.rpartition("/")[2]] if "a.png" not in name else [])]:
            answer = images.answer(TaskName(text), (WIDTH, HEIGHT))
            assert answer.image.image_id == image_id, text
            drawn = drawn_masks().get(name, [])
            shown = [images.context.labels[place].name for place in answer.image.labels]
            assert shown == [{3: "cat", 5: "dog & <b>"}[one.category] for one in drawn]
            for counts, one in zip(answer.image.counts, drawn, strict=True):
                assert (decode(counts, HEIGHT, WIDTH) == one.mask).all()
        assert images.answer_id(image_id).image.image_id == image_id


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        (TaskName("a.png"), None, "several images .* could be meant"),
        (TaskName("a"), None, "several images"),
        (TaskName("a.png", is_upload=True), None, "such as north/a.png, south/a.png"),
        (TaskName("d.png", is_upload=True), None, "several images"),
        (TaskName("b_1.png"), None, "no image of the edition has this name"),
        (TaskName("orth/a.png"), None, "no image"),
        (TaskName("west/a.png"), None, "no image"),
        (TaskName("C.png"), None, "no image"),
        (TaskName("broken/d.png"), None, "failed in the run"),
        (TaskName("c.png"), (WIDTH, HEIGHT + 1), f"{WIDTH} x {HEIGHT + 1} pixels"),
        (TaskName("c.png"), (HEIGHT, WIDTH), "ignored its EXIF orientation"),
    ],
)
def test_what_is_not_certain_has_no_answer(
    images: EditionImages, name: TaskName, size: tuple[int, int] | None, reason: str
) -> None:
    with pytest.raises(NoAnswer, match=reason):
        images.answer(name, size)


def test_an_image_that_failed_can_be_meant_as_well(images: EditionImages) -> None:
    """`d.png` is the image of that path; a longer path could mean the broken one as well."""
    assert images.answer(TaskName("d.png")).image.name == "d.png"
    with pytest.raises(NoAnswer, match=r"several images .* such as broken/d.png, d.png"):
        images.answer(TaskName("in/broken/d.png"))


def test_filters_withhold_images_and_do_not_decide_which_is_meant(results: Results) -> None:
    images = EditionImages(results, ExportOptions(include=("north/*",), min_score=0.85))
    with pytest.raises(NoAnswer, match="several"):
        images.answer(TaskName("a.png"))
    with pytest.raises(NoAnswer, match="left out by the filters"):
        images.answer(TaskName("c.png"))
    assert len(images.answer(TaskName("north/a.png")).image.counts) == 1


def test_whole_names_only(results: Results) -> None:
    images = EditionImages(results, ExportOptions(), whole_names=True)
    assert images.answer(TaskName("north/b 1.png")).image.counts
    with pytest.raises(NoAnswer, match="no image"):
        images.answer(TaskName("b 1.png"))


def test_names_of_an_export(results: Results, archive: Path, tmp_path: Path) -> None:
    """Its images alone are known, under its names."""
    dest = str(tmp_path / "dest")
    export(results, dest, ExportOptions(include=("north/*",), format="cvat"))
    images = EditionImages(results, ExportOptions(), dest=dest)
    assert images.answer(TaskName("a.png")).image.name == "north/a.png"
    with pytest.raises(NoAnswer, match="no image"):
        images.answer(TaskName("c.png"))
    with pytest.raises(UsageError, match="is no export of segcore"):
        EditionImages(results, ExportOptions(), dest=str(archive / "in"))


def test_losses_are_said(results: Results) -> None:
    images = EditionImages(results, ExportOptions(max_per_image=1))
    answer = images.answer(TaskName("c.png"))
    assert len(answer.image.counts) == 1
    assert answer.losses(Tally()) == ["1 masks over the limit of an image left out"]
    assert images.answer(TaskName("c.png")).losses(Tally()) == answer.losses(Tally())
