"""Intersections and IoU from run lengths: those of pycocotools, and of counting pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from segcore import masks
from segcore.masks import from_logits, overlap
from segcore.masks.overlap import MaskStrings, find_meeting_boxes, intersect_masks, iou

BACKENDS = ["numpy", *(["compiled"] if from_logits.default_backend() == "compiled" else [])]
KINDS = ("noise", "box", "full", "empty", "first", "last", "row", "column", "blobs")


def draw_mask(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A bitmap of one of many kinds: ragged, empty, full, with holes, touching all borders."""
    kind, mask = rng.choice(KINDS), np.zeros((height, width), bool)
    if kind == "noise":
        mask = rng.random((height, width)) < rng.choice([0.05, 0.5, 0.95])
    elif kind == "box":
        top, left = int(rng.integers(height)), int(rng.integers(width))
        mask[
            top : top + 1 + int(rng.integers(height)), left : left + 1 + int(rng.integers(width))
        ] = 1
    elif kind == "full":
        mask[:] = True
    elif kind == "first":
        mask[0, 0] = True
    elif kind == "last":
        mask[-1, -1] = True
    elif kind == "row":
        mask[int(rng.integers(height))] = True
    elif kind == "column":
        mask[:, int(rng.integers(width))] = True
    elif kind == "blobs":
        mask = rng.random((-(-height // 4), -(-width // 4))) < 0.4
        mask = np.kron(mask, np.ones((4, 4), bool))[:height, :width]
    return mask


def strings_of(bitmaps: list[np.ndarray]) -> MaskStrings:
    heights, widths = (np.array([b.shape[axis] for b in bitmaps], np.int64) for axis in (0, 1))
    return MaskStrings.of_strings([masks.encode(b) for b in bitmaps], heights, widths)


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    seed=st.integers(0, 2**32 - 1),
    canvas=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    n=st.integers(0, 6),
    m=st.integers(0, 6),
)
def test_equals_pycocotools(
    backend: str, seed: int, canvas: tuple[int, int], n: int, m: int
) -> None:
    rng = np.random.default_rng(seed)
    bitmaps = [[draw_mask(rng, *canvas) for _ in range(k)] for k in (n, m)]
    first, second = map(strings_of, bitmaps)
    is_crowd = rng.random(m) < 0.3
    pairs = np.argwhere(np.ones((n, m), bool))
    rles = [[coco.encode(np.asfortranarray(b.astype(np.uint8))) for b in side] for side in bitmaps]
    expected = np.array(coco.iou(*rles, is_crowd.astype(int).tolist())).reshape(n, m)
    found = iou(first, second, pairs, is_crowd, backend).reshape(n, m)  # type: ignore[arg-type]
    assert found.tolist() == expected.tolist()
    meeting = find_meeting_boxes(
        first.measures.boxes, second.measures.boxes, np.array([0, n]), np.array([0, m])
    )
    assert {tuple(p) for p in np.argwhere(expected > 0)} <= {tuple(p) for p in meeting}
    common = intersect_masks(first, second, meeting, backend).tolist()  # type: ignore[arg-type]
    assert common == [int((bitmaps[0][i] & bitmaps[1][j]).sum()) for i, j in meeting]


@pytest.mark.parametrize("backend", BACKENDS)
def test_pairs_of_many_images_and_canvases(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "_MAX_LOOKUPS", 50)
    monkeypatch.setattr(overlap, "_MAX_BOX_PAIRS", 7)
    rng = np.random.default_rng(1)
    sizes = [(4, 3), (0, 2), (5, 0), (1, 1), (6, 6)]
    canvases = [(30, 20), (5, 5), (1, 1), (1, 400), (64, 3)]
    bitmaps: list[list[np.ndarray]] = [[], []]
    for counts, canvas in zip(sizes, canvases, strict=True):
        for side, count in zip(bitmaps, counts, strict=True):
            side += [draw_mask(rng, *canvas) for _ in range(count)]
    offsets = [np.cumsum([0, *(size[side] for size in sizes)]) for side in (0, 1)]
    first, second = map(strings_of, bitmaps)
    pairs = find_meeting_boxes(first.measures.boxes, second.measures.boxes, *offsets)
    expected = {}
    for image in range(len(sizes)):
        for i in range(offsets[0][image], offsets[0][image + 1]):
            for j in range(offsets[1][image], offsets[1][image + 1]):
                if pixels := int((bitmaps[0][i] & bitmaps[1][j]).sum()):
                    expected[i, j] = pixels
    common = intersect_masks(first, second, pairs, backend).tolist()  # type: ignore[arg-type]
    found = {tuple(p): n for p, n in zip(pairs.tolist(), common, strict=True) if n}
    assert found == expected
    assert pairs.tolist() == sorted(pairs.tolist())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_largest_canvas(backend: str) -> None:
    height, width = 65535, 65537  # 2**32 - 1 pixels
    runs = [[0, height * width], [height * width], [2**31, 2**30, 2**32 - 1 - 2**31 - 2**30]]
    strings = [masks.counts_to_string(np.array(one)) for one in runs]
    side = MaskStrings.of_strings(strings, np.full(3, height), np.full(3, width))
    pairs = np.argwhere(np.ones((3, 3), bool))
    common = intersect_masks(side, side, pairs, backend).reshape(3, 3)  # type: ignore[arg-type]
    assert common.tolist() == [[2**32 - 1, 0, 2**30], [0, 0, 0], [2**30, 0, 2**30]]


def test_columns_of_a_mask_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(1, 12, 2).tolist()
        bitmap = draw_mask(rng, height, width)
        left, right = np.sort(rng.integers(0, width + 1, 2)).tolist()
        part = masks.decode_columns(masks.encode(bitmap), height, width, left, right)
        np.testing.assert_array_equal(part, bitmap[:, left:right])
    with pytest.raises(ValueError, match="columns"):
        masks.decode_columns(masks.encode(bitmap), height, width, 0, width + 1)
