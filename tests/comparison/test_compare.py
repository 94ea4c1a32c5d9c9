"""Whole comparisons: every image is accounted for, however both sides were cut and damaged."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segcore.comparison import compare as module
from segcore.comparison.compare import CompareOptions, compare
from segcore.comparison.matching import Change, MatchLimits
from segcore.errors import SegcoreError, UsageError
from segcore.instances import Instances
from segcore.masks import decode
from segcore.output.layout import EditionLayout
from segcore.storage import Storage
from tests.comparison.test_matching import plain_matches
from tests.support.commands import call_segcore
from tests.support.generated_output import CATEGORIES, draw_instances
from tests.support.two_editions import drift, truth_bytes, write_images

storage = Storage()
NAMES = {category.id: category.name for category in CATEGORIES}
Images = Mapping[str, Instances | None]
ROOT = "s3://archive/photos"


def _image_id(number: int, root: str = ROOT) -> str:
    return f"{root}/{number:03}.jpg"


def _drawn(n: int, seed: int = 0) -> dict[str, Instances]:
    return {_image_id(i): draw_instances("nuclei", 3 + i % 4, 100 * seed + i) for i in range(n)}


def _plain(found: Instances, min_score: float) -> list:
    return [
        (decode(text, found.height, found.width).astype(bool), NAMES[int(category)])
        for text, category, score in zip(
            found.counts, found.category_ids, found.scores, strict=True
        )
        if score >= min_score
    ]


def _plain_changes(first: Images, second: Images, min_score: float = 0.0) -> Counter[Change]:
    changes: Counter[Change] = Counter()
    for image_id, found in first.items():
        other = second.get(image_id)
        if found is not None and other is not None:
            sides = [[_plain(one, min_score)] for one in (found, other)]
            changes.update(row[3] for row in plain_matches(*sides, MatchLimits()))
    return changes


@pytest.mark.parametrize("per_unit", [(4, 4), (4, 3), (3, 5)])
@pytest.mark.parametrize("min_score", [0.0, 0.5])
def test_two_editions(tmp_path: Path, per_unit: tuple[int, int], min_score: float) -> None:
    first: dict[str, Instances | None] = dict(_drawn(12))
    second: dict[str, Instances | None] = {
        image_id: drift(found, seed)
        for seed, (image_id, found) in enumerate(first.items())
        if found
    }
    del second[_image_id(1)], first[_image_id(7)]
    first[_image_id(2)] = second[_image_id(3)] = None
    second[_image_id(5)] = draw_instances("photos", 2, 1)  # another size
    write_images(f"{tmp_path}/a", first, per_unit[0], "first")
    write_images(f"{tmp_path}/b", second, per_unit[1], "second", etags={_image_id(8): "v2"})
    table = tmp_path / "changes.parquet"
    options = CompareOptions(min_score=min_score, table=table, threads=3)
    found = compare(storage, f"{tmp_path}/a", f"{tmp_path}/b", options)
    compared = {k: v for k, v in first.items() if k != _image_id(5)}
    assert found.totals.changes == _plain_changes(compared, second, min_score)
    assert dict(found.images) == {
        "compared": 6, "compared_though_the_file_changed": 1, "only_in_a": 1, "only_in_b": 1,
        "failed_in_a": 1, "failed_in_b": 1, "of_other_size": 1,
    }  # fmt: skip
    assert found.totals.images == 7
    rows = pq.read_table(table)
    assert Counter(rows["change"].to_pylist()) == {
        change.word: n for change, n in found.totals.changes.items()
    }
    _check_rows(rows.to_pylist(), first, second)
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    for key in ("by_category", "by_score"):
        groups = document[key].values() if key == "by_category" else document[key]
        assert Counter({w.word: sum(g[w.word] for g in groups) for w in Change}) == Counter(
            document["changes"]
        )
    assert sum(row["pairs"] for row in document["by_iou"]) == document["score_change"]["pairs"]
    assert [i["changed"] for i in document["most_changed"]] == sorted(
        (i["changed"] for i in document["most_changed"]), reverse=True
    )


def _check_rows(rows: list[dict[str, Any]], first: Images, second: Images) -> None:
    for row in rows:
        for name, side in (("a", first), ("b", second)):
            index = row[f"instance_index_{name}"]
            found = side[row["image_id"]]
            assert found is not None
            if index is None:
                assert row["change"] == ("appeared" if name == "a" else "vanished")
                continue
            assert row[f"score_{name}"] == float(found.scores[index])
            assert row[f"category_{name}"] == NAMES[int(found.category_ids[index])]


def test_an_edition_is_the_same_as_itself_and_swapping_swaps(tmp_path: Path) -> None:
    first = _drawn(6)
    second = {image_id: drift(found, 1) for image_id, found in first.items()}
    write_images(f"{tmp_path}/a", first, 4, "first")
    write_images(f"{tmp_path}/b", second, 4, "second")
    sides = f"{tmp_path}/a", f"{tmp_path}/b"
    itself = compare(storage, sides[0], sides[0]).totals
    assert set(itself.changes) == {Change.SAME}
    assert (itself.changed_images, itself.share(), itself.most_changed()) == (0, 0.0, [])
    there, back = (compare(storage, *order).totals.changes for order in (sides, sides[::-1]))
    there[Change.VANISHED], there[Change.APPEARED] = there[Change.APPEARED], there[Change.VANISHED]
    assert there == back


def test_known_masks_on_either_side(tmp_path: Path) -> None:
    truth = _drawn(6)
    found: dict[str, Instances | None] = {
        k: drift(v, seed) for seed, (k, v) in enumerate(truth.items())
    }
    del truth[_image_id(4)], found[_image_id(5)]
    write_images(f"{tmp_path}/out", found, 4, "model")
    storage.write(f"{tmp_path}/truth.json", truth_bytes(truth))
    sides = f"{tmp_path}/out", f"{tmp_path}/truth.json"
    comparison = compare(storage, *sides)
    assert comparison.totals.changes == _plain_changes(found, truth)
    assert dict(comparison.images) == {"compared": 4, "only_in_a": 1, "only_in_b": 1}
    swapped = compare(storage, *sides[::-1])
    assert swapped.totals.changes == _plain_changes(truth, found)
    assert dict(swapped.images) == {"compared": 4, "only_in_a": 1, "only_in_b": 1}
    bands = comparison.to_dict()["by_score"]
    assert [row["appeared"] > 0 for row in bands if row["from"] is None] == [True]
    storage.write(f"{tmp_path}/truth.json", truth_bytes(truth, crowds=[1, 2]))
    comparison = compare(storage, *sides)
    assert comparison.totals.n_instances <= sum(_plain_changes(found, truth).values())
    assert any("2 crowd regions" in note for note in comparison.notes)


def test_copies_of_an_archive_are_matched_by_the_path_in_it(tmp_path: Path) -> None:
    first = _drawn(5)
    copies = {image_id.replace(ROOT, "/data/copy"): found for image_id, found in first.items()}
    write_images(f"{tmp_path}/a", first, 2, "first")
    write_images(f"{tmp_path}/b", copies, 3, "second", archive="/data/copy")
    comparison = compare(storage, f"{tmp_path}/a", f"{tmp_path}/b")
    assert dict(comparison.images) == {"compared": 5}
    assert any("different archives" in note for note in comparison.notes)
    others = {f"s3://elsewhere/{i}.jpg": found for i, found in enumerate(first.values())}
    write_images(f"{tmp_path}/c", others, 3, "third", archive="s3://elsewhere")
    with pytest.raises(UsageError, match="no image in common"):
        compare(storage, f"{tmp_path}/a", f"{tmp_path}/c")


def _first_part(layout: EditionLayout) -> Path:
    return sorted(Path(layout.parts_folder("instances")).glob("*.parquet"))[0]


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("per_unit", [(2, 2), (2, 3)])
def test_a_damaged_part_is_said_and_the_rest_is_compared(
    tmp_path: Path, side: int, per_unit: tuple[int, int]
) -> None:
    first = _drawn(6)
    layouts = [
        write_images(f"{tmp_path}/{n}", first, k, n) for n, k in zip("ab", per_unit, strict=True)
    ]
    _first_part(layouts[side]).write_bytes(b"damaged")
    comparison = compare(storage, f"{tmp_path}/a", f"{tmp_path}/b")
    assert 1 <= len(comparison.damaged_units) <= 2
    assert comparison.totals.images == 6 - 2 * len(comparison.damaged_units)
    done = call_segcore("compare", f"{tmp_path}/a", f"{tmp_path}/b")
    assert done.returncode == 1
    assert "cannot be read: left out" in done.stderr


def test_damaged_masks_cost_their_image_alone(tmp_path: Path) -> None:
    first = _drawn(4)
    layout = write_images(f"{tmp_path}/a", first, 2, "first")
    write_images(f"{tmp_path}/b", first, 2, "second")
    part = _first_part(layout)
    rows = pq.read_table(part)
    texts = ["0", *rows["counts"].to_pylist()[1:]]
    place = rows.column_names.index("counts")
    pq.write_table(rows.set_column(place, rows.schema.field("counts"), pa.array(texts)), part)
    comparison = compare(storage, f"{tmp_path}/a", f"{tmp_path}/b")
    assert dict(comparison.images) == {"compared": 3, "with_damaged_masks": 1}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--max-changed", "0"], 4, "of all objects changed; --max-changed 0 allows"),
        (["--max-relabelled", "0", "--max-moved", "1"], 4, "relabelled"),
        (["--max-changed", "1"], 0, ""),
        (["--same-iou", "0.3"], 2, "--same-iou 0.3 is below --match-iou 0.5"),
        (["--max-changed", "1.5"], 2, "--max-changed"),
        (["--edition-b", "nix"], 2, "has no edition nix"),
        (["--table", "no/such/folder/x.parquet"], 1, "cannot be written"),
    ],
)
def test_the_command(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    first = _drawn(3)
    write_images(f"{tmp_path}/a", first, 4, "first")
    write_images(f"{tmp_path}/b", {k: drift(v, 3) for k, v in first.items()}, 4, "second")
    done = call_segcore("compare", f"{tmp_path}/a", f"{tmp_path}/b", *arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert message in done.stderr
    if code in (0, 4):
        assert "3 images compared" in done.stdout
        document = json.loads(call_segcore(*done.args[:3], *arguments, "--json").stdout)
        assert bool(document["limits_exceeded"]) == (code == 4)


def test_two_ground_truths_are_refused() -> None:
    with pytest.raises(UsageError, match="Both sides are ground truths"):
        compare(storage, "a.json", "b.json")


def test_errors_of_our_own_are_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(f"{tmp_path}/a", _drawn(2), 4, "first")

    def fail(*arguments: object) -> None:
        raise SegcoreError("no damage")

    monkeypatch.setattr(module, "match_instances", fail)
    with pytest.raises(SegcoreError, match="no damage"):
        compare(storage, f"{tmp_path}/a", f"{tmp_path}/a")
