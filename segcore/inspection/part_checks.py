"""Everything that can be wrong inside one unit's two parts, each with a name.

The rule for boxes: the tight box of the mask lies in the row's box grown on every side by
`BOX_SLACK_PIXELS` plus `BOX_SLACK_SHARE` of that side's length, and the row's box lies on the
canvas up to `BOX_SLACK_PIXELS`. Models crop masks to their box on whole pixels; the share is for
those that paste a 28 x 28 mask whose border samples reach 1/28 beyond it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segcore.errors import ErrorCode, WarningCode
from segcore.inspection.problems import Problem
from segcore.masks import decode
from segcore.masks.measure import MaskMeasures, measure_masks
from segcore.output.layout import Table
from segcore.output.part_counts import PartCounts
from segcore.output.schema import SCHEMA_VERSION, add_new_columns, schema_of
from segcore.sources import file_image_id, page_image_id
from segcore.sources.units import Unit
from segcore.text import plural

BOX_SLACK_PIXELS = 1.0
BOX_SLACK_SHARE = 1 / 28
_INSTANCES_AT_ONCE = 4096  # measured together
_ERROR_CODES = frozenset(str(code) for code in ErrorCode)
_WARNING_CODES = frozenset(str(code) for code in WarningCode)


@dataclass(frozen=True)
class PartPair:
    """The two parts of one unit as they were read.

    Attributes:
        unit: Its id, as the names of the files say.
        images_uri, instances_uri: The files.
        edition: Name of the edition.
        categories: id -> name of the edition.
        planned: The unit in the plan; None when there is no plan to compare with.
        schema_version: Of the edition.
    """

    unit: str
    images_uri: str
    instances_uri: str
    images: pa.Table
    instances: pa.Table
    edition: str
    categories: dict[int, str]
    planned: Unit | None = None
    schema_version: int = SCHEMA_VERSION


def check_pair(pair: PartPair) -> Iterator[Problem]:
    """All problems of a readable pair.

    Stops after wrong columns, because no other check can rely on anything then. Parts of an older
    schema are checked as if they had today's columns.
    """
    tables: dict[Table, pa.Table] = {}
    parts: tuple[tuple[Table, str, pa.Table], ...] = (
        ("images", pair.images_uri, pair.images),
        ("instances", pair.instances_uri, pair.instances),
    )
    for name, uri, rows in parts:
        difference = _schema_difference(rows.schema, schema_of(name, pair.schema_version))
        if difference:
            message = f"its columns are not those of `{name}`: {difference}."
            yield Problem("wrong_schema", uri, message)
        else:
            tables[name] = add_new_columns(rows, name, schema_of(name, SCHEMA_VERSION).names)
    if len(tables) < 2:
        return
    pair = replace(pair, images=tables["images"], instances=tables["instances"])
    yield from _check_metadata(pair)
    yield from _check_images(pair)
    yield from _check_pages(pair)
    yield from _check_against_plan(pair)
    yield from _check_membership(pair)
    yield from _check_instances(pair)


def _schema_difference(actual: pa.Schema, expected: pa.Schema) -> str:
    """The first difference, or ""."""
    if actual.equals(expected):
        return ""
    for name in expected.names:
        if name not in actual.names:
            return f"{name} is missing"
        if not actual.field(name).equals(expected.field(name)):
            return f"{name} is {actual.field(name)}, not {expected.field(name)}"
    unknown = [name for name in actual.names if name not in expected.names]
    return f"{unknown[0]} is unknown" if unknown else "they are in another order"


def _check_metadata(pair: PartPair) -> Iterator[Problem]:
    failed = pair.images.filter(pc.equal(pair.images["status"], "failed"))
    expected_counts: dict[str, Any] = {
        "failed": failed.num_rows,
        "images": pair.images.num_rows,
        "instances": pair.instances.num_rows,
        "failures": dict(Counter(failed["error_code"].to_pylist())),
        "warnings": count_warnings(pair.images),
    }
    expected_texts = {
        "schema_version": str(pair.schema_version),
        "edition": pair.edition,
        "unit": pair.unit,
    }
    for uri, table in ((pair.images_uri, pair.images), (pair.instances_uri, pair.instances)):
        metadata = table.schema.metadata or {}
        for name, expected in expected_texts.items():
            text = metadata.get(f"segcore.{name}".encode(), b"").decode("utf-8", "replace")
            if text != expected:
                message = f"its metadata says {name} {text!r}, not {expected!r}."
                yield Problem("wrong_metadata", uri, message)
        try:
            counts = PartCounts.from_metadata(metadata)
        except (KeyError, ValueError) as error:
            message = f"its metadata does not state its counts: {error}."
            yield Problem("wrong_metadata", uri, message)
            continue
        for name, expected in expected_counts.items():
            stated = getattr(counts, name)
            if stated != expected:
                message = f"its metadata says {name} {stated}, but the rows give {expected}."
                yield Problem("wrong_metadata", uri, message)


def count_warnings(images: pa.Table) -> dict[str, int]:
    """Images by code of their warnings; an older schema has no warnings."""
    if "warnings" not in images.column_names:
        return {}
    counts: Counter[str] = Counter()
    for texts in images["warnings"].to_pylist():
        counts.update({text.partition(":")[0] for text in texts})
    return dict(counts)


def _check_images(pair: PartPair) -> Iterator[Problem]:
    for row in pair.images.to_pylist():
        for message in _image_row_messages(row, pair.unit):
            yield Problem("wrong_image_row", pair.images_uri, message, row["image_id"])


def _image_row_messages(row: dict[str, Any], unit: str) -> Iterator[str]:
    width, height = row["width"], row["height"]
    if row["unit"] != unit:
        yield f"its row names the unit {row['unit']}."
    if row["status"] == "ok":
        if row["error_code"] is not None or row["error_message"] is not None:
            yield "its row is ok and yet has an error."
        if width is None or height is None:
            yield "its row is ok but has no width and height."
    elif row["status"] == "failed":
        if row["error_code"] not in _ERROR_CODES:
            yield f"it failed for the unknown reason {row['error_code']!r}."
        if row["n_instances"] != 0:
            yield f"it failed and yet its row counts {plural(row['n_instances'], 'instance')}."
    else:
        yield f"its status is {row['status']!r}, neither ok nor failed."
    if any(size is not None and size < 1 for size in (width, height)):
        yield f"its size is {width} x {height}."
    for text in row["warnings"]:
        if text.partition(": ")[0] not in _WARNING_CODES:
            yield f"it has the unknown warning {text[:100]!r}."
    if row["page"] is not None and row["page"] < 1:
        yield f"its page is {row['page']}; pages count from 1."


def _check_pages(pair: PartPair) -> Iterator[Problem]:
    """Where pages of a file are images, there is each of them from the first to the last."""
    pages: dict[str, list[int]] = {}
    paged = pair.images.filter(pc.is_valid(pair.images["page"]))
    for row in paged.select(["image_id", "page"]).to_pylist():
        file_id, page = file_image_id(row["image_id"], row["page"]), row["page"]
        if page_image_id(file_id, page) != row["image_id"]:
            message = f"its page is {page}, but its id says otherwise."
            yield Problem("wrong_image_row", pair.images_uri, message, row["image_id"])
        pages.setdefault(file_id, []).append(page)
    for file_id, numbers in pages.items():
        if sorted(numbers) != list(range(1, len(numbers) + 1)):
            missing = next(page for page in itertools.count(1) if page not in numbers)
            message = f"its pages go to {max(numbers):,}, but page {missing:,} has no row."
            yield Problem("image_missing", pair.images_uri, message, file_id)


def _check_against_plan(pair: PartPair) -> Iterator[Problem]:
    unit, uri, n_images = pair.planned, pair.images_uri, pair.images.num_rows
    if unit is None:
        return
    if unit.n_images is not None and unit.n_images != n_images:
        message = f"it holds {plural(n_images, 'image')}; the plan says {unit.n_images:,}."
        yield Problem("unbalanced", uri, message)
    shards = pc.unique(pair.images["shard"]).to_pylist()
    if shards not in ([], [unit.shard]):
        yield Problem("wrong_image_row", uri, f"its rows name shards {shards}, not {unit.shard!r}.")
    if unit.kind != "objects":
        return
    rows = pair.images.select(["image_id", "page", "etag"]).to_pylist()
    etags = {file_image_id(row["image_id"], row["page"]): row["etag"] for row in rows}
    planned_etags = {member.image_id: member.etag for member in unit.members}
    for image_id in planned_etags.keys() - etags.keys():
        message = "it is in the plan, but has no row in the part."
        yield Problem("image_missing", uri, message, image_id)
    for image_id in etags.keys() - planned_etags.keys():
        message = "it has a row, but is not in the plan."
        yield Problem("image_not_planned", uri, message, image_id)
    for image_id in planned_etags.keys() & etags.keys():
        planned_etag = planned_etags[image_id]
        if planned_etag not in ("", etags[image_id]):
            message = f"its row is of version {etags[image_id]!r}, not {planned_etag!r}."
            yield Problem("wrong_image_row", uri, message, image_id)


def _check_membership(pair: PartPair) -> Iterator[Problem]:
    """Images have as many instances as their rows say, on their canvas; instances have an image."""
    image_rows = {row["image_id"]: row for row in pair.images.to_pylist()}
    names = ("image_id", "height", "width", "window_x", "window_y")
    columns = [pair.instances[name].to_pylist() for name in names]
    n_instances = Counter(columns[0])
    uri = pair.instances_uri
    for image_id in n_instances.keys() - image_rows.keys():
        orphans = plural(n_instances[image_id], "instance")
        message = f"{orphans} of an image without a row in `images`."
        yield Problem("orphan_instance", uri, message, image_id)
    for image_id, row in image_rows.items():
        if n_instances[image_id] != row["n_instances"]:
            actual = plural(n_instances[image_id], "instance")
            message = f"it has {actual}; its row says {row['n_instances']:,}."
            yield Problem("unbalanced", uri, message, image_id)
    for image_id, height, width, *place in sorted(set(zip(*columns, strict=True))):
        row = image_rows.get(image_id, {"height": height, "width": width})
        if (row["height"], row["width"]) != (height, width):
            image_size = f"{row['width']} x {row['height']}"
            message = f"a mask's canvas is {width} x {height}, but the image is {image_size}."
            yield Problem("wrong_canvas", uri, message, image_id)
        elif any(place):
            message = f"a mask's canvas is the whole image, and yet begins at {tuple(place)}."
            yield Problem("wrong_canvas", uri, message, image_id)


def _check_instances(pair: PartPair) -> Iterator[Problem]:
    table = pair.instances.combine_chunks()
    yield from _check_order(pair, table)
    for start in range(0, table.num_rows, _INSTANCES_AT_ONCE):
        chunk = table.slice(start, _INSTANCES_AT_ONCE)
        columns = {
            name: chunk[name].to_numpy()
            for name in ("area", "height", "width", "bbox_x", "bbox_y", "bbox_w", "bbox_h")
        }
        measures = _measure_masks(chunk["counts"], columns)
        for kind, indices in _mask_problems(columns, measures).items():
            for index in indices.tolist():
                row = chunk.slice(index, 1).to_pylist()[0]
                explanation = _explain_mask_problem(kind, row, measures, index)
                message = f"instance {row['instance_index']}: {explanation}"
                yield Problem(kind, pair.instances_uri, message, row["image_id"])


def _check_order(pair: PartPair, table: pa.Table) -> Iterator[Problem]:
    """Index from 0 without gaps, scores descending within [0, 1], categories of the edition."""
    ids = table["image_id"].to_pylist()
    indices = table["instance_index"].to_pylist()
    scores = table["score"].to_pylist()
    categories = zip(table["category_id"].to_pylist(), table["category"].to_pylist(), strict=True)
    previous: tuple[str | None, int, float] = (None, -1, 1.0)  # image id, index, score
    uri = pair.instances_uri
    for image_id, index, score, category in zip(ids, indices, scores, categories, strict=True):
        last_index, last_score = previous[1:] if previous[0] == image_id else (-1, 1.0)
        instance = f"instance {index}:"
        if index != last_index + 1:
            message = f"{instance} index {last_index + 1} was expected."
            yield Problem("wrong_instance_row", uri, message, image_id)
        if not 0 <= score <= last_score:
            message = f"{instance} its score {score:.6g} is not in [0, {last_score:.6g}]."
            yield Problem("wrong_instance_row", uri, message, image_id)
        if pair.categories.get(category[0]) != category[1]:
            message = f"{instance} category {category[0]} {category[1]!r} is not in this edition."
            yield Problem("wrong_instance_row", uri, message, image_id)
        previous = (image_id, index, score if 0 <= score <= 1 else last_score)


def _measure_masks(counts: pa.ChunkedArray, columns: dict[str, np.ndarray]) -> MaskMeasures:
    array = pa.concat_arrays(counts.cast(pa.binary()).chunks or [pa.array([], pa.binary())])
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
