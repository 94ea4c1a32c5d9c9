"""Evaluating an output: images and classes are matched safely, and what cannot be is reported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from segcore.errors import ErrorCode, ImageError, UsageError
from segcore.evaluation.average_precision import mask_and_box_ap
from segcore.evaluation.evaluate import evaluate
from segcore.evaluation.ground_truth import TruthCategory
from segcore.evaluation.matching import match_categories
from segcore.evaluation.paths import PathIndex
from segcore.instances import Instances
from segcore.output.parts import Parts
from segcore.output.results import open_results
from segcore.output.tables import ImageResult
from segcore.sources.units import make_unit
from segcore.storage import Storage
from tests.support.commands import call_segcore

EDITION = "model-0123456789ab"
NAMES = ("a.png", "b.png", "c.png")


def _square(x: int, y: int, side: int, height: int = 60, width: int = 80) -> dict:
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[y : y + side, x : x + side] = 1
    return coco_mask.encode(mask)


def _instances(squares: list[tuple[int, int, int]], category: int = 1) -> Instances:
    rles = [_square(*square) for square in squares]
    return Instances(
        height=60,
        width=80,
        boxes=np.array([coco_mask.toBbox(r) for r in rles], np.float32).reshape(-1, 4),
        scores=np.linspace(0.9, 0.5, len(rles), dtype=np.float32),
        category_ids=np.full(len(rles), category, np.int32),
        areas=np.array([coco_mask.area(r) for r in rles], np.int64),
        counts=[r["counts"] for r in rles],
    )


SQUARES = {
    "a.png": [(2, 2, 10), (20, 20, 30)],
    "b.png": [(5, 5, 12)],
    "c.png": [(40, 10, 20), (2, 40, 15)],
}


def _ground_truth(names: dict[str, str] | None = None, category: str = "nucleus") -> dict:
    images, annotations = [], []
    for number, name in enumerate(NAMES, start=1):
        file_name = (names or {}).get(name, name)
        images.append({"id": number, "file_name": file_name, "height": 60, "width": 80})
        for square in SQUARES[name]:
            rle = _square(*square)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                }
            )
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": category}],
    }


def _result(image_id: str, squares: list[tuple[int, int, int]] | None) -> ImageResult:
    """Result of one image; a failed one where `squares` is None."""
    if squares is None:
        error = ImageError(ErrorCode.CORRUPT, "The pixels cannot be decoded.")
        return ImageResult(image_id, image_id, "e", error=error)
    return ImageResult(image_id, image_id, "e", 80, 60, _instances(squares))


def _write_output(
    output: Path,
    units: list[tuple[str, list[ImageResult]]],
    categories: tuple[tuple[int, str], ...] = ((1, "nucleus"),),
    latest: bool = True,
    edition: str = EDITION,
) -> None:
    storage = Storage()
    parts = Parts(storage, str(output / edition), edition, "run", "CC0-1.0", categories)
    for shard, results in units:
        kind = "tar" if shard else "objects"
        unit = make_unit(kind, shard=shard, etag="e", stop=len(results), n_images=None, n_bytes=0)
        parts.commit(unit, results)
    model = {"name": "m", "categories": [{"id": i, "name": n} for i, n in categories]}
    document = json.dumps({"edition": edition, "model": model})
    storage.write(str(output / edition / "edition.json"), document.encode())
    if latest:
        storage.write(str(output / "latest.json"), json.dumps({"edition": edition}).encode())


def _write_truth(folder: Path, truth: dict) -> str:
    path = folder / "truth.json"
    path.write_text(json.dumps(truth))
    return str(path)


def _perfect_units(shard: str = "/data/s.tar") -> list[tuple[str, list[ImageResult]]]:
    return [(shard, [_result(f"{shard}#{name}", SQUARES[name]) for name in NAMES])]


def test_a_perfect_output_scores_one(tmp_path: Path) -> None:
    _write_output(tmp_path / "out", _perfect_units())
    report = evaluate(Storage(), str(tmp_path / "out"), _write_truth(tmp_path, _ground_truth()))
    assert report.scores.mask.ap == pytest.approx(1.0)
    assert report.scores.box.ap == pytest.approx(1.0)
    assert report.scores.per_class[0].name == "nucleus"
    assert (report.images, report.failed, report.edition) == (3, 0, EDITION)
    assert (report.scores.n_ground_truth, report.scores.n_detections) == (5, 5)
    assert report.notes == ()


def test_scores_equal_those_of_detections_in_memory(tmp_path: Path) -> None:
    moved = {
        "a.png": [(3, 2, 10), (22, 21, 30)],
        "b.png": [(50, 5, 12), (5, 6, 12)],
        "c.png": [(41, 10, 19)],
    }
    rows = [_result(f"/d/s.tar#{name}", moved[name]) for name in NAMES]
    _write_output(tmp_path / "out", [("/d/s.tar", rows)])
    truth = _ground_truth()
    report = evaluate(Storage(), str(tmp_path / "out"), _write_truth(tmp_path, truth))
    detections = []
    for number, name in enumerate(NAMES, start=1):
        instances = _instances(moved[name])
        for k in range(len(instances)):
            detections.append(
                {
                    "image_id": number,
                    "category_id": 1,
                    "score": float(instances.scores[k]),
                    "segmentation": {"size": [60, 80], "counts": instances.counts[k]},
                    "bbox": instances.boxes[k].tolist(),
                }
            )
    expected = mask_and_box_ap(truth, [1, 2, 3], detections)
    assert report.scores == expected
    assert 0.1 < expected.mask.ap < 0.9


def test_failed_images_count_as_undetected_and_unknown_images_are_left_out(tmp_path: Path) -> None:
    shard = "/data/s.tar"
    rows = [
        _result(f"{shard}#a.png", SQUARES["a.png"]),
        _result(f"{shard}#b.png", None),
        _result(f"{shard}#c.png", SQUARES["c.png"]),
        _result(f"{shard}#unknown.png", [(1, 1, 5)]),
    ]
    _write_output(tmp_path / "out", [(shard, rows)])
    report = evaluate(Storage(), str(tmp_path / "out"), _write_truth(tmp_path, _ground_truth()))
    assert (report.images, report.failed, report.not_in_ground_truth) == (3, 1, 1)
    assert report.scores.mask.recall == pytest.approx(4 / 5)
    assert report.scores.n_detections == 4
    assert "1 image failed" in report.notes[0]


def test_images_that_the_output_lacks_are_an_error_unless_allowed(tmp_path: Path) -> None:
    _write_output(tmp_path / "out", [("/d/s.tar", [_result("/d/s.tar#a.png", SQUARES["a.png"])])])
    truth = _write_truth(tmp_path, _ground_truth())
    with pytest.raises(UsageError, match=r"2 images .*b\.png, c\.png") as caught:
        evaluate(Storage(), str(tmp_path / "out"), truth)
    assert "--allow-missing" in caught.value.hint
    report = evaluate(Storage(), str(tmp_path / "out"), truth, allow_missing=True)
    assert (report.images, report.not_in_output) == (1, 2)
    assert report.scores.mask.ap == pytest.approx(1.0)
    _write_output(tmp_path / "other", [("/d/s.tar", [_result("/d/s.tar#z.png", [])])])
    with pytest.raises(UsageError, match="3 images"):  # nothing is left to measure
        evaluate(Storage(), str(tmp_path / "other"), truth, allow_missing=True)


@pytest.mark.parametrize(
    ("image_ids", "file_names"),
    [
        (("/d/s.tar#x/a.png", "/d/s.tar#x/b.png", "/d/s.tar#x/c.png"), NAMES),
        (("s3://b/p/a.png", "s3://b/p/b.png", "s3://b/p/c.png"), NAMES),
        (("/d/s.tar#a", "/d/s.tar#b", "/d/s.tar#c"), NAMES),
        (("/d/s.tar#a.png", "/d/s.tar#b.png", "/d/s.tar#c.png"), ("v/a.png", "v/b.png", "v/c.png")),
        (("s3://b/v/1.png", "s3://b/t/1.png", "s3://b/2.png"), ("v/1.png", "t/1.png", "2.png")),
        (("/d/s.tar#1.png", "/d/s.tar#v/1.png", "/d/s.tar#2"), ("1.png", "v/1.png", "2.png")),
    ],
)
def test_file_names_match_keys_and_paths(
    tmp_path: Path, image_ids: tuple[str, ...], file_names: tuple[str, ...]
) -> None:
    rows = [_result(i, SQUARES[name]) for i, name in zip(image_ids, NAMES, strict=True)]
    _write_output(tmp_path / "out", [("/d/s.tar" if "#" in image_ids[0] else "", rows)])
    truth = _write_truth(tmp_path, _ground_truth(dict(zip(NAMES, file_names, strict=True))))
    assert evaluate(Storage(), str(tmp_path / "out"), truth).scores.mask.ap == pytest.approx(1.0)


def test_ambiguous_file_names_are_refused(tmp_path: Path) -> None:
    truth = _write_truth(tmp_path, _ground_truth())
    same_name_twice = [
        *_perfect_units("/d/one.tar"),
        ("/d/two.tar", [_result("/d/two.tar#a.png", [])]),
    ]
    _write_output(tmp_path / "out", same_name_twice)
    with pytest.raises(UsageError, match=r"told apart .*a\.png"):
        evaluate(Storage(), str(tmp_path / "out"), truth)
    folders = {"a.png": "v/1.png", "b.png": "t/1.png"}
    _write_output(tmp_path / "flat", [("/d/s.tar", [_result("/d/s.tar#1.png", [])])])
    with pytest.raises(UsageError, match=r"told apart .*1\.png"):
        evaluate(Storage(), str(tmp_path / "flat"), _write_truth(tmp_path, _ground_truth(folders)))


def test_a_different_size_is_refused_with_both_sizes(tmp_path: Path) -> None:
    _write_output(tmp_path / "out", _perfect_units())
    truth = _ground_truth()
    truth["images"][1]["width"] = 81
    with pytest.raises(UsageError, match=r"b\.png is 80 x 60 pixels, not 81 x 60"):
        evaluate(Storage(), str(tmp_path / "out"), _write_truth(tmp_path, truth))


def test_classes_are_matched_by_name_or_else_by_id(tmp_path: Path) -> None:
    categories = [TruthCategory(7, "Nucleus"), TruthCategory(8, "cell")]
    assert match_categories({1: "nucleus", 2: "debris"}, categories) == ({1: 7}, False)
    assert match_categories({7: "x", 8: "y"}, categories) == ({7: 7, 8: 8}, True)
    with pytest.raises(UsageError, match=r"debris.*Nucleus, cell"):
        match_categories({1: "debris"}, categories)
    twice = [*categories, TruthCategory("n", "nucleus "), TruthCategory(9, "Nucleus")]
    with pytest.raises(
        UsageError, match=r"nucleus of the model could be 3 classes .*id 7.*id n.*id 9"
    ):
        match_categories({1: "nucleus"}, twice)
    assert match_categories({9: "nucleus", 7: "Nucleus"}, twice) == ({9: 9, 7: 7}, False)
    _write_output(tmp_path / "out", _perfect_units())
    report = evaluate(
        Storage(), str(tmp_path / "out"), _write_truth(tmp_path, _ground_truth(category="zelle"))
    )
    assert report.scores.mask.ap == pytest.approx(1.0)
    assert "by their ids" in report.notes[0]


def test_detections_of_unknown_classes_are_left_out_and_counted(tmp_path: Path) -> None:
    units = _perfect_units()
    debris = ImageResult(
        "/d/t.tar#c.png", "u", "e", 80, 60, _instances([(1, 1, 9), (9, 9, 9)], category=2)
    )
    units[0][1].pop()
    units.append(("/d/t.tar", [debris]))
    _write_output(tmp_path / "out", units, categories=((1, "nucleus"), (2, "debris")))
    report = evaluate(Storage(), str(tmp_path / "out"), _write_truth(tmp_path, _ground_truth()))
    assert report.other_classes == 2
    assert report.scores.n_detections == 3
    assert "debris" in report.notes[0]


def test_the_edition_is_chosen_by_name_pointer_or_being_the_only_one(tmp_path: Path) -> None:
    output = tmp_path / "out"
    _write_output(output, _perfect_units(), latest=False)
    storage = Storage()
    assert open_results(storage, str(output)).name == EDITION
    assert open_results(storage, str(output / EDITION)).name == EDITION
    _write_output(output, _perfect_units(), latest=False, edition="other-1")
    with pytest.raises(UsageError, match="2 editions") as caught:
        open_results(storage, str(output))
    assert "other-1" in caught.value.hint
    assert open_results(storage, str(output), "other-1").name == "other-1"
    with pytest.raises(UsageError, match="no edition nix"):
        open_results(storage, str(output), "nix")
    _write_output(output, _perfect_units(), latest=True, edition="other-1")
    assert open_results(storage, str(output)).name == "other-1"
    with pytest.raises(UsageError, match="holds no edition"):
        open_results(storage, str(tmp_path / "nothing"))


def test_an_uncommitted_unit_is_not_read(tmp_path: Path) -> None:
    output = tmp_path / "out"
    _write_output(
        output, [*_perfect_units(), ("/d/t.tar", [_result("/d/t.tar#d.png", [(1, 1, 5)])])]
    )
    before = open_results(Storage(), str(output))
    assert sum(t.num_rows for t in before.instances()) == 6
    uncommitted = make_unit(
        "tar", shard="/d/t.tar", etag="e", stop=1, n_images=None, n_bytes=0
    ).unit
    (output / EDITION / "images" / f"{uncommitted}.parquet").unlink()
    after = open_results(Storage(), str(output))
    assert sum(t.num_rows for t in after.instances()) == 5
    assert sum(t.num_rows for t in after.images()) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "is not JSON"),
        ("[]", "no list `images`"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', r"images\[0\] has no"),
        ('{"images": [], "annotations": [], "categories": []}', "nothing to measure"),
    ],
)
def test_a_file_that_is_not_a_ground_truth_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    _write_output(tmp_path / "out", _perfect_units())
    (tmp_path / "truth.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        evaluate(Storage(), str(tmp_path / "out"), str(tmp_path / "truth.json"))


def test_annotations_without_a_mask_are_left_out_counted_and_named(tmp_path: Path) -> None:
    _write_output(tmp_path / "out", _perfect_units())
    truth = _ground_truth()
    truth["annotations"][3]["segmentation"] = []
    truth["annotations"][1]["segmentation"] = {"size": [9, 9], "counts": "Q3"}
    report = evaluate(Storage(), str(tmp_path / "out"), _write_truth(tmp_path, truth))
    assert report.notes == (
        "1 annotation with a mask of another size than its image: left out "
        "(id 2; the first: 9 x 9, not 80 x 60).",
        "1 annotation with an empty segmentation: left out (id 4).",
    )
    assert (report.scores.n_ground_truth, report.scores.n_detections) == (3, 5)
    for annotation in truth["annotations"]:
        del annotation["segmentation"]
    with pytest.raises(UsageError, match=r"5 annotations without a segmentation: left out"):
        evaluate(Storage(), str(tmp_path / "out"), _write_truth(tmp_path, truth))


def test_swapped_sides_are_refused_taken_as_shown_or_left_out(tmp_path: Path) -> None:
    _write_output(tmp_path / "out", _perfect_units())
    truth = _ground_truth()
    x, y, side = SQUARES["b.png"][0]
    corners = [x, y, x + side, y, x + side, y + side, x, y + side]
    truth["annotations"][2]["segmentation"] = [corners]  # as viewers show it
    truth["images"][1] |= {"width": 60, "height": 80}  # as it is stored
    path = _write_truth(tmp_path, truth)
    with pytest.raises(UsageError, match=r"swapped .*b\.png is 80 x 60 pixels") as caught:
        evaluate(Storage(), str(tmp_path / "out"), path)
    assert "--exif-labels shown" in caught.value.hint
    shown = evaluate(Storage(), str(tmp_path / "out"), path, exif_labels="shown")
    assert shown.scores.mask.ap == pytest.approx(1.0)
    assert (shown.images, shown.scores.n_ground_truth) == (3, 5)
    assert shown.notes == ("1 image with swapped sides in the ground truth: masks taken as shown.",)
    less = evaluate(Storage(), str(tmp_path / "out"), path, exif_labels="leave-out")
    assert (less.images, less.scores.n_ground_truth, less.scores.mask.ap) == (2, 4, 1.0)
    assert "left out" in less.notes[0]


def test_sizes_that_the_ground_truth_lacks_are_those_of_the_output(tmp_path: Path) -> None:
    _write_output(tmp_path / "out", _perfect_units())
    truth = _ground_truth()
    del truth["images"][0]["width"]
    truth["images"][2]["height"] = None
    report = evaluate(Storage(), str(tmp_path / "out"), _write_truth(tmp_path, truth))
    assert report.scores.mask.ap == pytest.approx(1.0)
    assert "2 images without a size" in report.notes[0]


@pytest.mark.parametrize(
    ("image_ids", "file_names", "found"),
    [
        (["v\\1.png"], ["v/1.png"], [[0]]),
        (["v/1.png"], ["C:\\data\\v\\1.png"], [[0]]),
        (["v\\1.png", "v/1.png"], ["v/1.png", "v\\1.png"], [[1], [0]]),
        (["1.png"], ["a/1.png", "b/1.png"], [[-1, -1]]),
        (["a/1", "/d/b/1"], ["./a//1.png", "b/1.png"], [[0], [1]]),
        (["x/1.png"], ["1.png", "x/1.jpg"], [[0]]),
        (["x/y/1.png"], ["y/1.png", "1.png"], [[0, 1]]),
    ],
)
def test_paths_are_found_by_their_ends(
    image_ids: list[str], file_names: list[str], found: list[list[int]]
) -> None:
    index = PathIndex(file_names)
    assert [index.find(image_id) for image_id in image_ids] == found


@pytest.mark.slow
def test_names_with_the_same_last_part_take_linear_time() -> None:
    names = [f"scans/{i}/image.png" for i in range(50_000)]
    index = PathIndex(names)
    # To look at all 50,000 for each of them would take longer than a test may.
    assert all(index.find(f"s3://b/{name}") == [i] for i, name in enumerate(names))


@pytest.mark.slow
def test_the_command_prints_json_or_a_table(tmp_path: Path) -> None:
    _write_output(tmp_path / "out", _perfect_units())
    truth = _write_truth(tmp_path, _ground_truth())

    completed = call_segcore("evaluate", str(tmp_path / "out"), truth, "--json")
    assert completed.returncode == 0, completed.stderr
    document = json.loads(completed.stdout)
    assert document["scores"]["mask"]["ap50"] == pytest.approx(1.0)
    assert completed.stderr == f"Edition {EDITION}, which is published.\n"
    completed = call_segcore("evaluate", str(tmp_path / "out"), truth)
    assert "nucleus" in completed.stdout
    assert "1.000" in completed.stdout
    completed = call_segcore("evaluate", str(tmp_path / "missing"), truth)
    assert completed.returncode == 2
    assert "holds no edition" in completed.stderr
    assert "Traceback" not in completed.stderr
