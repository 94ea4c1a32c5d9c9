"""Rankings of whole editions: the right order, the same again, and what becomes of them later."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import segcore
from segcore.errors import StorageError, UsageError
from segcore.instances import Instances
from segcore.output.layout import EditionLayout
from segcore.output.rankings import RANKING_SCHEMA, read_ranking
from segcore.output.results import open_results
from segcore.ranking import facts as facts_module
from segcore.ranking import rank as rank_module
from segcore.ranking.diverse import feature_columns
from segcore.storage import Storage
from tests.support.commands import call_segcore
from tests.support.generated_output import CATEGORIES, draw_instances
from tests.support.two_editions import write_images

storage = Storage()
NAMES = {category.id: category.name for category in CATEGORIES}
ROOT = "s3://archive/photos"


def _images(n: int) -> dict[str, Instances | None]:
    """Images with 0 to 5 instances, one of seven failed."""
    return {
        f"{ROOT}/{i:04}.jpg": None if i % 7 == 6 else draw_instances("nuclei", i * 5 % 6, i % 40)
        for i in range(n)
    }


def _write(folder: Path, images: dict[str, Instances | None]) -> EditionLayout:
    return write_images(str(folder), images, 9, "first")


@pytest.fixture(scope="module")
def images() -> dict[str, Instances | None]:
    return _images(60)


@pytest.fixture
def layout(tmp_path: Path, images: dict[str, Instances | None]) -> EditionLayout:
    return _write(tmp_path / "out", images)


def _rank(layout: EditionLayout, by: str, **options: object) -> list[dict]:
    report = segcore.rank(layout.prefix, by, **options)  # type: ignore[arg-type]
    return list(report.ranking.rows.to_pylist())


def _scores(images: dict[str, Instances | None]) -> dict[str, np.ndarray]:
    return {name: one.scores.astype(np.float64) for name, one in images.items() if one is not None}


def test_uncertain_and_crowded_are_in_order(
    layout: EditionLayout, images: dict[str, Instances | None]
) -> None:
    scores = _scores(images)
    rows = _rank(layout, "uncertain")
    doubts = {name: 1 - s.mean() if len(s) else 0.0 for name, s in scores.items()}
    assert {row["image_id"] for row in rows} == set(scores)  # no failed one
    assert [row["rank"] for row in rows] == list(range(1, len(scores) + 1))
    assert [row["score"] for row in rows] == pytest.approx(sorted(doubts.values(), reverse=True))
    assert all(row["score"] == pytest.approx(doubts[row["image_id"]]) for row in rows)
    best = scores[rows[0]["image_id"]]
    assert rows[0]["why"].endswith(f"mean score {best.mean():.2f}, lowest {best.min():.2f}")
    assert rows[-1]["why"] == "nothing found"
    rows = _rank(layout, "crowded", limit=7)
    counts = sorted((len(s) for s in scores.values()), reverse=True)
    assert [row["score"] for row in rows] == counts[:7]


@pytest.mark.parametrize("by", list(rank_module.RankBy))
def test_the_same_again_and_another_by_another_seed(
    by: str, layout: EditionLayout, images: dict[str, Instances | None], tmp_path: Path
) -> None:
    first = segcore.rank(layout.prefix, by)
    written = Path(first.ranking.uri).read_bytes()
    assert segcore.rank(layout.prefix, by).ranking.rows == first.ranking.rows
    assert Path(first.ranking.uri).read_bytes() == written
    table = pq.read_table(first.ranking.uri)
    assert table.schema.equals(RANKING_SCHEMA)
    # However the archive was cut into units, the order is the same.
    other = write_images(str(tmp_path / "other"), images, 17, "first")
    assert _rank(other, by) == first.ranking.rows.to_pylist()
    if by in ("random", "stratified"):
        again = _rank(layout, by, seed=1, name="again")
        assert again != first.ranking.rows.to_pylist()


def test_random_images_of_a_smaller_archive_keep_their_order(
    layout: EditionLayout, images: dict[str, Instances | None], tmp_path: Path
) -> None:
    some = _write(tmp_path / "some", dict(list(images.items())[:30]))
    kept = [row["image_id"] for row in _rank(some, "random")]
    assert [r["image_id"] for r in _rank(layout, "random") if r["image_id"] in kept] == kept


def test_each_stratum_has_its_share_of_any_first_images(
    tmp_path: Path,
) -> None:
    drawn = [draw_instances("nuclei", n, n) for n in (0, 2, 3, 5)]
    layout = _write(
        tmp_path / "out", {f"{ROOT}/{i:04}.jpg": drawn[(i % 10) // 3] for i in range(200)}
    )
    rows = _rank(layout, "stratified")
    strata = [row["why"].partition(": ")[2] for row in rows]
    totals = Counter(strata)
    assert len(totals) == 4
    for n in range(1, 201):
        found = Counter(strata[:n])
        assert all(abs(found[s] - n * total / 200) <= 1 for s, total in totals.items()), n
    assert rows[0]["why"].startswith(f"one of {totals[strata[0]]} images: ")
    by_count = segcore.rank(layout.prefix, "stratified", strata=["size"], name="by-size")
    assert {row.partition(": ")[2] for row in by_count.ranking.rows["why"].to_pylist()} == {
        "nothing found",
        "small masks",
    }


def test_facts_are_those_of_a_plain_count(
    layout: EditionLayout, images: dict[str, Instances | None]
) -> None:
    results = open_results(storage, layout.prefix)
    columns = feature_columns(NAMES.values())
    for unit in results.units:
        facts = facts_module.read_facts(results, unit, columns)
        for row, image_id in enumerate(facts.ids):
            one = images[image_id]
            assert one is not None
            names = [NAMES[int(c)] for c in one.category_ids]
            most = max(map(names.count, names), default=0)
            assert facts.categories[row] == min(
                (name for name in names if names.count(name) == most), default=""
            )
            sizes = [int(area >= 32**2) + int(area >= 96**2) for area in one.areas.tolist()]
            most = max(map(sizes.count, sizes), default=0)
            assert facts.sizes[row] == min((s for s in sizes if sizes.count(s) == most), default=-1)
            features = np.zeros(len(columns) + 6)
            for name in set(names):
                features[columns[name]] = np.sqrt(names.count(name) / len(names))
            lengths = np.sqrt(one.areas / (one.height * one.width))
            features[len(columns) :] = [
                np.log2(1 + len(names)) / 10,
                min(one.areas.sum() / (one.height * one.width), 1),
                *((lengths.mean(), lengths.std()) if names else (0, 0)),
                *((one.scores.mean(), one.scores.std()) if names else (0, 0)),
            ]
            assert facts.features[row] == pytest.approx(features, abs=1e-5)


def test_diverse_images_cover_more_than_random_ones(layout: EditionLayout) -> None:
    results = open_results(storage, layout.prefix)
    columns = feature_columns(NAMES.values())
    units = [facts_module.read_facts(results, unit, columns) for unit in results.units]
    ids = [image_id for facts in units for image_id in facts.ids]
    features = np.concatenate([facts.features for facts in units])

    def radius(chosen: list[str]) -> float:
        places = [ids.index(image_id) for image_id in chosen]
        gaps = np.linalg.norm(features[:, None] - features[places][None], axis=2)
        return float(gaps.min(axis=1).max())

    rows = _rank(layout, "diverse", limit=12)
    assert rows[0]["score"] is None
    assert rows[0]["why"].startswith("nearest to the average image; ")
    distances = [row["score"] for row in rows[1:]]
    assert distances == sorted(distances, reverse=True)
    chance = [
        radius([r["image_id"] for r in _rank(layout, "random", seed=s, name=f"r{s}", limit=12)])
        for s in range(4)
    ]
    assert radius([row["image_id"] for row in rows]) < min(chance)


def test_more_candidates_than_are_compared(
    layout: EditionLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_module, "MAX_CANDIDATES", 20)
    report = segcore.rank(layout.prefix, "diverse", limit=30)
    first = [row["image_id"] for row in _rank(layout, "random", limit=20)]
    assert set(report.ranking.rows["image_id"].to_pylist()) == set(first)
    assert report.n_candidates == 20
    assert "Chosen from 20 of 52 images" in report.notes[0]


def test_a_ranking_made_otherwise_is_kept_unless_told(layout: EditionLayout) -> None:
    _rank(layout, "random")
    with pytest.raises(UsageError, match="made otherwise: seed 0, not 3"):
        segcore.rank(layout.prefix, "random", seed=3)
    segcore.rank(layout.prefix, "random", seed=3, overwrite=True)
    assert read_ranking(open_results(storage, layout.prefix), "random").options["seed"] == 3


@pytest.mark.slow
def test_exports_take_the_first_of_a_ranking(layout: EditionLayout, tmp_path: Path) -> None:
    rows = _rank(layout, "uncertain")
    dest = tmp_path / "coco"
    done = call_segcore(
        "export",
        layout.prefix,
        str(dest),
        "--ranking",
        "uncertain",
        "--top",
        "5",
        "--workers",
        "1",
        "--json",
    )
    assert json.loads(done.stdout)["images"] == 5
    document = json.loads((dest / "instances-00001.json").read_text())
    names = {image["file_name"].rpartition("/")[2] for image in document["images"]}
    assert names == {row["image_id"].rpartition("/")[2] for row in rows[:5]}
    more = (
        "--ranking",
        "uncertain",
        "--top",
        "8",
        "--workers",
        "1",
        "--json",
    )  # continues with the next three
    done = call_segcore("export", layout.prefix, str(dest), *more)
    assert (json.loads(done.stdout)["images"], json.loads(done.stdout)["images_before"]) == (3, 5)
    done = call_segcore("export", layout.prefix, str(tmp_path / "x"), "--ranking", "nothing")
    assert (done.returncode, "has no ranking nothing" in done.stderr) == (2, True)
    assert "It has uncertain." in done.stderr


@pytest.mark.slow
def test_damage_is_said_and_the_rest_is_ranked(layout: EditionLayout) -> None:
    results = open_results(storage, layout.prefix)
    Path(layout.part("instances", results.units[2])).write_bytes(b"damaged")
    done = call_segcore("rank", layout.prefix, "--by", "uncertain", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 1
    assert [text.partition(":")[0] for text in document["damaged_units"]] == [results.units[2]]
    assert document["ranked"] == document["images"] < 52
    assert "A unit cannot be read and is left out" in done.stderr
    Path(layout.ranking("uncertain")).write_bytes(b"damaged")
    with pytest.raises(StorageError, match=r"uncertain\.parquet is not a readable ranking"):
        read_ranking(results, "uncertain")
    done = call_segcore("rank", layout.prefix, "--by", "uncertain", "--overwrite")
    assert (done.returncode, read_ranking(results, "uncertain").name) == (1, "uncertain")
    done = call_segcore("rank", layout.prefix, "--by", "diverse", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["images"]) == (1, 52)  # found out when they were chosen
    assert 30 < document["ranked"] < 52


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--by", "uncertain", "--name", "../x"), 2, "'../x' cannot be the name of a ranking"),
        (("--by", "diverse", "--limit", "10001"), 2, "has 1 to 10,000 images, not 10,001"),
        (("--by", "random", "--limit", "1000001"), 2, "has 1 to 1,000,000 images"),
        (("--by", "stratified", "--strata", "colour"), 2, "one or more of category, size, score"),
        (("--by", "stratified", "--strata", ","), 2, "The strata are none"),
    ],
)
def test_options_that_cannot_be_are_refused(
    arguments: tuple[str, ...], code: int, message: str, layout: EditionLayout
) -> None:
    done = call_segcore("rank", layout.prefix, *arguments)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    assert not Path(layout.rankings_folder).exists()


def test_an_edition_without_segmented_images(tmp_path: Path) -> None:
    layout = _write(tmp_path / "out", {f"{ROOT}/1.jpg": None})
    done = call_segcore("rank", layout.prefix, "--by", "random")
    assert (done.returncode, "has no segmented image to rank" in done.stderr) == (1, True)


def test_the_command_prints_the_first_ones(layout: EditionLayout) -> None:
    done = call_segcore("rank", layout.prefix, "--by", "crowded")
    assert done.returncode == 0
    assert done.stdout.count("5 instances") == 5
    assert f"Wrote {layout.ranking('crowded')}: 52 segmented images." in done.stderr
    done = call_segcore("sample-size", layout.prefix, "--error", "0.1")
    assert done.stdout.startswith("Check 34 of 52 images")
    assert f"segcore rank {layout.prefix} --by random --limit 34" in done.stderr
