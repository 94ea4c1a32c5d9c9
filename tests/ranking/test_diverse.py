"""Greedy k-centre: equal to the definition, within its bound, and better than chance."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from segcore.ranking.diverse import choose_diverse, feature_columns


def _distances(features: np.ndarray) -> np.ndarray:
    wide = features.astype(np.float64)
    return np.sqrt(((wide[:, None] - wide[None]) ** 2).sum(axis=2))


def _radius(distances: np.ndarray, rows: np.ndarray) -> float:
    return float(distances[:, rows].min(axis=1).max())


def _clusters(rng: np.random.Generator, n: int) -> np.ndarray:
    """Many alike, few of many other kinds, as archives are."""
    centres = rng.random((12, 7))
    kinds = rng.choice(12, n, p=[0.6, *[0.4 / 11] * 11])
    return np.clip(centres[kinds] + rng.normal(0, 0.03, (n, 7)), 0, 1).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_each_next_one_is_farthest_from_those_before(seed: int) -> None:
    features = _clusters(np.random.default_rng(seed), 200)
    distances = _distances(features)
    rows, said = choose_diverse(features, 30)
    assert len(set(rows.tolist())) == 30
    middle = np.linalg.norm(features - features.mean(axis=0), axis=1)
    assert middle[rows[0]] == pytest.approx(middle.min(), abs=1e-3)
    assert np.isnan(said[0])
    for i in range(1, 30):
        nearest = distances[:, rows[:i]].min(axis=1)
        assert nearest[rows[i]] == pytest.approx(nearest.max(), abs=1e-3)
        assert said[i] == pytest.approx(nearest[rows[i]], abs=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_the_radius_is_at_most_twice_the_best(seed: int) -> None:
    features = np.random.default_rng(seed).random((14, 3)).astype(np.float32)
    distances = _distances(features)
    for k in (1, 2, 3, 4):
        best = min(_radius(distances, np.array(rows)) for rows in combinations(range(14), k))
        assert _radius(distances, choose_diverse(features, k)[0]) <= 2 * best + 1e-6


@pytest.mark.parametrize("k", [5, 20, 60])
def test_it_covers_more_than_chance(k: int) -> None:
    rng = np.random.default_rng(k)
    features = _clusters(rng, 800)
    distances = _distances(features)
    chosen = _radius(distances, choose_diverse(features, k)[0])
    chance = [_radius(distances, rng.choice(800, k, replace=False)) for _ in range(50)]
    assert chosen < min(chance)


def test_equal_images_and_few_images() -> None:
    same = np.full((4, 3), 0.5, np.float32)
    rows, distances = choose_diverse(same, 9)
    assert rows.tolist() == [0, 1, 2, 3]
    assert distances[1:].tolist() == [0, 0, 0]
    assert choose_diverse(np.zeros((0, 3), np.float32), 5)[0].size == 0


def test_classes_have_columns_of_their_own_until_there_are_too_many() -> None:
    assert feature_columns(["b", "a", "b"]) == {"a": 0, "b": 1}
    many = feature_columns(f"class {i}" for i in range(1000))
    assert len(many) == 1000
    assert set(many.values()) <= set(range(128))
    assert len(set(many.values())) > 100
