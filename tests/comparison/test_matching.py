"""Matching of instances against a plain search with pycocotools' IoU."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from segcore import masks
from segcore.comparison.instances import ImageInstances
from segcore.comparison.matching import Change, Matches, MatchLimits, match_instances
from segcore.evaluation.objects import text_of
from segcore.masks import from_logits
from tests.masks.test_overlap import draw_mask

BACKENDS = ["numpy", *(["compiled"] if from_logits.default_backend() == "compiled" else [])]
Instance = tuple[np.ndarray, str]  # bitmap, category


def draw_side(rng: np.random.Generator, images: list[list[Instance]] | None = None) -> list:
    """Instances of some images; with `images`, many of theirs come back, changed or not."""
    side = []
    for k in range(3):
        own: list[Instance] = []
        canvas = (9 + 3 * k, 14 - 4 * k)
        for bitmap, category in images[k] if images else ():
            fate = rng.random()
            if fate < 0.3:
                own.append((bitmap, category))
            elif fate < 0.6:
                moved = np.roll(bitmap, rng.integers(-1, 2, 2), (0, 1))
                own.append((moved, str(rng.choice(["cat", "dog"]))))
        own += [(draw_mask(rng, *canvas), str(rng.choice(["cat", "dog"]))) for _ in
                range(rng.integers(0, 4))]  # fmt: skip
        side.append(own)
    return side


def as_arrays(images: list[list[Instance]]) -> ImageInstances:
    flat = [instance for image in images for instance in image]
    return ImageInstances.of_lists(
        [len(image) for image in images],
        [masks.encode(bitmap) for bitmap, _ in flat],
        [bitmap.shape for bitmap, _ in flat],
        [category for _, category in flat],
        [0.5] * len(flat),
    )


def plain_matches(
    first: list[list[Instance]], second: list[list[Instance]], limits: MatchLimits
) -> set[tuple]:
    """(image, place in A, place in B, change, IoU), pair by pair."""
    found = set()
    for image, (own, other) in enumerate(zip(first, second, strict=True)):
        candidates = []
        for i, (a, category) in enumerate(own):
            for j, (b, other_category) in enumerate(other):
                rles = [coco.encode(np.asfortranarray(m.astype(np.uint8))) for m in (a, b)]
                value = float(coco.iou([rles[0]], [rles[1]], [0])[0, 0])
                if value >= limits.match_iou and value > 0:
                    candidates.append((category != other_category, -value, i, j))
        free_a, free_b = set(range(len(own))), set(range(len(other)))
        for is_other, value, i, j in sorted(candidates):
            if i in free_a and j in free_b:
                free_a.remove(i)
                free_b.remove(j)
                change = Change.SAME if -value >= limits.same_iou else Change.MOVED
                found.add((image, i, j, Change.RELABELLED if is_other else change, -value))
        found |= {(image, i, None, Change.VANISHED, None) for i in free_a}
        found |= {(image, None, j, Change.APPEARED, None) for j in free_b}
    return found


def as_set(matches: Matches, first: ImageInstances, second: ImageInstances) -> set[tuple]:
    rows = set()
    for k in range(len(matches.changes)):
        places = [
            None if row < 0 else int(side.indices[row])
            for row, side in ((matches.first[k], first), (matches.second[k], second))
        ]
        value = None if np.isnan(matches.ious[k]) else float(matches.ious[k])
        rows.add((int(matches.images[k]), *places, Change(matches.changes[k]), value))
    assert len(rows) == len(matches.changes)
    return rows


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    seed=st.integers(0, 2**32 - 1),
    match_iou=st.sampled_from([0.01, 0.3, 0.5, 0.75, 1.0]),
    same_iou=st.sampled_from([0.5, 0.9, 1.0]),
)
def test_equals_a_plain_search(backend: str, seed: int, match_iou: float, same_iou: float) -> None:
    rng = np.random.default_rng(seed)
    limits = MatchLimits(match_iou, max(match_iou, same_iou))
    first = draw_side(rng)
    second = draw_side(rng, first)
    a, b = as_arrays(first), as_arrays(second)
    matches = match_instances(a, b, limits, backend)  # type: ignore[arg-type]
    assert as_set(matches, a, b) == plain_matches(first, second, limits)
    assert (np.diff(matches.images) >= 0).all()
    itself = match_instances(a, a, limits, backend)  # type: ignore[arg-type]
    n_empty = sum(not bitmap.any() for image in first for bitmap, _ in image)
    assert (itself.changes == Change.SAME).sum() == len(a) - n_empty


def test_text_of_sliced_and_chunked_columns() -> None:
    for column in (
        pa.chunked_array([["a", "bc", ""], ["", "défg"]]),
        pa.chunked_array([["a", "bc", ""], ["", "défg"]]).slice(1, 3),
        pa.chunked_array([pa.array([], pa.string())]),
        pa.chunked_array([["", ""]]),
    ):
        text, offsets = text_of(column)
        strings = [text[i:j].tobytes().decode() for i, j in pairwise(offsets)]
        assert strings == column.to_pylist()
