"""Each format against a plain reader of its own, on masks that are hard for it.

`make exports` reads the same files with the libraries of others.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco

from segcore.exports.export import export
from segcore.exports.formats.coordinates import PointTexts
from segcore.exports.formats.rle_pack import pack_mask, pack_masks, unpack_mask
from segcore.exports.options import ExportOptions
from segcore.exports.shapes import canvas_row_runs, outlines
from segcore.exports.summary import ExportSummary
from segcore.masks.bitmaps import Bitmap, to_bitmaps
from segcore.output.results import Results
from tests.exports.conftest import PICTURES, drawn_masks
from tests.support.masks_output import HEIGHT, WIDTH, hard_mask

Found = dict[str, list[tuple[np.ndarray, str, float]]]  # path -> masks, class, score
NAMES = {3: "cat", 5: "dog & <b>", 9: "tree"}


def run(results: Results, archive: Path, **options: object) -> tuple[Path, ExportSummary]:
    dest = archive / "dest"
    return dest, export(results, str(dest), ExportOptions(**options))


def paths(dest: Path, archive: Path) -> dict[str, str]:
    """Name in the export -> path in the archive."""
    table = pq.read_table(dest / "segcore-state")
    ids = (image_id.removeprefix(f"{archive}/in/") for image_id in table["image_id"].to_pylist())
    return dict(zip(table["name"].to_pylist(), ids, strict=True))


def expected(names: dict[int, str] = NAMES) -> Found:
    return {
        path: [(one.mask, names[one.category], one.score) for one in drawn_masks().get(path, [])]
        for path in PICTURES
    }


def assert_equal(found: Found, wanted: Found, scores: bool = True) -> None:
    assert found.keys() == wanted.keys()
    for path, ones in wanted.items():
        assert len(found[path]) == len(ones), path
        for (mask, name, score), (other, other_name, other_score) in zip(
            found[path], ones, strict=True
        ):
            assert (mask == other).all(), (path, name)
            assert name == other_name
            assert not scores or score == pytest.approx(other_score, abs=1e-6)


def paste(box: np.ndarray, left: int, top: int) -> np.ndarray:
    whole = np.zeros((HEIGHT, WIDTH), bool)
    whole[top : top + box.shape[0], left : left + box.shape[1]] = box
    return whole


def test_cvat_masks_are_runs_by_rows_of_their_box(results: Results, archive: Path) -> None:
    dest, _ = run(results, archive, format="cvat")
    names = paths(dest, archive)
    (file,) = dest.glob("annotations-*.xml")
    root = ElementTree.parse(file).getroot()
    assert root.findtext("version") == "1.1"
    labels = [label.findtext("name") for label in root.iter("label")]
    assert labels == list(NAMES.values())
    found: Found = {}
    for image in root.iter("image"):
        assert (image.get("width"), image.get("height")) == (str(WIDTH), str(HEIGHT))
        ones = found.setdefault(names[image.attrib["name"]], [])
        for element in image.iter("mask"):
            assert element.get("source") == "auto"
            left, top, width, height = (
                int(element.attrib[key]) for key in ("left", "top", "width", "height")
            )
            values, value = [], 0
            for length in element.attrib["rle"].split(","):
                values += [value] * int(length)
                value = 1 - value
            box = np.array(values, bool).reshape(height, width)
            ones.append((paste(box, left, top), element.attrib["label"], 0.0))
    assert_equal(found, expected(), scores=False)


def test_labelme_masks_lie_between_inclusive_corners(results: Results, archive: Path) -> None:
    dest, _ = run(results, archive, format="labelme", images="copy")
    names = paths(dest, archive)
    found: Found = {}
    for name, path in names.items():
        file = (dest / "images" / name).with_suffix(".json")
        document = json.loads(file.read_bytes())
        assert document["imageData"] is None
        with Image.open(file.parent / document["imagePath"]) as shown:
            upright = shown.getexif().get(274, 1) == 1
            size = shown.size if upright else shown.size[::-1]
        assert (document["imageWidth"], document["imageHeight"]) == size
        ones = found.setdefault(path, [])
        for shape in document["shapes"]:
            (x1, y1), (x2, y2) = shape["points"]
            box = np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))) > 0
            assert box.shape == (y2 - y1 + 1, x2 - x1 + 1)
            score = float(shape["description"].removeprefix("score "))
            ones.append((paste(box, x1, y1), shape["label"], score))
    assert_equal(found, expected())


def test_label_studio_brushes_unpack_to_the_masks(results: Results, archive: Path) -> None:
    dest, _ = run(results, archive, format="label-studio", masks="exact")
    (file,) = dest.glob("tasks-*.json")
    names = paths(dest, archive)
    found: Found = {}
    for task in json.loads(file.read_bytes()):
        (prediction,) = task["predictions"]
        assert prediction["model_version"].startswith("segcore drawn 111111111111")
        ones = found.setdefault(names[task["data"]["name"]], [])
        for region in prediction["result"]:
            assert (region["original_width"], region["original_height"]) == (WIDTH, HEIGHT)
            data = bytes(region["value"]["rle"])
            values = unpack_bit_by_bit(data).reshape(HEIGHT, WIDTH, 4)
            assert (values == values[:, :, :1]).all()
            assert set(np.unique(values)) <= {0, 255}
            assert (unpack_mask(data, values.size) == values[:, :, 3].ravel()).all()
            label = region["value"]["brushlabels"][0]
            ones.append((values[:, :, 3] > 0, label, region["score"]))
    assert_equal(found, expected())
    config = ElementTree.parse(dest / "config.xml")
    assert [label.get("value") for label in config.iter("Label")] == list(NAMES.values())


def unpack_bit_by_bit(data: bytes) -> np.ndarray:
    """rle-pack as its author's reader does it, one value after another."""
    bits = "".join(f"{byte:08b}" for byte in data)
    place = 0

    def take(n: int) -> int:
        nonlocal place
        place += n
        return int(bits[place - n : place], 2)

    n_values, width = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < n_values:
        is_run = take(1)
        length = take(sizes[take(2)]) + 1
        values += [take(width)] * length if is_run else [take(width) for _ in range(length)]
    assert len(values) == n_values
    return np.array(values, np.uint8)


