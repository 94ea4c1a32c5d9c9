"""What the readers say of each file, and what segcore must therefore give."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from segcore.errors import ImageError
from segcore.images import DecodeOptions, decode_with_warnings
from tests.grid.files import GridFile

RESULTS = {
    "same": "as all readers",
    "as two": "as at least two readers; others differ",
    "as one": "as one reader; others differ, and not two of them agree",
    "refused": "an error code",
    "alone": "no reader reads it",
    "WRONG": "two readers agree, segcore differs",
    "UNLIKE ALL": "no reader gives the same",
}


class Verdict(NamedTuple):
    """What became of one file: one of `RESULTS`, and the refusal or who differs by how much."""

    file: GridFile
    result: str
    detail: str


def judge(file: GridFile, others: Mapping[str, np.ndarray]) -> Verdict:
    """Compare segcore's pixels with those of the others."""
    try:
        ours = decode_with_warnings(file.data, DecodeOptions()).pixels
    except ImageError as error:
        return Verdict(
            file,
            "refused",
            f"{error.code}: {error.message} (read by {', '.join(others) or 'nobody'})",
        )
    distances = {name: distance(ours, image) for name, image in others.items()}
    equal = {name for name, apart in distances.items() if apart <= file.tolerance}
    detail = ", ".join(f"{name} {apart:g}" for name, apart in distances.items())
    if not others:
        return Verdict(file, "alone", "")
    if len(equal) == len(others):
        return Verdict(file, "same", detail)
    if not equal:
        agreed = [
            (first, second)
            for first, second in itertools.combinations(others, 2)
            if distance(others[first], others[second]) <= file.tolerance
        ]
        return Verdict(file, "WRONG" if agreed else "UNLIKE ALL", f"{detail}; agreed: {agreed}")
    if len(equal) >= 2:
        return Verdict(file, "as two", detail)
    different = [name for name in others if name not in equal]
    agreed = [
        (first, second)
        for first, second in itertools.combinations(different, 2)
        if distance(others[first], others[second]) <= file.tolerance
    ]
    return Verdict(file, "WRONG" if agreed else "as one", f"{detail}; agreed: {agreed}")


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Largest difference of a sample; infinite where the sizes differ."""
    if first.shape != second.shape:
        return float("inf")
    return float(np.abs(first.astype(int) - second).max())
