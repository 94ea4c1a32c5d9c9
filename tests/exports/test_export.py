"""An export from beginning to end: ids that stay, adding, resuming, and what is never replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from segcore.errors import NothingFound, SegcoreError, StorageFull, UsageError
from segcore.exports.export import export
from segcore.exports.options import ExportOptions
from segcore.output.results import Results, open_results
from segcore.storage import Storage
from tests.exports.conftest import FAMILY, PICTURES, drawn_masks
from tests.support.jobs import write_files
from tests.support.masks_output import Drawn, picture, write_results


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def coco_of(folder: Path) -> dict[str, Any]:
    """All chunks of a COCO export as one document."""
    whole: dict[str, Any] = {"images": [], "annotations": []}
    for path in sorted(folder.glob("instances-*.json")):
        document = json.loads(path.read_bytes())
        whole["categories"] = document["categories"]
        whole["images"] += document["images"]
        whole["annotations"] += document["annotations"]
    return whole


def reopen(folder: Path) -> Results:
    return open_results(Storage(), str(folder / "out"))


def test_coco_has_every_mask_exactly(results: Results, archive: Path) -> None:
    summary = export(results, str(archive / "dest"), ExportOptions())
    (path,) = (archive / "dest").glob("instances-*.json")
    read = COCO(str(path))
    drawn = drawn_masks()
    assert summary.images == len(read.imgs) == len(PICTURES)
    assert summary.masks == len(read.anns) == sum(map(len, drawn.values()))
    assert sorted(read.anns) == list(range(1, len(read.anns) + 1))
    assert {c["id"]: c["name"] for c in read.cats.values()} == {
        3: "cat",
        5: "dog & <b>",
        9: "tree",
    }
    for image in read.imgs.values():
        name = image["segcore_image_id"].removeprefix(f"{archive}/in/")
        found = read.imgToAnns.get(image["id"], [])
        for annotation, one in zip(found, drawn.get(name, []), strict=True):
            assert (read.annToMask(annotation) == one.mask).all()
            assert annotation["category_id"] == one.category
            assert np.float32(annotation["score"]) == np.float32(one.score)
            assert annotation["area"] == one.mask.sum()
            assert annotation["iscrowd"] == 0


@pytest.mark.slow
def test_the_same_export_twice_adds_nothing_and_gives_the_same_bytes(
    results: Results, archive: Path
) -> None:
    options = ExportOptions(chunk_images=4)
    export(results, str(archive / "one"), options)
    export(results, str(archive / "two"), options.model_copy(update={"workers": 2}))
    once = files_of(archive / "one")
    other = files_of(archive / "two")
    assert {n: d for n, d in once.items() if "summary" not in n} == {
        n: d for n, d in other.items() if "summary" not in n
    }
    again = export(results, str(archive / "one"), options)
    assert (again.images, again.masks, again.files) == (0, 0, 0)
    assert again.images_before == len(PICTURES)
    assert {n: d for n, d in files_of(archive / "one").items() if "summary" not in n} == {
        n: d for n, d in once.items() if "summary" not in n
    }


@pytest.mark.slow
@pytest.mark.parametrize("form", ["coco", "labelme", "cvat"])
def test_an_export_that_is_stopped_anywhere_ends_as_one_that_is_not(
    results: Results, archive: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ExportOptions(format=form, chunk_images=2, images="copy")
    export(results, str(archive / "whole"), options)
    expected = files_of(archive / "whole")
    real_write = Storage.write
    real_conditional = Storage.write_if_absent
    for n_writes in range(0, 24, 3 if form == "coco" else 5):
        dest = archive / f"cut{n_writes}"
        left = n_writes

        def spend(uri: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise StorageFull("No room is left.")

        def write(self: Storage, uri: str, data: Any) -> Any:
            spend(uri)
            return real_write(self, uri, data)

        def write_if_absent(self: Storage, uri: str, data: bytes) -> bool:
            spend(uri)
            return real_conditional(self, uri, data)

        with monkeypatch.context() as patch:
            patch.setattr(Storage, "write", write)
            patch.setattr(Storage, "write_if_absent", write_if_absent)
            try:
                export(results, str(dest), options)
            except StorageFull:
                assert not (dest / "segcore-summary.json").exists()
        export(results, str(dest), options)
        differs = {"segcore-summary.json"}
        got = files_of(dest)
        assert got.keys() == expected.keys()
        assert {n: d for n, d in got.items() if n not in differs} == {
            n: d for n, d in expected.items() if n not in differs
        }


def test_a_grown_and_changed_archive_appends_and_keeps_every_id(archive: Path) -> None:
    dest = archive / "dest"
    export(reopen(archive), str(dest), ExportOptions())
    before = coco_of(dest)
    first_file = (dest / "instances-00001.json").read_bytes()
    drawn = drawn_masks()
    changed, gone = "north/a.png", "south/ümläut 1.png"
    write_files(archive / "in", {"east/new.png": picture(7), changed: picture(8)})
    (archive / "in" / gone).unlink()
    drawn[changed] = [Drawn(FAMILY["first"], 9, 0.5)]
    drawn["east/new.png"] = [Drawn(FAMILY["hard"], 3, 0.5)]
    write_results(str(archive / "in"), str(archive / "out"), drawn, sequence=2)
    summary = export(reopen(archive), str(dest), ExportOptions())
    assert (dest / "instances-00001.json").read_bytes() == first_file
    assert summary.counts["changed_images"] == 1
    assert any("1 image of earlier exports" in note for note in summary.notes)
    assert (summary.images, summary.masks) == (2, 2)
    added = json.loads((dest / "instances-00002.json").read_bytes())
    ids = {image["segcore_image_id"]: image["id"] for image in before["images"]}
    for image in added["images"]:
        known = ids.get(image["segcore_image_id"])
        assert image["id"] == known if known else image["id"] > max(ids.values())
    old = {annotation["id"] for annotation in before["annotations"]}
    assert not old & {annotation["id"] for annotation in added["annotations"]}
    assert export(reopen(archive), str(dest), ExportOptions()).images == 0


def test_an_image_whose_file_was_touched_but_whose_masks_are_equal_is_no_change(
    archive: Path,
) -> None:
    dest = archive / "dest"
    export(reopen(archive), str(dest), ExportOptions())
    write_files(archive / "in", {"north/a.png": picture(99)})  # another etag
    write_results(str(archive / "in"), str(archive / "out"), drawn_masks(), sequence=2)
    assert export(reopen(archive), str(dest), ExportOptions()).images == 0


@pytest.mark.parametrize("form", ["labelme", "yolo-seg"])
def test_a_file_that_a_person_edited_stays(archive: Path, form: str) -> None:
    dest = archive / "dest"
    export(reopen(archive), str(dest), ExportOptions(format=form))
    edited = sorted((dest / "labels/north").iterdir())[0]
    edited.write_bytes(b"corrected by hand")
    drawn = drawn_masks()
    for name, kind in (("a.png", "PNG"), ("a.jpg", "JPEG"), ("A.webp", "WEBP")):
        write_files(archive / "in/north", {name: picture(50, kind)})
        drawn[f"north/{name}"] = [Drawn(FAMILY["first"], 9, 0.5)]
    write_results(str(archive / "in"), str(archive / "out"), drawn, sequence=2)
    summary = export(reopen(archive), str(dest), ExportOptions(format=form))
    assert edited.read_bytes() == b"corrected by hand"
    assert summary.counts["edited_files_kept"] == 1
    assert summary.counts["changed_images"] == 3
    assert summary.files == 2


def test_a_folder_with_files_of_others_is_refused_and_left_alone(
    results: Results, archive: Path
) -> None:
    dest = archive / "dest"
    dest.mkdir()
    (dest / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"not empty .*thesis\.txt"):
        export(results, str(dest), ExportOptions())
    assert files_of(dest) == {"thesis.txt": b"years of work"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "cvat"}, "another format"),
        ({"min_score": 0.5}, "min_score: 0.0, now 0.5"),
        ({"rename": {"cat": "feline"}}, "another labels"),
    ],
)
def test_an_export_of_something_else_is_refused(
    results: Results, archive: Path, change: dict[str, Any], message: str
) -> None:
    export(results, str(archive / "dest"), ExportOptions())
    before = files_of(archive / "dest")
    with pytest.raises(UsageError, match=message):
        export(results, str(archive / "dest"), ExportOptions(**change))
    assert files_of(archive / "dest") == before


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"segcore_export": 99}'])
def test_a_damaged_manifest_is_an_error_that_names_it(
    results: Results, archive: Path, damage: bytes
) -> None:
    export(results, str(archive / "dest"), ExportOptions())
    (archive / "dest/segcore-export.json").write_bytes(damage)
    with pytest.raises(UsageError, match=r"segcore-export\.json"):
        export(results, str(archive / "dest"), ExportOptions())


def test_a_lost_or_damaged_record_is_an_error_and_no_id_is_given_twice(
    results: Results, archive: Path
) -> None:
    dest = archive / "dest"
    export(results, str(dest), ExportOptions(chunk_images=2))
    (dest / "segcore-state/00002.parquet").write_bytes(b"PAR1 no longer")
    with pytest.raises(SegcoreError, match=r"00002\.parquet is damaged"):
        export(results, str(dest), ExportOptions(chunk_images=2))
    (dest / "segcore-state/00002.parquet").unlink()
    with pytest.raises(SegcoreError, match="lacks records"):
        export(results, str(dest), ExportOptions(chunk_images=2))
    (dest / "segcore-state/00003.parquet").unlink()
    before = files_of(dest)
    with pytest.raises(SegcoreError, match=r"instances-00002\.json exists"):
        export(results, str(dest), ExportOptions(chunk_images=2))
    assert files_of(dest) == before


def test_nothing_to_export_is_an_error_and_writes_no_summary(
    results: Results, archive: Path
) -> None:
    with pytest.raises(NothingFound, match="No image"):
        export(results, str(archive / "dest"), ExportOptions(include=("west/*",)))
    assert files_of(archive / "dest") == {}
    assert export(results, str(archive / "dest"), ExportOptions(include=("north/*",))).images == 3


@pytest.mark.parametrize(
    ("form", "name"), [("yolo-seg", "data.yaml"), ("label-studio", "config.xml")]
)
def test_a_description_of_the_classes_that_somebody_edited_stays(
    archive: Path, form: str, name: str
) -> None:
    dest = archive / "dest"
    export(reopen(archive), str(dest), ExportOptions(format=form))
    (dest / name).write_text("edited")
    drawn = drawn_masks()
    write_files(archive / "in", {"east/new.png": picture(7)})
    drawn["east/new.png"] = [Drawn(FAMILY["hard"], 3, 0.5)]
    write_results(str(archive / "in"), str(archive / "out"), drawn, sequence=2)
    assert export(reopen(archive), str(dest), ExportOptions(format=form)).images == 1
    assert (dest / name).read_text() == "edited"


def test_an_export_to_an_object_store_has_the_same_bytes(
    results: Results, archive: Path, s3_prefix: str
) -> None:
    storage = Storage()
    for form in ("coco", "labelme"):
        options = ExportOptions(format=form, images="copy", chunk_images=4)
        export(results, str(archive / form), options)
        export(results, f"{s3_prefix}/{form}", options)
        again = export(results, f"{s3_prefix}/{form}", options)
        assert (again.images, again.images_before) == (0, len(PICTURES))
        stored = {
            info.uri.removeprefix(f"{s3_prefix}/{form}/"): storage.read(info.uri)
            for info in storage.list(f"{s3_prefix}/{form}")
        }
        local = files_of(archive / form)
        assert stored.keys() == local.keys()
        stored.pop("segcore-summary.json")
        assert all(local[name] == data for name, data in stored.items())
