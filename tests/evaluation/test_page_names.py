"""Pages of TIFFs in a ground truth: named as in the output."""

from __future__ import annotations

from segcore.evaluation.ground_truth import TruthImage
from segcore.evaluation.matching import ImageRow, match_images


def _match(*names: str) -> tuple[dict[str, object], int, list[str]]:
    ids = ("/in/x/a.tif", "/in/x/a.tif#page=2", "/in/x/a.tif#page=3")
    rows = [ImageRow(image_id, "", 4, 4, False) for image_id in ids]
    match = match_images(rows, [TruthImage(name, name, 4, 4) for name in names])
    assert not match.ambiguous
    found = {row.removeprefix("/in/x/"): id_ for row, id_ in match.image_ids.items()}
    return found, match.unknown, match.missing


def test_the_name_of_the_file_is_its_first_page() -> None:
    assert _match("a.tif") == ({"a.tif": "a.tif"}, 2, [])


def test_other_pages_are_named_as_in_the_output() -> None:
    names = ("a.tif", "x/a.tif#page=3", "a.tif#page=4")
    found = {"a.tif": "a.tif", "a.tif#page=3": "x/a.tif#page=3"}
    assert _match(*names) == (found, 1, ["a.tif#page=4"])
