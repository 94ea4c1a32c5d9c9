"""From the archive to a tool's files and back: what nobody edited comes back as it was."""

from __future__ import annotations

import base64
import io
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from segcore.corrections.import_corrections import ImportReport, import_corrections
from segcore.errors import UsageError
from segcore.evaluation.evaluate import evaluate
from segcore.exports.export import export
from segcore.exports.options import ExportOptions
from segcore.output.results import open_results
from segcore.storage import Storage
from tests.exports.conftest import PICTURES, drawn_masks
from tests.exports.conftest import archive as archive  # a fixture
from tests.support.archives import tar_bytes
from tests.support.jobs import write_files
from tests.support.masks_output import HEIGHT, WIDTH, Drawn, picture, write_results

NAMES = {3: "cat", 5: "dog & <b>", 9: "tree"}
EXACT = {
    "coco": {},
    "cvat": {},
    "label-studio": {"masks": "exact"},
    "labelme": {"images": "copy"},
}


def exported(archive: Path, form: str, **options: Any) -> Path:
    dest = archive / "dest"
    results = open_results(Storage(), str(archive / "out"))
    export(results, str(dest), ExportOptions(format=form, **options))
    return dest


def accept_predictions(dest: Path) -> None:
    """What Label Studio exports when somebody submits each prediction as it is."""
    for path in dest.glob("tasks-*.json"):
        tasks = json.loads(path.read_bytes())
        for task in tasks:
            task["annotations"] = [{"result": task.pop("predictions")[0]["result"]}]
        path.write_text(json.dumps(tasks))


def read(archive: Path, source: Path, **options: Any) -> tuple[dict[str, list], ImportReport]:
    """Path in the archive -> [(mask, class)], and the report."""
    truth = archive / "truth.json"
    report = import_corrections(Storage(), str(source), str(truth), overwrite=True, **options)
    coco = COCO(str(truth))
    found = {
        image["file_name"]: [
            (coco.annToMask(one).astype(bool), coco.cats[one["category_id"]]["name"])
            for one in coco.imgToAnns.get(image["id"], [])
        ]
        for image in coco.imgs.values()
    }
    return found, report


@pytest.mark.parametrize("form", EXACT)
def test_masks_that_nobody_edited_come_back_exactly(archive: Path, form: str) -> None:
    dest = exported(archive, form, **EXACT[form])
    if form == "label-studio":
        accept_predictions(dest)
    found, report = read(archive, dest)
    assert sorted(found) == sorted(PICTURES)
    assert report.left_out == report.not_corrected == 0
    assert report.notes == []
    for path, ones in found.items():
        wanted = drawn_masks().get(path, [])
        assert [name for _, name in ones] == [NAMES[one.category] for one in wanted]
        for (mask, _), one in zip(ones, wanted, strict=True):
            assert (mask == one.mask).all()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["coco", "cvat", "label-studio", "labelme", "yolo-seg"])
def test_polygons_come_back_as_they_were_rasterised(archive: Path, form: str) -> None:
    dest = exported(archive, form, masks="polygons", tolerance=0)
    if form == "label-studio":
        accept_predictions(dest)
    found, report = read(archive, dest)
    assert report.left_out == 0
    for path, ones in found.items():
        wanted = drawn_masks().get(path, [])
        assert len(ones) == len(wanted)
        for (mask, name), one in zip(ones, wanted, strict=True):
            assert name == NAMES[one.category]
            if form != "yolo-seg":  # which keeps one part alone
                assert (mask | one.mask == mask).mean() > 0.99  # only holes are filled


def test_evaluating_the_export_against_itself_is_perfect(archive: Path) -> None:
    dest = exported(archive, "coco")
    import_corrections(Storage(), str(dest), str(archive / "truth.json"))
    report = evaluate(Storage(), str(archive / "out"), str(archive / "truth.json"))
    assert report.scores.mask.ap == pytest.approx(1.0)
    assert report.images == len(PICTURES)


