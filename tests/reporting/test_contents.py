"""Counts and groups of an edition against a plain walk through all rows."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from segcore.output.results import Results, open_results
from segcore.reporting import contents as module
from segcore.reporting.contents import (
    Group,
    area_bins,
    area_labels,
    count_bins,
    count_labels,
    read_contents,
    score_bins,
    score_labels,
)
from segcore.storage import Storage
from tests.support.generated_output import draw_instances
from tests.support.two_editions import write_images


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = str(tmp_path_factory.mktemp("out"))
    images = {
        f"s3://archive/photos/{i:02}.png": draw_instances("nuclei", (i * 7) % 12, i)
        for i in range(20)
    }
    write_images(folder, {**images, "s3://archive/photos/x.png": None}, 6, "one")
    return open_results(Storage(), folder)


def _holds(label: str, value: float) -> bool:
    low, _, high = label.replace(",", "").partition(" to ")
    return float(low) <= value <= float(high or low)


def test_every_value_is_in_the_bin_that_says_so() -> None:
    whole = np.array([*range(1, 300), *(2**k + d for k in range(9, 32) for d in (-1, 0, 1))])
    for value, place in zip(whole.tolist(), area_bins(whole).tolist(), strict=True):
        assert _holds(area_labels()[place], value)
    counts = np.array([0, *whole[whole <= 1 << 31]])
    for value, place in zip(counts.tolist(), count_bins(counts).tolist(), strict=True):
        assert _holds(count_labels()[place], value)
    for hundredth in range(101):
        score = np.array([hundredth / 100], np.float32)
        low = min(hundredth // 5, 19)
        label = score_labels()[int(score_bins(score)[0])]
        assert label == f"{low / 20:.2f} to {(low + 1) / 20:.2f}"


def test_counts_are_those_of_a_plain_walk(results: Results) -> None:
    found = read_contents(results, limit=4, seed=0)
    images = [row for table in results.images() for row in table.to_pylist()]
    rows = [row for table in results.instances() for row in table.to_pylist()]
    assert (found.ok, found.failed, found.instances) == (20, 1, len(rows))
    assert found.failures == {"corrupt": 1}
    assert found.per_image.sum() == 20
    assert found.per_image[0] == sum(r["status"] == "ok" and not r["n_instances"] for r in images)
    counts = Counter(row["category"] for row in rows)
    pairs = {(row["category"], row["image_id"]) for row in rows}
    assert set(found.categories.names) == set(counts)
    for name, place in found.categories.names.items():
        assert found.categories.scores[place].sum() == counts[name]
        assert found.categories.areas[place].sum() == counts[name]
        assert found.categories.per_image[place].sum() == sum(c == name for c, _ in pairs)
    scores = np.array([row["score"] for row in rows])
    totals = found.categories.scores.sum(axis=0)
    assert totals[10:].sum() == (scores.round(6) >= 0.5).sum()


def test_groups_are_those_of_a_plain_walk(results: Results) -> None:
    found = read_contents(results, 4, 0, ["s3://archive/photos/03.png", "nix"])
    assert list(found.records) == ["s3://archive/photos/03.png"]
    of_image = defaultdict(list)
    for table in results.instances():
        for row in table.to_pylist():
            of_image[row["image_id"]].append(row)
    ids = {group: [r.image_id for r in best.selected().records]
           for group, best in found.groups.items()}  # fmt: skip
    means = {name: np.mean([r["score"] for r in rows]) for name, rows in of_image.items()}
    assert ids[Group.LEAST_CERTAIN] == sorted(means, key=lambda name: means[name])[:4]
    largest = {name: max(r["area"] for r in rows) for name, rows in of_image.items()}
    tops = [largest[name] for name in ids[Group.LARGEST]]
    assert tops == sorted(largest.values(), reverse=True)[:4]
    crowds = [len(of_image[name]) for name in ids[Group.CROWDED]]
    assert crowds == sorted(map(len, of_image.values()), reverse=True)[:4]
    assert ids[Group.FAILED] == ["s3://archive/photos/x.png"]
    assert not set(ids[Group.EMPTY]) & set(of_image)
    again = read_contents(results, 4, 0).groups[Group.RANDOM].selected().records
    assert [r.image_id for r in again] == ids[Group.RANDOM]


def test_more_categories_than_there_is_room_for(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_CATEGORIES", 3)
    found = read_contents(results, 1, 0)
    assert len(found.categories.names) == 3
    assert found.categories.scores.sum() + found.categories.n_pooled == found.instances


def test_a_damaged_unit_costs_itself_alone(results: Results, tmp_path: Path) -> None:
    shutil.copytree(Path(results.prefix).parent, tmp_path / "out")
    damaged = open_results(Storage(), str(tmp_path / "out"))
    part = Path(damaged.layout.part("instances", damaged.units[0]))
    part.write_bytes(part.read_bytes()[:100])
    found = read_contents(damaged, 1, 0)
    assert (found.units, found.n_damaged) == (len(damaged.units) - 1, 1)
    assert damaged.units[0] in found.damaged_units[0]
