"""Areas and boxes of many strings at once against decoding each of them."""

from __future__ import annotations

import numpy as np
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
    return measure_masks(np.frombuffer(b"".join(texts), np.uint8), offsets, heights, widths)


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