def test_brushes_of_random_masks_of_many_sizes_unpack_to_them() -> None:
    rng = np.random.default_rng(3)
    for height, width in [(1, 1), (1, 9), (7, 1), (13, 17), (300, 257)]:
        masks, bitmaps = [], []
        for share in (0.02, 0.5, 0.98, 1.0):
            mask = np.zeros((height, width), bool)
            mask[rng.random((height, width)) < share] = True
            mask[-1, rng.integers(width)] = True
            text = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
            (bitmap,) = to_bitmaps([text], height, width)
            assert bitmap is not None
            bitmaps.append(bitmap)
            masks.append(mask)
            packed = pack_mask(canvas_row_runs([bitmap], height, width)[0])
            assert (unpack_mask(packed, mask.size * 4).reshape(mask.shape) == 255 * mask).all()
        together = pack_masks(*canvas_row_runs(bitmaps, height, width))
        alone = [pack_mask(canvas_row_runs([one], height, width)[0]) for one in bitmaps]
        assert together == alone
    with pytest.raises(ValueError, match="more than its image"):
        unpack_mask(packed, 100)
    with pytest.raises(ValueError, match="too early"):
        unpack_mask(packed[:-4], mask.size * 4)


def test_polygons_of_tolerance_0_lose_holes_alone(results: Results, archive: Path) -> None:
    _, summary = run(results, archive, masks="polygons", tolerance=0)
    document = json.loads((archive / "dest/instances-00001.json").read_bytes())
    ids = {image["id"]: image["segcore_image_id"] for image in document["images"]}
    for path, ones in expected().items():
        (number,) = (n for n, image_id in ids.items() if image_id.endswith(f"/in/{path}"))
        found = [a for a in document["annotations"] if a["image_id"] == number]
        for annotation, (mask, _, _) in zip(found, ones, strict=True):
            rles = coco.frPyObjects(annotation["segmentation"], HEIGHT, WIDTH)
            drawn = coco.decode(coco.merge(rles)).astype(bool)
            background = cv2.connectedComponents(
                np.pad(~mask, 1, constant_values=True).astype(np.uint8), connectivity=8
            )[1]
            filled = (background != background[0, 0])[1:-1, 1:-1]
            assert (drawn == filled).all()
    assert summary.counts["holes_filled"] > 0
    assert summary.iou_measured == summary.masks == sum(map(len, drawn_masks().values()))


def test_yolo_loses_parts_and_holes_and_says_how_many(results: Results, archive: Path) -> None:
    _, summary = run(results, archive, format="yolo-seg", tolerance=0, include=("north/a.png",))
    (file,) = (archive / "dest/labels").rglob("*.txt")
    lines = file.read_text().splitlines()
    assert len(lines) == summary.masks == len(drawn_masks()["north/a.png"])
    number, *shares = lines[0].split()
    ring = np.array(shares, float).reshape(-1, 2) * (WIDTH, HEIGHT)
    drawn = coco.decode(coco.frPyObjects([ring.ravel().tolist()], HEIGHT, WIDTH))[:, :, 0]
    kept = np.zeros((HEIGHT, WIDTH), np.uint8)
    kept[10:30, 5:40] = 1  # the largest part of the hard mask, its hole filled
    assert number == "0"
    assert (drawn == kept).all()
    union = (kept | hard_mask()).sum()
    assert summary.iou_worst is not None
    iou = (kept & hard_mask()).sum() / union
    assert summary.iou_worst <= iou
    assert summary.counts["parts_lost"] >= 5
    assert (archive / "dest/data.yaml").read_text().endswith('2: "tree"\n')