def test_edits_deletions_and_new_classes_arrive(archive: Path) -> None:
    dest = exported(archive, "cvat")
    path = dest / "annotations-00001.xml"
    tree = ElementTree.parse(path)
    images = {image.get("name"): image for image in tree.getroot().iter("image")}
    first = images["north/A.webp"]
    for mask in list(first)[1:]:
        first.remove(mask)
    first[0].set("label", "horse")
    tree.getroot().remove(images["south/empty.png"])
    with zipfile.ZipFile(archive / "task.zip", "w") as file:
        file.writestr("annotations.xml", ElementTree.tostring(tree.getroot()))
    found, report = read(archive, archive / "task.zip", dest=str(dest))
    assert [name for _, name in found["north/A.webp"]] == ["horse"]
    assert report.new_classes == ["horse"]
    assert report.not_corrected == 1
    categories = json.loads((archive / "truth.json").read_bytes())["categories"]
    assert categories[-1] == {"id": 10, "name": "horse"}


def test_file_names_of_the_export_are_those_of_its_pictures(archive: Path) -> None:
    dest = exported(archive, "labelme", images="copy")
    found, _ = read(archive, dest, file_names="export")
    assert all((dest / "images" / name).is_file() for name in found)


def test_shapes_that_people_draw_by_hand(archive: Path) -> None:
    dest = exported(archive, "labelme")
    (path,) = (dest / "labels/south").glob("empty.json")
    document = json.loads(path.read_bytes())
    document["shapes"] = [
        {"label": "box", "shape_type": "rectangle", "points": [[2, 3], [10, 9]]},
        {"label": "disc", "shape_type": "circle", "points": [[30, 20], [36, 20]]},
        {"label": "line", "shape_type": "line", "points": [[1, 1], [5, 5]]},
        {"label": "outside", "shape_type": "rectangle", "points": [[100, 3], [110, 9]]},
        {"label": "far", "shape_type": "polygon", "points": [[0, 0], [1e9, 0], [0, 1e9]]},
        {"label": " ", "shape_type": "rectangle", "points": [[2, 3], [10, 9]]},
    ]
    path.write_text(json.dumps(document))
    found, report = read(archive, dest)
    (box, _), (disc, name) = found["south/empty.png"]
    assert (box.sum(), name) == (8 * 6, "disc")
    assert disc.sum() == pytest.approx(np.pi * 36, rel=0.1)
    assert report.left_out == 4
    assert len(report.notes) == 4


def test_an_image_of_another_size_is_left_out_and_exif_is_named(archive: Path) -> None:
    dest = exported(archive, "labelme")
    paths = sorted((dest / "labels/north").iterdir())
    for path, size in zip(paths, ((WIDTH + 1, HEIGHT), (HEIGHT, WIDTH)), strict=False):
        document = json.loads(path.read_bytes())
        document["imageWidth"], document["imageHeight"] = size
        path.write_text(json.dumps(document))
    found, report = read(archive, dest)
    assert len(found) == len(PICTURES) - 2
    assert any("another size" in note for note in report.notes)
    assert any("EXIF" in note for note in report.notes)


