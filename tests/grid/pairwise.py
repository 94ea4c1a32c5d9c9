"""Rows of choices in which each pair of values of two factors occurs at least once."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]


def pairwise(
    factors: Mapping[str, Sequence[Any]],
    is_possible: Callable[[Row], bool] = lambda row: True,
    seed: int = 0,
) -> list[Row]:
    """Few rows that hold each possible pair of values; greedy, the same for the same seed.

    Args:
        factors: Name -> values.
        is_possible: Whether a whole row can be written as a file. A pair that no row can hold is
            left out.
    """
    rng = random.Random(seed)
    names = list(factors)
    missing = {
        ((first, a), (second, b))
        for first, second in itertools.combinations(names, 2)
        for a in factors[first]
        for b in factors[second]
    }
    rows: list[Row] = []
    for pair in sorted(missing, key=repr):
        if pair not in missing:
            continue
        best, best_gain = None, 0
        for _ in range(400):
            row = {name: rng.choice(factors[name]) for name in names} | dict(pair)
            if not is_possible(row):
                continue
            gain = len(_pairs(row) & missing)
            if gain > best_gain:
                best, best_gain = row, gain
            if best_gain and rng.random() < 0.05:
                break
        missing.discard(pair)
        if best is not None:
            missing -= _pairs(best)
            rows.append(best)
    return rows


def _pairs(row: Row) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    return set(itertools.combinations(row.items(), 2))