def test_split_parts_keeps_every_part(results: Results, archive: Path) -> None:
    options = {"format": "yolo-seg", "split_parts": True, "include": ("north/a.png",)}
    _, summary = run(results, archive, **options)
    (file,) = (archive / "dest/labels").rglob("*.txt")
    assert "parts_lost" not in summary.counts
    assert len(file.read_text().splitlines()) == summary.polygons > summary.masks
    assert summary.masks == len(drawn_masks()["north/a.png"])


def test_results_files_leave_the_box_out(results: Results, archive: Path) -> None:
    from pycocotools.coco import COCO

    dest, summary = run(results, archive, format="coco-results")
    truth = COCO(str(dest / "images-00001.json"))
    truth.dataset["annotations"] = []
    truth.createIndex()
    read = truth.loadRes(str(dest / "results-00001.json"))
    assert len(read.anns) == summary.masks
    areas = sorted(int(one.mask.sum()) for ones in drawn_masks().values() for one in ones)
    assert sorted(int(a["area"]) for a in read.anns.values()) == areas


def test_datasets_rows_hold_pictures_and_masks(results: Results, archive: Path) -> None:
    dest, _ = run(results, archive, format="hf", images="copy", chunk_images=4)
    assert len(list((dest / "data").iterdir())) == 2
    assert not (dest / "images").exists()
    rows = pq.read_table(dest / "data").to_pylist()
    found: Found = {}
    for row in rows:
        path = row["segcore_image_id"].removeprefix(f"{archive}/in/")
        assert row["image"]["bytes"] == PICTURES[path]
        objects = row["objects"]
        found[path] = [
            (
                coco.decode({"size": [HEIGHT, WIDTH], "counts": counts}).astype(bool),
                list(NAMES.values())[label],
                score,
            )
            for counts, label, score in zip(
                objects["counts"], objects["category"], objects["score"], strict=True
            )
        ]
    assert_equal(found, expected())


def test_overlays_are_pictures_of_the_size_of_the_image(results: Results, archive: Path) -> None:
    dest, summary = run(results, archive, format="overlays")
    pictures = list((dest / "overlays").rglob("*.jpg"))
    assert len(pictures) == len(PICTURES) == summary.files
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("tolerance", [0, 0.5, 3])
def test_masks_that_are_traced_together_have_the_outlines_of_each_alone(tolerance: float) -> None:
    rng = np.random.default_rng(11)
    bitmaps = []
    for number in range(60):
        height, width = rng.integers(1, (6, 25, 90)[number % 3], 2)
        pixels = (rng.random((height, width)) < rng.choice([0.1, 0.5, 0.9])).astype(np.uint8)
        pixels[0, rng.integers(width)] = pixels[rng.integers(height), 0] = 1
        bitmaps.append(Bitmap(np.asfortranarray(pixels), *rng.integers(0, 3000, 2).tolist()))
    for limit in (4, 2000):
        together = outlines(bitmaps, tolerance, limit)
        for one, bitmap in zip(together, bitmaps, strict=True):
            (alone,) = outlines([bitmap], tolerance, limit)
            assert (one.n_holes, one.is_coarser) == (alone.n_holes, alone.is_coarser)
            assert one.n_holes == n_holes(bitmap.pixels)
            assert len(one.rings) == len(alone.rings)
            for ring, other in zip(one.rings, alone.rings, strict=True):
                assert (ring == other).all()


def n_holes(pixels: np.ndarray) -> int:
    """Empty parts that set pixels enclose, those that touch at a corner alone, too."""
    empty = np.pad(pixels == 0, 1, constant_values=True).astype(np.uint8)
    return int(cv2.connectedComponents(empty, connectivity=4)[0]) - 2


@pytest.mark.parametrize(("form", "whole"), [("%.6g", 1.0), ("%.8g", 100.0), ("%.10g", None)])
def test_points_are_written_as_each_would_be_formatted(form: str, whole: float | None) -> None:
    rng = np.random.default_rng(3)
    texts = PointTexts(form, form, " ", whole)
    for width, height in [(1, 1), (60, 40), (4001, 3), (60, 40), (200_000, 7), (900_000, 100_000)]:
        size = np.array([width, height])
        shapes = [
            [rng.integers(0, 2 * size + 1, (n, 2)) / 2 for n in (3, 5)],
            [size * np.ones((3, 1))],
        ]
        for shape, written in zip(shapes, texts.write(shapes, width, height), strict=True):
            for ring, text in zip(shape, written, strict=True):
                values = ring if whole is None else ring / size * whole
                assert text == " ".join(form % value for value in values.ravel().tolist())