def mutants(form: str, data: bytes) -> list[bytes]:
    """Files that are damaged in a way of their format, or in any."""
    rng = np.random.default_rng(11)
    found = [b"", b"\0" * 100, b"[" * 100_000, b'{"a":' * 50_000, data[: len(data) // 2]]
    for _ in range(10):
        array = np.frombuffer(data, np.uint8).copy()
        places = rng.integers(0, array.size, int(rng.integers(1, 30)))
        array[places] = rng.integers(0, 256, places.size)
        found.append(array.tobytes())
    if form == "cvat":
        found += [
            b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><annotations/>',
            data.replace(b'width="', b'width="9'),
            data.replace(b'rle="', b'rle="-5, 99999999999999999999, '),
            data.replace(b'left="', b'left="-1e400'),
        ]
    else:
        found += [
            data.replace(b"[", b"{", 3),
            data.replace(b": ", b": null, "),
            data.replace(b"60", b"6e300").replace(b"40", b"-1"),
            data.replace(b'"points"', b'"pints"').replace(b'"counts"', b'"count"'),
            data.replace(b"1", b"NaN"),
            data.replace(b'"', b'"\\u0000'),
        ]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("form", ["coco", "cvat", "label-studio", "labelme", "yolo-seg"])
def test_damaged_files_are_read_in_part_or_refused_in_a_sentence(archive: Path, form: str) -> None:
    dest = exported(archive, form, **EXACT.get(form, {}))
    if form == "label-studio":
        accept_predictions(dest)
    pattern = {"cvat": "annotations-*.xml", "yolo-seg": "labels/north/*.txt",
               "labelme": "images/north/*.json"}.get(form, "*-00001.json")  # fmt: skip
    path = sorted(dest.glob(pattern))[0]
    original = path.read_bytes()
    for data in mutants(form, original):
        path.write_bytes(data)
        lines: list[str] = []
        try:
            lines = read(archive, path if form == "cvat" else dest, dest=str(dest))[1].notes
        except UsageError as error:
            lines = error.message.split("\n")
        assert all(line.isprintable() and len(line) < 1000 for line in lines)


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "/etc/passwd", "nowhere.png", "", "north", "?[31m", "é" * 999]
)
def test_a_name_that_the_export_lacks_finds_no_image(archive: Path, name: str) -> None:
    dest = exported(archive, "cvat")
    root = ElementTree.Element("annotations")
    for image_name in (name, "A.webp", "north/A"):  # the last two are one image
        ElementTree.SubElement(root, "image", name=image_name, width="60", height="40")
    file = archive / "other.xml"
    file.write_bytes(ElementTree.tostring(root))
    found, report = read(archive, file, dest=str(dest))
    assert found == {"north/A.webp": []}
    assert report.left_out == 2


def test_a_picture_bomb_in_labelme_is_refused(archive: Path) -> None:
    dest = exported(archive, "labelme")
    path = sorted((dest / "labels/north").iterdir())[0]
    document = json.loads(path.read_bytes())
    sink = io.BytesIO()
    Image.new("1", (8, 8)).save(sink, "PNG")
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + sink.getvalue()[24:29]
    data = sink.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header))
    bomb = data + sink.getvalue()[33:]
    document["shapes"][0]["mask"] = base64.b64encode(bomb).decode()
    path.write_text(json.dumps(document))
    _, report = read(archive, dest)
    assert any("no picture" in note for note in report.notes)


def test_truth_is_not_replaced_and_the_export_must_be_known(archive: Path) -> None:
    dest = exported(archive, "coco")
    (archive / "truth.json").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        import_corrections(Storage(), str(dest), str(archive / "truth.json"))
    assert (archive / "truth.json").read_text() == "mine"
    with pytest.raises(UsageError, match="no export of segcore"):
        import_corrections(Storage(), str(archive / "in"), str(archive / "t.json"))
    with pytest.raises(UsageError, match="does not exist"):
        import_corrections(
            Storage(), str(archive / "gone"), str(archive / "t.json"), dest=str(dest)
        )


def test_members_of_one_name_in_several_shards_are_told_apart(tmp_path: Path) -> None:
    """By the ids of the archive: their keys are equal, and keys are all that `evaluate` had."""
    mask = drawn_masks()["north/a.png"][0].mask
    shards = {f"{s}.tar": tar_bytes([(f"{i}.png", picture(i)) for i in range(3)]) for s in "abc"}
    write_files(tmp_path / "in", shards)
    drawn = {f"{s}.tar#1.png": [Drawn(mask, 3, 0.9)] for s in "abc"}
    write_results(str(tmp_path / "in"), str(tmp_path / "out"), drawn)
    dest = exported(tmp_path, "labelme", images="copy")
    for path in (dest / "images/c").glob("*.json"):
        path.unlink()  # not corrected yet
    import_corrections(Storage(), str(dest), str(tmp_path / "truth.json"))
    report = evaluate(Storage(), str(tmp_path / "out"), str(tmp_path / "truth.json"))
    assert (report.images, report.not_in_ground_truth) == (6, 3)
    assert report.scores.mask.ap == pytest.approx(1.0)


