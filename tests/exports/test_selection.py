"""Filters: what is exported is what a plain loop over all masks picks, and the rest is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from segcore.errors import ObjectNotFound, UsageError
from segcore.exports.export import export
from segcore.exports.options import ExportOptions
from segcore.output.results import Results
from tests.exports.conftest import PICTURES, drawn_masks

NAMES = {3: "cat", 5: "dog & <b>", 9: "tree"}


def exported(results: Results, archive: Path, **options: Any) -> tuple[dict[str, list], Any]:
    """Path -> [(class, score)], and the summary."""
    summary = export(results, str(archive / "dest"), ExportOptions(**options))
    (file,) = (archive / "dest").glob("instances-*.json")
    document = json.loads(file.read_bytes())
    names = {c["id"]: c["name"] for c in document["categories"]}
    paths = {i["id"]: i["segcore_image_id"].split("/in/")[1] for i in document["images"]}
    found: dict[str, list] = {path: [] for path in paths.values()}
    for one in document["annotations"]:
        entry = (names[one["category_id"]], round(one["score"], 4))
        found[paths[one["image_id"]]].append(entry)
    return found, summary


def picked(keep: Any, rename: dict[str, str] | None = None, most: int = 99) -> dict[str, list]:
    return {
        path: [
            ((rename or {}).get(NAMES[one.category], NAMES[one.category]), round(one.score, 4))
            for one in drawn_masks().get(path, [])
            if keep(one)
        ][:most]
        for path in PICTURES
    }


@pytest.mark.parametrize(
    ("options", "keep", "reason"),
    [
        (
            {"min_score": 0.55},
            lambda o: o.score >= np.float32(0.55),
            "masks_under_the_lowest_score",
        ),
        ({"min_area": 5}, lambda o: o.mask.sum() >= 5, "masks_under_the_smallest_area"),
        ({"max_area": 500}, lambda o: o.mask.sum() <= 500, "masks_over_the_largest_area"),
        ({"categories": ("cat", "tree")}, lambda o: o.category != 5, "masks_of_other_classes"),
        (
            {"min_score_by_category": {"cat": 0.9}, "min_score": 0.3},
            lambda o: o.score >= np.float32(0.9 if o.category == 3 else 0.3),
            "masks_under_the_lowest_score",
        ),
    ],
)  # fmt: skip
def test_masks_that_fail_a_filter_are_left_out_and_counted(
    results: Results, archive: Path, options: dict[str, Any], keep: Any, reason: str
) -> None:
    found, summary = exported(results, archive, **options)
    assert found == picked(keep)
    n_all = sum(map(len, drawn_masks().values()))
    assert summary.counts[reason] == n_all - summary.masks > 0


def test_renamed_classes_become_one(results: Results, archive: Path) -> None:
    rename = {"cat": "thing", "tree": "thing"}
    found, _ = exported(results, archive, rename=rename)
    assert found == picked(lambda o: True, rename)


def test_the_best_masks_of_an_image_stay(results: Results, archive: Path) -> None:
    found, summary = exported(results, archive, max_per_image=2)
    assert found == picked(lambda o: True, most=2)
    assert summary.counts["images_over_the_limit"] == 5
    assert summary.counts["masks_over_the_limit_per_image"] == 5 * 6


def test_images_by_pattern(results: Results, archive: Path) -> None:
    found, summary = exported(results, archive, include=("north/*",), exclude=("*.webp",))
    assert sorted(found) == ["north/a.jpg", "north/a.png"]
    assert summary.counts["images_not_included"] == 3
    assert summary.counts["images_excluded"] == 1


@pytest.mark.parametrize("heading", ["", "image_id,score\n"])
def test_a_list_names_images_by_id_path_or_file_name(
    results: Results, archive: Path, heading: str
) -> None:
    rows = [f"{archive}/in/north/a.png", "south/empty.png", "A.webp", "lost.png", "north/a.jpg"]
    file = archive / ("list.csv" if heading else "list.txt")
    file.write_text(heading + "\n".join(rows) + "\n\n")
    found, summary = exported(results, archive, image_list=str(file), top=4)
    assert sorted(found) == ["north/A.webp", "north/a.png", "south/empty.png"]
    assert summary.notes == ("1 entry of the image list match no image, such as 'lost.png'.",)


def test_empty_images_are_exported_unless_told_otherwise(results: Results, archive: Path) -> None:
    found, summary = exported(results, archive)
    assert found["south/empty.png"] == []
    assert summary.counts["images_without_masks"] == 1
    again = export(results, str(archive / "other"), ExportOptions(skip_empty=True))
    assert again.counts["empty_images_skipped"] == 1
    assert again.images == len(PICTURES) - 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"categories": ("cow",)}, "no class 'cow'"),
        ({"rename": {"cow": "x"}}, "no class 'cow'"),
        ({"min_score_by_category": {"cow": 0.1}}, "no class 'cow'"),
    ],
)
def test_a_class_that_the_model_lacks_is_refused(
    results: Results, archive: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        export(results, str(archive / "dest"), ExportOptions(**options))
    assert "cat, dog & <b>, tree" in caught.value.hint
    assert not (archive / "dest").exists()


def test_a_list_that_is_missing_empty_or_no_text_is_refused(
    results: Results, archive: Path
) -> None:
    file = archive / "list.txt"
    for content, kind in (
        (None, ObjectNotFound),
        (b"\n \n", UsageError),
        (b"\xff\xfe", UsageError),
    ):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(kind, match=r"list\.txt"):
            export(results, str(archive / "dest"), ExportOptions(image_list=str(file)))


@pytest.mark.parametrize(
    "images",
    [
        "all",
        "url:",
        "url:https://host/fixed.jpg",
        "url:https://host/{nothing}",
        "url:https://host/{name",
        "url:https://user:word@host/{name}",
        "url:https://host/{name}?X-Amz-Signature=abc",
        "url:https://host/{name}?v=1&sig=abc",
        "url:https://host/{name}?token=abc",
    ],
)
def test_ways_to_name_images_that_are_not_safe_are_refused(images: str) -> None:
    with pytest.raises(ValidationError):
        ExportOptions(images=images)
