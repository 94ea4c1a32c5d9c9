"""Areas and boxes of many strings at once against decoding each of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from segcore import masks
from segcore.masks.measure import MaskMeasures, measure_masks

bitmaps = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: st_numpy.arrays(np.uint8, shape, elements=st.integers(0, 1))
)


def _measure(texts: list[bytes], sizes: list[tuple[int, int]]) -> MaskMeasures:
    offsets = np.concatenate(([0], np.cumsum([len(text) for text in texts]))).astype(np.int64)
    heights, widths = np.array(sizes, np.int32).reshape(-1, 2).T
    text = np.frombuffer(b"".join(texts), np.uint8)
    arrays, compiled = (
        measure_masks(text, offsets, heights, widths, backend) for backend in ("numpy", "compiled")
    )
    for name in ("valid", "areas", "boxes"):
        assert getattr(arrays, name).tolist() == getattr(compiled, name).tolist()
    return arrays


@given(st.lists(bitmaps, max_size=6))
def test_areas_and_boxes_are_those_of_the_bitmaps(images: list[np.ndarray]) -> None:
    texts = [masks.encode(image) for image in images]
    measures = _measure(texts, [image.shape for image in images])
    assert measures.valid.all()
    assert measures.areas.tolist() == [int(image.sum()) for image in images]
    assert [tuple(box) for box in measures.boxes.tolist()] == [
        masks.bbox(text, *image.shape) for text, image in zip(texts, images, strict=True)
    ]


@given(
    st.lists(
        st.tuples(bitmaps, st.binary(max_size=3), st.integers(0, 20), st.integers(-1, 1)),
        max_size=6,
    )
)
def test_a_malformed_string_is_reported_and_does_not_affect_the_others(
    items: list[tuple[np.ndarray, bytes, int, int]],
) -> None:
    texts, sizes, expected_areas = [], [], []
    for image, extra, at, wider in items:
        text = masks.encode(image)
        text = text[:at] + extra + text[at:]
        height, width = image.shape[0], image.shape[1] + wider
        texts.append(text)
        sizes.append((height, width))
        try:
            mask = masks.decode(text, height, width)
        except ValueError:
            expected_areas.append(None)
        else:
            expected_areas.append(int(mask.sum()))
    measures = _measure(texts, sizes)
    assert measures.valid.tolist() == [area is not None for area in expected_areas]
    assert measures.areas.tolist() == [area or 0 for area in expected_areas]


def test_a_large_canvas_and_no_string_at_all() -> None:
    text = masks.counts_to_string(np.array([10**8, 5, 4 * 10**8 - 5]))
    measures = _measure([text], [(20_000, 25_000)])
    assert (measures.valid[0], measures.areas[0]) == (True, 5)
    assert measures.boxes[0].tolist() == [5000, 0, 1, 5]
    assert len(_measure([], []).valid) == 0


def test_a_string_that_ends_inside_a_number_leaves_the_next_one_alone() -> None:
    wide = masks.counts_to_string(np.array([40_000, 5, 59_995]))  # begins with a long number
    measures = _measure([b"oooooo", wide, b"o" * 8 + b"0", wide], [(100, 1000)] * 4)
    assert measures.valid.tolist() == [False, True, False, True]
    assert measures.areas.tolist() == [0, 5, 0, 5]


def test_groups_of_strings_are_measured_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    images = [rng.random(rng.integers(1, 40, 2)) < rng.random() for _ in range(60)]
    texts = [masks.encode(image) for image in images]
    texts[7] = texts[31] = b"oo"
    sizes = [image.shape for image in images]
    whole = _measure(texts, sizes)
    monkeypatch.setattr("segcore.masks.measure._CHARS_AT_ONCE", 100)
    assert _measure(texts, sizes).boxes.tolist() == whole.boxes.tolist()
    assert np.flatnonzero(~whole.valid).tolist() == [7, 31]
