"""Images that differ most from one another: greedy k-centre over what was found in them.

Gonzalez (1985), "Clustering to minimize the maximum intercluster distance": each next image is the
one farthest from all before. So the largest distance of any image to the nearest chosen one is at
most twice the smallest that so many images could give.

The features of an image, each in [0, 1]; distances are Euclidean:

- the square root of each class's share of the instances (so the distance of two is that of
  Hellinger); beyond 128 classes, classes share columns;
- log2(1 + instances) / 10, at most 1;
- the share of the image that masks cover, overlaps counted twice, at most 1;
- mean and standard deviation of the masks' sizes, as the root of their share of the image;
- mean and standard deviation of the scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

MAX_CANDIDATES = 100_000  # of more images, so many are drawn at random
MAX_CHOSEN = 10_000
_MAX_COLUMNS = 128
_STEPS = 1e6  # distances are compared in millionths: beyond, processors differ


def feature_columns(categories: Iterable[str]) -> dict[str, int]:
    """The column of each class of a model."""
    names = sorted(set(categories))
    if len(names) <= _MAX_COLUMNS:
        return {name: column for column, name in enumerate(names)}
    digests = (hashlib.blake2b(name.encode(), digest_size=4).digest() for name in names)
    return {
        name: int.from_bytes(digest, "little") % _MAX_COLUMNS
        for name, digest in zip(names, digests, strict=True)
    }


def choose_diverse(features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Greedy k-centre; the first is the image nearest to the mean of all.

    Args:
        features: (N, D) float32. Of images at the same distance, the first is taken.

    Returns:
        (min(k, N),) rows, and (min(k, N),) float64 the distance of each to the nearest before;
        NaN for the first.
    """
    n = len(features)
    rows, distances = np.zeros(min(k, n), np.int64), np.full(min(k, n), np.nan)
    if not n:
        return rows, distances
    squares = np.einsum("nd,nd->n", features, features)
    centre = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    row = int(np.argmin(_in_steps(_squared(features, squares, centre))))
    nearest = np.full(n, np.inf, np.float32)
    for number in range(len(rows)):
        rows[number] = row
        nearest = np.minimum(nearest, _squared(features, squares, features[row]))
        nearest[rows[: number + 1]] = -1  # not again, even where all others are the same
        if number + 1 < len(rows):
            row = int(np.argmax(_in_steps(nearest)))
            distances[number + 1] = np.sqrt(max(float(nearest[row]), 0.0))
    return rows, distances


def _squared(features: np.ndarray, squares: np.ndarray, point: np.ndarray) -> np.ndarray:
    """(N,) squared distances to a point."""
    return np.maximum(squares - 2 * (features @ point) + float(point @ point), 0)


def _in_steps(values: np.ndarray) -> np.ndarray:
    return np.floor(values * _STEPS)
