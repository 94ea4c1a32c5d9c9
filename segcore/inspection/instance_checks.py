"""The rows of an `instances` part: against their images, each other, the edition and their masks.

The rule for boxes: the tight box of the mask lies in the row's box grown on every side by
`BOX_SLACK_PIXELS` plus `BOX_SLACK_SHARE` of that side's length, and the row's box lies on the
canvas up to `BOX_SLACK_PIXELS`. Models crop masks to their box on whole pixels; the share is for
those that paste a 28 x 28 mask whose border samples reach 1/28 beyond it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segcore.inspection.problems import Problem
from segcore.masks import decode
from segcore.masks.measure import MaskMeasures, measure_masks
from segcore.text import plural

BOX_SLACK_PIXELS = 1.0
BOX_SLACK_SHARE = 1 / 28
_NO_SIZE = np.iinfo(np.int64).min  # of an image whose row has none: no canvas is so high


class _Spans(NamedTuple):
    """Rows of the same image that follow each other.

    Attributes:
        image_ids: (S,) strings.
        starts, lengths: (S,) rows.
    """

    image_ids: pa.Array
    starts: np.ndarray
    lengths: np.ndarray


def _spans(instances: pa.Table) -> _Spans:
    runs = pc.run_end_encode(instances["image_id"].combine_chunks(), run_end_type=pa.int64())
    stops = runs.run_ends.to_numpy()
    lengths = np.diff(stops, prepend=0)
    return _Spans(runs.values, stops - lengths, lengths)


def check_membership(uri: str, images: pa.Table, instances: pa.Table) -> Iterator[Problem]:
    """Images have as many instances as their rows say, on their canvas; instances have an image.

    Args:
        images, instances: With today's columns, and at most one chunk in each.
    """
    image_ids = images["image_id"].combine_chunks()
    spans = _spans(instances)
    image_of_span = _last_rows(spans.image_ids, image_ids)
    has_image = image_of_span >= 0
    orphans: Counter[str] = Counter()
    for span in np.flatnonzero(~has_image).tolist():
        orphans[spans.image_ids[span].as_py()] += int(spans.lengths[span])
    for image_id, count in orphans.items():
        message = f"{plural(count, 'instance')} of an image without a row in `images`."
        yield Problem("orphan_instance", uri, message, image_id)
    n_instances = np.zeros(images.num_rows, np.int64)
    np.add.at(n_instances, image_of_span[has_image], spans.lengths[has_image])
    stated = images["n_instances"].to_numpy()
    counts = _last_rows(image_ids, image_ids) == np.arange(images.num_rows)
    for row in np.flatnonzero(counts & (n_instances != stated)).tolist():
        actual = plural(int(n_instances[row]), "instance")
        message = f"it has {actual}; its row says {int(stated[row]):,}."
        yield Problem("unbalanced", uri, message, image_ids[row].as_py())
    yield from _check_canvases(uri, images, instances, np.repeat(image_of_span, spans.lengths))


def _last_rows(image_ids: pa.Array, rows: pa.Array) -> np.ndarray:
    """(N,) for each id the last of `rows` that is equal to it; -1 where there is none."""
    backwards = rows.take(pa.array(np.arange(len(rows) - 1, -1, -1)))
    found = pc.index_in(image_ids, value_set=backwards)
    place = pc.fill_null(found, len(rows)).to_numpy(zero_copy_only=False).astype(np.int64)
    return np.asarray(len(rows) - 1 - place)


def _check_canvases(
    uri: str, images: pa.Table, instances: pa.Table, image_of_row: np.ndarray
) -> Iterator[Problem]:
    """Canvases have the size of their images and begin at their corner.

    Args:
        image_of_row: (N,) row of the image of each instance; -1 where it has none.
    """
    is_wrong = np.zeros(instances.num_rows, bool)
    for name in ("window_x", "window_y"):
        is_wrong |= instances[name].to_numpy() != 0
    for name in ("height", "width"):
        sizes = pc.fill_null(images[name].cast(pa.int64()), _NO_SIZE).to_numpy()
        if len(sizes):
            differs = instances[name].to_numpy() != sizes[image_of_row]
            is_wrong |= differs & (image_of_row >= 0)
    wrong = np.flatnonzero(is_wrong)
    names = ["image_id", "height", "width", "window_x", "window_y"]
    columns = [instances[name].take(pa.array(wrong)).to_pylist() for name in names]
    cases = set(zip(*columns, image_of_row[wrong].tolist(), strict=True))
    for image_id, height, width, *place, row in sorted(cases):
        size = (height, width)
        if row >= 0:
            size = images["height"][row].as_py(), images["width"][row].as_py()
        if size != (height, width):
            image_size = f"{size[1]} x {size[0]}"
            message = f"a mask's canvas is {width} x {height}, but the image is {image_size}."
        else:
            message = f"a mask's canvas is the whole image, and yet begins at {tuple(place)}."
        yield Problem("wrong_canvas", uri, message, image_id)


def check_instances(uri: str, instances: pa.Table, categories: dict[int, str]) -> Iterator[Problem]:
    """Order, scores and categories of the rows, and each mask with its area and box.

    Args:
        instances: With today's columns, and at most one chunk in each.
        categories: id -> name of the edition.
    """
    if instances.num_rows == 0:
        return
    yield from _check_order(uri, instances, categories)
    columns = {
        name: instances[name].to_numpy()
        for name in ("area", "height", "width", "bbox_x", "bbox_y", "bbox_w", "bbox_h")
    }
    measures = _measure_masks(instances["counts"], columns)
    for kind, indices in _mask_problems(columns, measures).items():
        for index in indices.tolist():
            row = instances.slice(index, 1).to_pylist()[0]
            explanation = _explain_mask_problem(kind, row, measures, index)
            message = f"instance {row['instance_index']}: {explanation}"
            yield Problem(kind, uri, message, row["image_id"])


def _check_order(uri: str, table: pa.Table, categories: dict[int, str]) -> Iterator[Problem]:
    """Index from 0 without gaps, scores descending within [0, 1], categories of the edition."""
    spans = _spans(table)
    indices = table["instance_index"].to_numpy().astype(np.int64)
    expected = np.concatenate(([0], indices[:-1] + 1))
    expected[spans.starts] = 0
    scores = table["score"].to_numpy()
    bounds = _score_bounds(scores, spans)
    wrong_index = indices != expected
    wrong_score = ~((scores >= 0) & (scores <= bounds))
    wrong_category = ~_is_of_edition(table, categories)
    for row in np.flatnonzero(wrong_index | wrong_score | wrong_category).tolist():
        image_id = table["image_id"][row].as_py()
        instance = f"instance {indices[row]}:"
        if wrong_index[row]:
            message = f"{instance} index {expected[row]} was expected."
            yield Problem("wrong_instance_row", uri, message, image_id)
        if wrong_score[row]:
            score, bound = float(scores[row]), float(bounds[row])
            message = f"{instance} its score {score:.6g} is not in [0, {bound:.6g}]."
            yield Problem("wrong_instance_row", uri, message, image_id)
        if wrong_category[row]:
            category_id, name = (
                table[column][row].as_py() for column in ("category_id", "category")
            )
            message = f"{instance} category {category_id} {name!r} is not in this edition."
            yield Problem("wrong_instance_row", uri, message, image_id)


def _score_bounds(scores: np.ndarray, spans: _Spans) -> np.ndarray:
    """(N,) what each score may not exceed: the last one of its image within [0, 1], or 1."""
    in_range = (scores >= 0) & (scores <= 1)
    if in_range.all():
        bounds = np.concatenate(([np.float32(1)], scores[:-1]))
        bounds[spans.starts] = 1
        return bounds
    last_in_range = np.maximum.accumulate(np.where(in_range, np.arange(scores.size), -1))
    before = np.concatenate(([-1], last_in_range[:-1]))
    is_of_image = before >= np.repeat(spans.starts, spans.lengths)
    return np.where(is_of_image, scores[before], np.float32(1))


def _is_of_edition(table: pa.Table, categories: dict[int, str]) -> np.ndarray:
    """(N,) bool: id and name are those of one category of the edition."""
    names = table["category"].combine_chunks().dictionary_encode()
    place_of_name = {name: place for place, name in enumerate(names.dictionary.to_pylist())}
    ids = sorted(categories)
    known_ids = pa.array([i for i in ids if -(2**31) <= i < 2**31], pa.int32())
    places = [place_of_name.get(categories[i], -1) for i in known_ids.to_pylist()]
    category = pc.index_in(table["category_id"].combine_chunks(), value_set=known_ids)
    expected = np.array([*places, -1])[pc.fill_null(category, len(places)).to_numpy()]
    return np.asarray(expected == names.indices.to_numpy())


def _measure_masks(counts: pa.ChunkedArray, columns: dict[str, np.ndarray]) -> MaskMeasures:
    array = counts.combine_chunks()
    _, offsets, text = array.buffers()
    ends = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    raw = np.frombuffer(text, np.uint8) if text is not None else np.zeros(0, np.uint8)
    return measure_masks(
        raw[ends[0] : ends[-1]], ends - ends[0], columns["height"], columns["width"]
    )


def _mask_problems(columns: dict[str, np.ndarray], measures: MaskMeasures) -> dict[str, np.ndarray]:
    """Kind of problem -> indices of its rows; malformed masks have no other problem than that."""
    valid = measures.valid
    with np.errstate(invalid="ignore", over="ignore"):
        wrong_box = valid & (measures.areas > 0) & ~_box_agrees(columns, measures)
    wrong_area = valid & ((columns["area"] != measures.areas) | (measures.areas == 0))
    masks_by_kind = {"bad_rle": ~valid, "wrong_area": wrong_area, "wrong_box": wrong_box}
    return {kind: np.flatnonzero(rows) for kind, rows in masks_by_kind.items()}


def _box_agrees(columns: dict[str, np.ndarray], measures: MaskMeasures) -> np.ndarray:
    """The rule at the head of this module; a box with NaN never agrees."""
    agrees = np.ones(len(measures.areas), bool)
    for start, length, canvas, axis in (
        ("bbox_x", "bbox_w", "width", 0),
        ("bbox_y", "bbox_h", "height", 1),
    ):
        low, size = columns[start].astype(np.float64), columns[length].astype(np.float64)
        slack = BOX_SLACK_PIXELS + BOX_SLACK_SHARE * size
        first, count = measures.boxes[:, axis], measures.boxes[:, axis + 2]
        agrees &= (first >= low - slack) & (first + count <= low + size + slack)
        agrees &= (low >= -BOX_SLACK_PIXELS) & (low + size <= columns[canvas] + BOX_SLACK_PIXELS)
        agrees &= size >= 0
    return agrees


def _explain_mask_problem(
    kind: str, row: dict[str, Any], measures: MaskMeasures, index: int
) -> str:
    if kind == "bad_rle":
        try:
            decode(row["counts"], row["height"], row["width"])
        except ValueError as error:
            return f"{error}."
        return "its RLE string is malformed."
    if kind == "wrong_area":
        pixels = plural(int(measures.areas[index]), "pixel")
        return f"area is {row['area']:,}, but the mask has {pixels}."
    box = ", ".join(f"{row[name]:.6g}" for name in ("bbox_x", "bbox_y", "bbox_w", "bbox_h"))
    tight_box = ", ".join(str(value) for value in measures.boxes[index].tolist())
    canvas = f"{row['width']} x {row['height']}"
    return f"box ({box}) does not agree with its mask's box ({tight_box}) on {canvas}."
