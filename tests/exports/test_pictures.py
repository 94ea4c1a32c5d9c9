"""Images beside an export: safe unique names, whatever the archive's kind and its names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from segcore.errors import UsageError
from segcore.exports.export import export
from segcore.exports.names import UniqueNames, archive_path, safe_name, split_extension
from segcore.exports.options import ExportOptions
from segcore.images import DecodeOptions, decode_image
from segcore.output.results import Results, open_results
from segcore.sources import SourceOptions
from segcore.storage import Storage
from segcore.visualize.overlays import brighten, overlay
from tests.exports.conftest import FAMILY, PICTURES
from tests.support import serial_run
from tests.support.archives import parquet_bytes, tar_bytes
from tests.support.jobs import job_config, write_files
from tests.support.masks_output import HEIGHT, WIDTH, Drawn, picture, write_results
from tests.support.tiff_files import Page, tiff_file

HOSTILE = [
    "../../etc/passwd", "/etc/passwd", "a//b.png", "CON.png", "con", "x" * 300 + ".jpg", "",
    "..", ".hidden", "a\\b.png", "a\nb.png", "a\x1b[31m.png", "a:b*c?.png", "tail. ", "é.PNG",
    "日本/写真.jpg", "a%2fb.png", "\u202egnp.exe", "-rf.png", "d/" * 60 + "deep.png",
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE)
def test_a_safe_name_is_relative_printable_and_short(path: str) -> None:
    name = safe_name(path)
    assert name
    assert not name.startswith("/")
    assert name.isprintable()
    assert len(name.encode()) <= 255
    assert not set(name) & set('\\:*?"<>|%')
    for part in name.split("/"):
        assert part.strip(". ") == part.rstrip(". ")
        assert part not in ("", ".", "..")
        assert split_extension(part)[0].lower() not in ("con", "nul")


def test_plain_names_stay_and_no_two_share_a_stem() -> None:
    names = UniqueNames()
    given = [names.assign(path, path) for path in ["d/a.png", "d/a.jpg", "D/A.webp", "d/a.tar.png"]]
    assert given[0] == "d/a.png"
    assert given[3] == "d/a.tar.png"
    stems = [split_extension(name)[0].casefold() for name in given]
    assert len(set(stems)) == 4
    again = UniqueNames()
    assert [again.assign(p, p) for p in ["d/a.png", "d/a.jpg", "D/A.webp", "d/a.tar.png"]] == given


def test_paths_in_the_archive() -> None:
    assert archive_path("s3://b/in/x/1.jpg", "", None, "s3://b/in") == "x/1.jpg"
    assert archive_path("s3://c/y/1.jpg", "", None, "s3://b/list.csv") == "c/y/1.jpg"
    assert archive_path("s3://b/y/1.jpg", "", None, "s3://b/list.csv") == "y/1.jpg"
    assert archive_path("/d/s/0.tar#k/1.jpg", "/d/s/0.tar", None, "/d/s") == "0/k/1.jpg"
    assert archive_path("/d/0.tar#k", "/d/0.tar", None, "/d/0.tar") == "0/k"
    assert archive_path("/d/a.tif#page=2", "", 2, "/d") == "a-page2.tif"
    assert archive_path("/d/a.tif", "", 1, "/d") == "a.tif"


def test_copies_are_the_bytes_of_the_archive(results: Results, archive: Path) -> None:
    summary = export(results, str(archive / "dest"), ExportOptions(images="copy"))
    document = json.loads((archive / "dest/instances-00001.json").read_bytes())
    assert summary.counts["pictures_written"] == len(PICTURES)
    for image in document["images"]:
        path = image["segcore_image_id"].removeprefix(f"{archive}/in/")
        assert (archive / "dest/images" / image["file_name"]).read_bytes() == PICTURES[path]


def shards(kind: str) -> dict[str, bytes]:
    """An archive of one shard of this kind with three images."""
    pictures = [picture(i) for i in range(3)]
    if kind == "tar":
        return {"one.tar": tar_bytes([(f"{i}.png", data) for i, data in enumerate(pictures)])}
    return {"one.parquet": parquet_bytes({"key": ["0", "1", "2"], "image": pictures})}


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("form", ["coco", "label-studio"])
@pytest.mark.parametrize("images", ["none", "copy", "link", "url:https://host/{path}"])
def test_members_in_each_way_to_give_images(
    tmp_path: Path, kind: str, form: str, images: str
) -> None:
    write_files(tmp_path / "in", shards(kind))
    write_results(str(tmp_path / "in"), str(tmp_path / "out"), {})
    results = open_results(Storage(), str(tmp_path / "out"))
    dest = tmp_path / "dest"
    summary = export(results, str(dest), ExportOptions(format=form, images=images))
    (file,) = [*dest.glob("instances-*.json"), *dest.glob("tasks-*.json")]
    document = json.loads(file.read_bytes())
    if form == "coco":
        links = [one.get("coco_url") for one in document["images"]]
        names = [one["file_name"] for one in document["images"]]
    else:
        links = [one["data"]["image"] for one in document]
        names = [one["data"]["name"] for one in document]
    assert len(set(names)) == 3
    files = {str(path.relative_to(dest / "images")) for path in (dest / "images").rglob("*.png")}
    has_files = images in ("copy", "link")
    assert files == (set(names) if has_files else set())
    if images.startswith("url:"):
        ending = ".png" if kind == "tar" else ""
        assert links == [f"https://host/one/{i}{ending}" for i in range(3)]
    elif form == "label-studio" and has_files:
        assert links == [f"/data/local-files/?d=images/{name}" for name in names]
    elif form == "label-studio":
        assert links == names
    is_without = form == "label-studio" and images == "none"
    assert summary.counts.get("images_without_link", 0) == (3 if is_without else 0)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("template", ["{uri}", "https://{bucket}.host/{key}"])
def test_a_link_to_a_shard_is_no_link_to_an_image(tmp_path: Path, kind: str, template: str) -> None:
    write_files(tmp_path / "in", shards(kind))
    write_results(str(tmp_path / "in"), str(tmp_path / "out"), {})
    results = open_results(Storage(), str(tmp_path / "out"))
    with pytest.raises(UsageError, match=rf"one\.{kind} holds many images") as caught:
        export(results, str(tmp_path / "dest"), ExportOptions(images=f"url:{template}"))
    assert "{path}" in caught.value.hint
    assert not (tmp_path / "dest").exists()


def test_links_lead_to_files(archive: Path) -> None:
    results = open_results(Storage(), str(archive / "out"))
    export(results, str(archive / "dest"), ExportOptions(images="link"))
    for link in (archive / "dest/images").rglob("*.*"):
        assert link.is_symlink()
        assert os.path.realpath(link).startswith(f"{archive}/in/")


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_members_of_shards_are_extracted_under_unique_names(tmp_path: Path, kind: str) -> None:
    pictures = [picture(i) for i in range(4)]
    if kind == "tar":
        names = ["a/0.png", "../../up.png", "a/0.png", "b.png"]
        shards = {
            "one.tar": tar_bytes(list(zip(names, pictures, strict=True))),
            "two.tar": tar_bytes([("b.png", pictures[0])]),
        }
    else:
        shards = {
            "one.parquet": parquet_bytes({"key": ["0", "1", "..", "a/b"], "image": pictures}),
            "two.parquet": parquet_bytes({"key": ["0"], "image": [pictures[0]]}),
        }
    write_files(tmp_path / "in", shards)
    write_results(str(tmp_path / "in"), str(tmp_path / "out"), {"0": [Drawn(FAMILY["hard"], 3, 1)]})
    results = open_results(Storage(), str(tmp_path / "out"))
    options = ExportOptions(images="copy", chunk_images=2)
    summary = export(results, str(tmp_path / "dest"), options)
    images = [
        image
        for file in sorted((tmp_path / "dest").glob("instances-*.json"))
        for image in json.loads(file.read_bytes())["images"]
    ]
    written = [path for path in (tmp_path / "dest/images").rglob("*") if path.is_file()]
    assert len(written) == len(images) == summary.images
    assert {path.suffix for path in written} == {".png"}
    contents = {path.read_bytes() for path in written}
    assert contents <= set(pictures)
    assert len({image["file_name"] for image in images}) == len(images)


def test_members_are_found_by_the_options_of_the_job(tmp_path: Path) -> None:
    """Here .gif are images, too, and of the PNG files only those with one suffix."""
    members = [("a.gif", picture(1, "GIF")), ("b.photo.png", picture(2)), ("b.mask.png", b"")]
    write_files(tmp_path / "in", {"one.tar": tar_bytes(members)})
    options = SourceOptions(extensions=("gif", "png"), suffixes=("gif", "photo.png"))
    write_results(str(tmp_path / "in"), str(tmp_path / "out"), {}, options=options)
    results = open_results(Storage(), str(tmp_path / "out"))
    summary = export(results, str(tmp_path / "dest"), ExportOptions(images="copy"))
    assert summary.counts["pictures_written"] == summary.images == 2
    written = {p.read_bytes() for p in (tmp_path / "dest/images").rglob("*") if p.is_file()}
    assert written == {members[0][1], members[1][1]}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("url:https://host/a/{name}", "https://host/a/south/b____.jpg"),
        ("url:https://host/{path}", "https://host/south/b%27%3C%26%3E.jpg"),
        ("url:/data/local-files/?d={key}", "in/south/b%27%3C%26%3E.jpg"),
    ],
)
def test_links_by_a_template(results: Results, archive: Path, template: str, expected: str) -> None:
    export(results, str(archive / "dest"), ExportOptions(images=template))
    document = json.loads((archive / "dest/instances-00001.json").read_bytes())
    (link,) = [i["coco_url"] for i in document["images"] if "/b'" in i["segcore_image_id"]]
    assert link.endswith(expected)


def test_an_image_that_is_gone_is_counted_and_its_masks_are_exported(
    results: Results, archive: Path
) -> None:
    (archive / "in/north/a.png").unlink()
    summary = export(results, str(archive / "dest"), ExportOptions(images="copy"))
    assert summary.counts["pictures_missing"] == 1
    assert summary.counts["pictures_written"] == len(PICTURES) - 1
    assert summary.images == len(PICTURES)


def test_links_in_an_object_store_are_refused(results: Results) -> None:
    with pytest.raises(UsageError, match="no links"):
        export(results, "s3://bucket/dest", ExportOptions(images="link"))


def test_scores_are_as_in_the_archive(results: Results, archive: Path) -> None:
    export(results, str(archive / "dest"), ExportOptions())
    document = json.loads((archive / "dest/instances-00001.json").read_bytes())
    scores = {np.float32(a["score"]) for a in document["annotations"]}
    stored = set(results.to_arrow("instances", ["score"])["score"].to_numpy())
    assert scores == stored


def _deep_tiff(low: int, seed: int) -> Page:
    samples = np.random.default_rng(seed).integers(low, low + 800, (HEIGHT, WIDTH, 1), np.uint16)
    return Page(samples)


@pytest.mark.parametrize("options", [{"wide_range": "min_max"}, {"wide_range": (100, 3000)}, {}])
def test_overlays_show_the_pixels_that_the_job_read(tmp_path: Path, options: dict) -> None:
    """Here samples of 16 bits, made to 8 as the edition says."""
    data = tiff_file([_deep_tiff(200, 1)])
    write_files(tmp_path / "in", {"deep.tif": data})
    decode = DecodeOptions(**options)
    drawn = {"deep.tif": [Drawn(FAMILY["rows"], 3, 1)]}
    write_results(str(tmp_path / "in"), str(tmp_path / "out"), drawn, decode=decode)
    results = open_results(Storage(), str(tmp_path / "out"))
    export(results, str(tmp_path / "dest"), ExportOptions(format="overlays"))
    (picture_file,) = (tmp_path / "dest/overlays").rglob("*.jpg")
    shown = cv2.imread(str(picture_file))[..., ::-1].astype(int)
    counts = results.to_arrow("instances", ["counts"])["counts"].to_pylist()
    wanted = overlay(brighten(decode_image(data, decode)), counts).astype(int)
    assert np.abs(shown - wanted).mean() < 12  # JPEG of noise


@pytest.mark.parametrize("pages", ["first", "all"])
def test_copies_of_a_file_of_two_pages(tmp_path: Path, pages: str) -> None:
    """The file itself where its first page was read alone; otherwise each page as a file."""
    two = [_deep_tiff(1000, seed) for seed in (1, 2)]
    data = tiff_file(two)
    write_files(tmp_path / "in", {"two.tif": data})
    serial_run.segment(job_config(tmp_path / "in", tmp_path / "out", f"decode.pages={pages}"))
    results = open_results(Storage(), str(tmp_path / "out"))
    summary = export(results, str(tmp_path / "dest"), ExportOptions(images="copy"))
    files = sorted((tmp_path / "dest/images").iterdir())
    assert summary.counts["pictures_written"] == len(files) == (1 if pages == "first" else 2)
    if pages == "first":
        assert files[0].read_bytes() == data
        return
    for file, page in zip(sorted(files, key=lambda file: len(file.name)), two, strict=True):
        assert (decode_image(file.read_bytes()) == decode_image(tiff_file([page]))).all()
