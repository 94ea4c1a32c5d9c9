"""Everything that can be wrong inside one unit's two parts, each with a name.

Rows are checked as columns; a Python object is made only of a row that has a problem.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from segcore.inspection.image_checks import PlannedPart, check_images, count_warnings
from segcore.inspection.instance_checks import check_instances, check_membership
from segcore.inspection.problems import Problem
from segcore.output.layout import Table
from segcore.output.part_counts import PartCounts
from segcore.output.schema import SCHEMA_VERSION, add_new_columns, schema_of
from segcore.sources.units import Unit


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
    planned: Unit | PlannedPart | None = None
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
        difference = _schema_difference(rows, schema_of(name, pair.schema_version))
        if difference:
            message = f"its columns are not those of `{name}`: {difference}."
            yield Problem("wrong_schema", uri, message)
        else:
            rows = add_new_columns(rows, name, schema_of(name, SCHEMA_VERSION).names)
            tables[name] = rows.combine_chunks()
    if len(tables) < 2:
        return
    pair = replace(pair, images=tables["images"], instances=tables["instances"])
    planned = PlannedPart.of_unit(pair.planned) if isinstance(pair.planned, Unit) else pair.planned
    yield from _check_metadata(pair)
    yield from check_images(pair.unit, pair.images_uri, pair.images, planned)
    yield from check_membership(pair.instances_uri, pair.images, pair.instances)
    yield from check_instances(pair.instances_uri, pair.instances, pair.categories)


def _schema_difference(rows: pa.Table, expected: pa.Schema) -> str:
    """The first difference, or ""."""
    actual = rows.schema
    for name in expected.names:
        if name not in actual.names:
            return f"{name} is missing"
        if not actual.field(name).equals(expected.field(name)):
            return f"{name} is {actual.field(name)}, not {expected.field(name)}"
        if not actual.field(name).nullable and rows[name].null_count:
            return f"{name} lacks a value in {rows[name].null_count:,} rows"
    if actual.equals(expected):
        return ""
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
