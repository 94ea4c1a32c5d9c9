"""Everything that can be wrong inside one unit's two parts, each with a name.

The rule for boxes: the tight box of the mask lies in the row's box grown on every side by
`BOX_SLACK_PIXELS` plus `BOX_SLACK_SHARE` of that side's length, and the row's box lies on the
canvas up to `BOX_SLACK_PIXELS`. Models crop masks to their box on whole pixels; the share is for
those that paste a 28 x 28 mask whose border samples reach 1/28 beyond it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segcore.errors import ErrorCode
from segcore.inspection.problems import Problem
from segcore.masks import decode
from segcore.masks.measure import MaskMeasures, measure_masks
from segcore.output.parts import (
    IMAGES_SCHEMA,
    INSTANCES_SCHEMA,
    SCHEMA_VERSION,
    counts_from_metadata,
)
from segcore.sources.units import Unit

BOX_SLACK_PIXELS = 1.0
BOX_SLACK_SHARE = 1 / 28
_CHUNK = 4096  # instances measured at once
_ERROR_CODES = frozenset(str(code) for code in ErrorCode)


@dataclass(frozen=True)
class PartPair:
    """The two parts of one unit as they were read.

    Attributes:
        unit: Its id, as the names of the files say.
        images_uri, instances_uri: The files.
        categories: id -> name of the edition.
        planned: The unit in the plan; None when there is no plan to compare with.
    """

    unit: str
    images_uri: str
    instances_uri: str
    images: pa.Table
    instances: pa.Table
    edition: str
    categories: dict[int, str]
    planned: Unit | None = None


def check_pair(pair: PartPair) -> Iterator[Problem]:
    """All problems of a readable pair; stops after wrong columns, for nothing else is sure then."""
    wrong = [
        Problem("wrong_schema", uri, f"its columns are not those of `{name}`: {difference}.")
        for name, uri, table, schema in (
            ("images", pair.images_uri, pair.images, IMAGES_SCHEMA),
            ("instances", pair.instances_uri, pair.instances, INSTANCES_SCHEMA),
        )
        if (difference := _schema_difference(table.schema, schema))
    ]
    if wrong:
        yield from wrong
        return
    yield from _check_metadata(pair)
    yield from _check_images(pair)
    yield from _check_against_plan(pair)
    yield from _check_membership(pair)
    yield from _check_instances(pair)


def _schema_difference(found: pa.Schema, wanted: pa.Schema) -> str:
    """What differs first, or ""."""
    if found.equals(wanted):
        return ""
    for name in wanted.names:
        if name not in found.names:
            return f"{name} is missing"
        if not found.field(name).equals(wanted.field(name)):
            return f"{name} is {found.field(name)}, not {wanted.field(name)}"
    extra = [name for name in found.names if name not in wanted.names]
    return f"{extra[0]} is unknown" if extra else "their order"


def _check_metadata(pair: PartPair) -> Iterator[Problem]:
    rows = pair.images
    failed = rows.filter(pc.equal(rows["status"], "failed"))
    truth: dict[str, Any] = {
        "failed": failed.num_rows,
        "images": rows.num_rows,
        "instances": pair.instances.num_rows,
        "failures": dict(Counter(failed["error_code"].to_pylist())),
    }
    for uri, table in ((pair.images_uri, pair.images), (pair.instances_uri, pair.instances)):
        metadata = table.schema.metadata or {}
        words = {
            "schema_version": str(SCHEMA_VERSION),
            "edition": pair.edition,
            "unit": pair.unit,
        }
        for name, value in words.items():
            found = metadata.get(f"segcore.{name}".encode(), b"").decode("utf-8", "replace")
            if found != value:
                yield Problem("wrong_metadata", uri, f"it says {name} {found!r}, not {value!r}.")
        try:
            counts = counts_from_metadata(metadata)
        except (KeyError, ValueError) as error:
            yield Problem("wrong_metadata", uri, f"it does not state its counts: {error}.")
            continue
        for name, value in truth.items():
            said = getattr(counts, name)
            if said != value:
                yield Problem("wrong_metadata", uri, f"it says {name} {said}, but holds {value}.")


def _check_images(pair: PartPair) -> Iterator[Problem]:
    for row in pair.images.to_pylist():
        for reason in _image_reasons(row, pair.unit):
            yield Problem("wrong_image_row", pair.images_uri, reason, row["image_id"])


def _image_reasons(row: dict[str, Any], unit: str) -> Iterator[str]:
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
            yield f"it failed and yet counts {row['n_instances']} instances."
    else:
        yield f"its status is {row['status']!r}, neither ok nor failed."
    if any(size is not None and size < 1 for size in (width, height)):
        yield f"its size is {width} x {height}."


def _check_against_plan(pair: PartPair) -> Iterator[Problem]:
    unit, uri, n = pair.planned, pair.images_uri, pair.images.num_rows
    if unit is None:
        return
    if unit.n_images is not None and unit.n_images != n:
        yield Problem("unbalanced", uri, f"it holds {n:,} images; the plan says {unit.n_images:,}.")
    shards = pc.unique(pair.images["shard"]).to_pylist()
    if shards not in ([], [unit.shard]):
        yield Problem("wrong_image_row", uri, f"its rows name shards {shards}, not {unit.shard!r}.")
    if unit.kind != "objects":
        return
    etags = dict(
        zip(pair.images["image_id"].to_pylist(), pair.images["etag"].to_pylist(), strict=True)
    )
    planned = {member.image_id: member.etag for member in unit.members}
    for image_id in planned.keys() - etags.keys():
        yield Problem("image_missing", uri, "the plan names it, the part has no row.", image_id)
    for image_id in etags.keys() - planned.keys():
        yield Problem("image_not_planned", uri, "it has a row, but is not in the plan.", image_id)
    for image_id in planned.keys() & etags.keys():
        if planned[image_id] not in ("", etags[image_id]):
            message = f"its row is of version {etags[image_id]!r}, not {planned[image_id]!r}."
            yield Problem("wrong_image_row", uri, message, image_id)


def _check_membership(pair: PartPair) -> Iterator[Problem]:
    """Each image has as many instances as its row says, on its canvas; none is of no image."""
    rows = {row["image_id"]: row for row in pair.images.to_pylist()}
    columns = [pair.instances[name].to_pylist() for name in ("image_id", "height", "width")]
    found = Counter(columns[0])
    uri = pair.instances_uri
    for image_id in found.keys() - rows.keys():
        message = f"{found[image_id]:,} instances of an image without a row in `images`."
        yield Problem("orphan_instance", uri, message, image_id)
    for image_id, row in rows.items():
        if found[image_id] != row["n_instances"]:
            message = f"it has {found[image_id]:,} instances; its row says {row['n_instances']:,}."
            yield Problem("unbalanced", uri, message, image_id)
    for image_id, height, width in sorted(set(zip(*columns, strict=True))):
        row = rows.get(image_id, {"height": height, "width": width})
        if (row["height"], row["width"]) != (height, width):
            message = f"a mask canvas is {width} x {height}, the image is {row['width']} x "
            yield Problem("wrong_canvas", uri, message + f"{row['height']}.", image_id)


def _check_instances(pair: PartPair) -> Iterator[Problem]:
    table = pair.instances.combine_chunks()
    yield from _check_order(pair, table)
    for start in range(0, table.num_rows, _CHUNK):
        chunk = table.slice(start, _CHUNK)
        columns = {
            name: chunk[name].to_numpy()
            for name in ("area", "height", "width", "bbox_x", "bbox_y", "bbox_w", "bbox_h")
        }
        measures = _measures(chunk["counts"], columns)
        for kind, places in _wrong(columns, measures).items():
            for place in places.tolist():
                row = chunk.slice(place, 1).to_pylist()[0]
                message = f"instance {row['instance_index']}: {_say(kind, row, measures, place)}"
                yield Problem(kind, pair.instances_uri, message, row["image_id"])


def _check_order(pair: PartPair, table: pa.Table) -> Iterator[Problem]:
    """Index from 0 without gaps, scores falling in [0, 1], categories of the edition."""
    ids = table["image_id"].to_pylist()
    indices = table["instance_index"].to_pylist()
    scores = table["score"].to_pylist()
    categories = zip(table["category_id"].to_pylist(), table["category"].to_pylist(), strict=True)
    before: tuple[str | None, int, float] = (None, -1, 1.0)
    uri = pair.instances_uri
    for image_id, index, score, category in zip(ids, indices, scores, categories, strict=True):
        last_index, last_score = before[1:] if before[0] == image_id else (-1, 1.0)
        where = f"instance {index}:"
        if index != last_index + 1:
            message = f"{where} index {last_index + 1} was expected."
            yield Problem("wrong_instance_row", uri, message, image_id)
        if not 0 <= score <= last_score:
            message = f"{where} its score {score:.6g} is not in [0, {last_score:.6g}]."
            yield Problem("wrong_instance_row", uri, message, image_id)
        if pair.categories.get(category[0]) != category[1]:
            message = f"{where} category {category[0]} {category[1]!r} is not of this edition."
            yield Problem("wrong_instance_row", uri, message, image_id)
        before = (image_id, index, score if 0 <= score <= 1 else last_score)


def _measures(counts: pa.ChunkedArray, columns: dict[str, np.ndarray]) -> MaskMeasures:
    array = pa.concat_arrays(counts.cast(pa.binary()).chunks or [pa.array([], pa.binary())])
    _, offsets, text = array.buffers()
    ends = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    raw = np.frombuffer(text, np.uint8) if text is not None else np.zeros(0, np.uint8)
    return measure_masks(
        raw[ends[0] : ends[-1]], ends - ends[0], columns["height"], columns["width"]
    )


def _wrong(columns: dict[str, np.ndarray], measures: MaskMeasures) -> dict[str, np.ndarray]:
    """Rows with each kind of problem; what depends on a malformed mask is not asked."""
    good = measures.valid
    with np.errstate(invalid="ignore", over="ignore"):
        off_box = good & (measures.areas > 0) & ~_box_agrees(columns, measures)
    wrong_area = good & ((columns["area"] != measures.areas) | (measures.areas == 0))
    found = {"bad_rle": ~good, "wrong_area": wrong_area, "wrong_box": off_box}
    return {kind: np.flatnonzero(rows) for kind, rows in found.items()}


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


def _say(kind: str, row: dict[str, Any], measures: MaskMeasures, place: int) -> str:
    if kind == "bad_rle":
        try:
            decode(row["counts"], row["height"], row["width"])
        except ValueError as error:
            return f"{error}."
        return "its RLE string is malformed."
    if kind == "wrong_area":
        return f"area is {row['area']:,}, but the mask has {measures.areas[place]:,} pixels."
    box = ", ".join(f"{row[name]:.6g}" for name in ("bbox_x", "bbox_y", "bbox_w", "bbox_h"))
    tight = ", ".join(str(value) for value in measures.boxes[place].tolist())
    canvas = f"{row['width']} x {row['height']}"
    return f"box ({box}) does not agree with its mask at ({tight}) on {canvas}."
