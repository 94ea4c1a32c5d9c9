"""The checks of a unit's two parts as plain loops over rows: what `check_pair` must agree with."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from segcore.errors import ErrorCode, WarningCode
from segcore.inspection.image_checks import PlannedPart
from segcore.inspection.part_checks import PartPair
from segcore.inspection.problems import Problem
from segcore.masks import bbox, decode
from segcore.output.layout import Table
from segcore.output.part_counts import PartCounts
from segcore.output.schema import SCHEMA_VERSION, add_new_columns, schema_of
from segcore.sources import file_image_id, page_image_id
from segcore.text import plural

_ERROR_CODES = frozenset(str(code) for code in ErrorCode)
_WARNING_CODES = frozenset(str(code) for code in WarningCode)


def reference_problems(pair: PartPair) -> Iterator[Problem]:
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
        "warnings": _count_warnings(pair.images),
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


def _count_warnings(images: pa.Table) -> dict[str, int]:
    """Images by code of their warnings; an older schema has no warnings."""
    if "warnings" not in images.column_names:
        return {}
    counts: Counter[str] = Counter()
    for texts in images["warnings"].to_pylist():
        counts.update({text.partition(":")[0] for text in texts})
    return dict(sorted(counts.items()))


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
    assert not isinstance(pair.planned, PlannedPart)
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
    for row in table.to_pylist():
        for kind, explanation in _mask_messages(row):
            message = f"instance {row['instance_index']}: {explanation}"
            yield Problem(kind, pair.instances_uri, message, row["image_id"])


def _mask_messages(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    height, width = row["height"], row["width"]
    try:
        pixels = int(decode(row["counts"], height, width).sum())
        tight_box = bbox(row["counts"], height, width)
    except ValueError as error:
        yield "bad_rle", f"{error}."
        return
    if row["area"] != pixels or pixels == 0:
        yield "wrong_area", f"area is {row['area']:,}, but the mask has {plural(pixels, 'pixel')}."
    if pixels and not _box_agrees(row, tight_box):
        box = ", ".join(f"{row[name]:.6g}" for name in ("bbox_x", "bbox_y", "bbox_w", "bbox_h"))
        tight = ", ".join(map(str, tight_box))
        message = f"box ({box}) does not agree with its mask's box ({tight}) on {width} x {height}."
        yield "wrong_box", message


def _box_agrees(row: dict[str, Any], tight_box: tuple[int, int, int, int]) -> bool:
    for axis, (start, length, canvas) in enumerate(
        (("bbox_x", "bbox_w", "width"), ("bbox_y", "bbox_h", "height"))
    ):
        low, size = row[start], row[length]
        slack = 1.0 + size / 28
        first, count = tight_box[axis], tight_box[axis + 2]
        lies_within = first >= low - slack and first + count <= low + size + slack
        if not (lies_within and low >= -1 and low + size <= row[canvas] + 1 and size >= 0):
            return False
    return True


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