@pytest.mark.parametrize("form", ["coco", "cvat"])
def test_of_an_image_that_has_changed_the_newest_masks_count(archive: Path, form: str) -> None:
    dest = exported(archive, form)
    drawn = drawn_masks()
    changed = "north/a.png"
    write_files(archive / "in", {changed: picture(8)})
    drawn[changed] = [Drawn(drawn[changed][0].mask, 9, 0.5)]
    write_results(str(archive / "in"), str(archive / "out"), drawn, sequence=2)
    exported(archive, form)
    found, report = read(archive, dest)
    ((mask, label),) = found[changed]
    assert label == "tree"
    assert (mask == drawn[changed][0].mask).all()
    assert report.left_out == 1
    assert "occurs more than once; the last file" in report.notes[0]
    assert sorted(found) == sorted(PICTURES)


def test_of_two_tasks_of_an_image_the_last_that_somebody_annotated_counts(archive: Path) -> None:
    dest = exported(archive, "label-studio", masks="exact")
    accept_predictions(dest)
    tasks = json.loads((dest / "tasks-00001.json").read_bytes())
    first = next(task for task in tasks if task["annotations"][0]["result"])
    result = first["annotations"][0]["result"]
    later = {"data": first["data"], "annotations": [{"result": result[:1]}]}
    nobody = {"data": first["data"], "annotations": []}
    file = archive / "project.json"
    file.write_text(json.dumps([*tasks, later, nobody]))
    found, report = read(archive, file, dest=str(dest))
    assert len(found[first["data"]["name"]]) == 1
    assert report.left_out == 2
    assert any("of an image that a later task has, too" in note for note in report.notes)


@pytest.mark.parametrize(
    ("form", "name", "text", "message"),
    [
        ("label-studio", "a.json", "[]", "The corrections hold no image."),
        ("label-studio", "a.json", '[{"image": "a.png", "id": 1}]', "as in JSON-MIN"),
        ("cvat", "a.xml", "<annotations/>", "The corrections hold no image."),
        ("coco", "a.json", '{"images": [], "annotations": [], "categories": []}', "hold no image."),
        ("coco", "a.csv", "image,label\n", "is no JSON"),
        ("yolo-seg", "labels/none/a.txt", "", "1 image that the export does not have"),
    ],
)
def test_empty_corrections_say_what_is_expected(
    archive: Path, form: str, name: str, text: str, message: str
) -> None:
    dest = exported(archive, form)
    write_files(archive / "given", {name: text.encode()})
    source = archive / "given" / (name if "/" not in name else "")
    truth = archive / "truth.json"
    with pytest.raises(UsageError, match=message) as caught:
        import_corrections(Storage(), str(source), str(truth), dest=str(dest))
    assert "CVAT for images 1.1" in caught.value.hint
    assert not truth.exists()


def test_tasks_of_another_export_are_no_images_of_this_one(archive: Path) -> None:
    """Numbers of images begin at 1 in each export."""
    results = open_results(Storage(), str(archive / "out"))
    for name in ("north", "south"):
        options = ExportOptions(format="label-studio", include=(f"{name}/*",))
        export(results, str(archive / name), options)
        accept_predictions(archive / name)
    tasks = [
        json.loads((archive / n / "tasks-00001.json").read_bytes()) for n in ("south", "north")
    ]
    (archive / "project.json").write_text(json.dumps([*tasks[0], *tasks[1]]))
    found, report = read(archive, archive / "project.json", dest=str(archive / "north"))
    assert sorted(found) == sorted(name for name in PICTURES if name.startswith("north/"))
    assert report.left_out == 3
    assert "3 images that the export does not have" in report.notes[0]
