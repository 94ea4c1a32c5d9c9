"""The checks over columns against loops over rows, on pairs that are damaged in every way."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from segcore import masks
from segcore.errors import ErrorCode, ImageError, ImageWarning, WarningCode
from segcore.inspection.image_checks import PlannedPart
from segcore.inspection.part_checks import PartPair, check_pair
from segcore.inspection.problems import Problem
from segcore.output.part_counts import PartCounts
from segcore.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
from segcore.output.tables import ImageResult, images_table, instances_table
from segcore.sources.units import Member, Unit, make_unit
from tests.support.generated_output import CATEGORIES, draw_instances
from tests.support.reference_checks import reference_problems

_CATEGORIES = {category.id: category.name for category in CATEGORIES}
_DRAWN = [draw_instances("nuclei", n, seed) for seed, n in enumerate((0, 1, 3, 5))]
Mutation = Callable[[list[dict[str, Any]], random.Random], None]


def _good_pair(rng: random.Random) -> PartPair:
    """A pair without a problem: loose images or a shard, some failed, some of several pages."""
    kind = rng.choice(["objects", "objects", "tar"])
    results: list[ImageResult] = []
    members: list[Member] = []
    shard = "" if kind == "objects" else "s3://bucket/shard.tar"
    for number in range(rng.randrange(1, 6)):
        uri = f"s3://bucket/{number}{rng.choice(['', '-é', '#page=2'])}.jpg"
        members.append(Member(uri, uri, rng.choice(["", "v1"]), 10))
        n_pages = rng.choice([0, 0, 0, 1, 3])
        for page in range(1, n_pages + 1) if n_pages else [None]:
            image_id = uri if page in (None, 1) else f"{uri}#page={page}"
            row = ImageResult(image_id, uri, "v1", page=page)
            if rng.random() < 0.2:
                error = ImageError(rng.choice(list(ErrorCode)), "it failed")
                results.append(replace(row, error=error))
                continue
            drawn = rng.choice(_DRAWN)
            warnings = tuple(ImageWarning(code, "x") for code in rng.choices(
                list(WarningCode), k=rng.choice([0, 0, 2])))  # fmt: skip
            row = replace(row, width=drawn.width, height=drawn.height)
            results.append(replace(row, instances=drawn, warnings=warnings))
    n_images = rng.choice([len(results), None])
    if kind == "objects":
        unit = make_unit(kind, stop=1, n_images=n_images, n_bytes=1, members=members)
    else:
        unit = make_unit(kind, shard=shard, stop=1, n_images=n_images, n_bytes=1)
    return _pair_of(unit, images_table(unit, results), instances_table(results, _CATEGORIES))


def _pair_of(unit: Unit, images: pa.Table, instances: pa.Table) -> PartPair:
    metadata = {
        "segcore.schema_version": "2",
        "segcore.edition": "edition",
        **_counts(unit.unit, images, instances).to_metadata(),
    }
    return PartPair(
        unit=unit.unit,
        images_uri="images",
        instances_uri="instances",
        images=images.replace_schema_metadata(metadata),
        instances=instances.replace_schema_metadata(metadata),
        edition="edition",
        categories=_CATEGORIES,
        planned=unit,
    )


def _counts(unit: str, images: pa.Table, instances: pa.Table) -> PartCounts:
    failed = [code for code in images["error_code"].to_pylist() if code is not None]
    warnings = Counter(
        code
        for texts in images["warnings"].to_pylist()
        for code in {text.partition(":")[0] for text in texts}
    )
    ok = images.num_rows - len(failed)
    failures = dict(Counter(failed))
    return PartCounts(unit, ok, len(failed), instances.num_rows, failures, {}, dict(warnings))


def _rle(value: str, rng: random.Random, height: int, width: int) -> str:
    """The string damaged: some remain valid, in another way of writing the same numbers."""
    place = rng.randrange(len(value) + 1)
    runs = masks.string_to_counts(value)
    last = ord(value[-1]) - 48
    texts = [
        "",
        value[:place],
        value + rng.choice(["0", "00", "P", "o" * rng.randrange(1, 10)]),
        value[:place] + chr(rng.randrange(1, 128)) + value[place + 1 :],
        value[:place] + rng.choice(["é", "💥", "~", " ", "/", "p"]) + value[place:],
        "o" * rng.randrange(1, 9) + rng.choice(["", "0", "?", "O"]),
        # The last number with one group of bits more than it needs.
        value[:-1] + chr((last | 32) + 48) + chr((31 if last & 16 else 0) + 48),
    ]
    all_runs = [
        [*runs[:-1], runs[-1] + 1],
        [height * width],
        [0, height * width],
        [0, 0, *runs],  # an empty run of ones, and one of zeros, which are valid, not canonical
        [1, 0, max(runs[0] - 1, 0), *runs[1:]],
        rng.sample(runs.tolist(), len(runs)),
    ]
    return rng.choice([*texts, *(masks.counts_to_string(np.array(r)).decode() for r in all_runs)])


_INTS = [-(2**31), -1, 0, 1, 2, 7, 39, 511, 512, 513, 1280, 2**31 - 1]
_TEXTS = [
    "",
    "ok",
    "failed",
    "corrupt",
    "x",
    "é\n",
    "s3://bucket/0.jpg",
    "s3://bucket/0.jpg#page=2",
]
_FLOATS = [float("nan"), float("inf"), -float("inf"), -1.01, -1.0, -0.0, 0.5, 1.0, 1.01, 40.0, 3e38]
_LISTS = [[], ["blurred: x"], ["repaired"], ["repaired: "], ["low_contrast: a: b", "low_contrast"]]


def _other_value(field: pa.Field, old: Any, row: dict[str, Any], rng: random.Random) -> Any:
    if field.nullable and rng.random() < 0.3:
        return None
    if field.name == "counts":
        return _rle(old, rng, row["height"], row["width"])
    if pa.types.is_floating(field.type):
        return rng.choice([*_FLOATS, np.float32(old + rng.choice([-2, -0.5, 0.5, 2]))])
    if pa.types.is_integer(field.type):
        near = ((old or 0) + step for step in (-1, 1))
        return rng.choice([*_INTS, *(max(-(2**31), min(value, 2**31 - 1)) for value in near)])
    if pa.types.is_list(field.type):
        return rng.choice(_LISTS)
    return rng.choice(_TEXTS) if pa.types.is_string(field.type) else b"\x00"


def _damaged(table: pa.Table, schema: pa.Schema, rng: random.Random) -> pa.Table:
    """The table with a few changes of values, rows or both."""
    rows = table.to_pylist()
    for _ in range(rng.randrange(3)):
        if not rows:
            break
        one, two = rng.randrange(len(rows)), rng.randrange(len(rows))
        column = rng.choice(schema.names)
        kind = rng.randrange(8)
        if kind == 0:
            rows[one], rows[two] = rows[two], rows[one]
        elif kind == 1:
            rows.append(dict(rows[one]))
        elif kind == 2:
            rows.pop(one)
        elif kind == 3:
            rows[one][column], rows[two][column] = rows[two][column], rows[one][column]
        else:
            rows[one][column] = _other_value(
                schema.field(column), rows[one][column], rows[one], rng
            )
    return pa.Table.from_pylist(rows, schema).replace_schema_metadata(table.schema.metadata)


def _all_problems(pair: PartPair) -> Counter[Problem]:
    return Counter(check_pair(pair))


def _in_chunks(table: pa.Table, rng: random.Random) -> pa.Table:
    """The same rows; their columns in one to three chunks."""
    cuts = sorted(rng.randrange(table.num_rows + 1) for _ in range(rng.randrange(3)))
    starts, stops = [0, *cuts], [*cuts, table.num_rows]
    return pa.concat_tables([table.slice(a, b - a) for a, b in zip(starts, stops, strict=True)])


def _compare(seed: int) -> tuple[int, set[str]]:
    """(problems of a damaged pair, their kinds), which both ways of checking must find."""
    rng = random.Random(seed)
    good = _good_pair(rng)
    assert _all_problems(good) == Counter(), seed
    images = _in_chunks(_damaged(good.images, IMAGES_SCHEMA, rng), rng)
    instances = _in_chunks(_damaged(good.instances, INSTANCES_SCHEMA, rng), rng)
    pair = replace(good, images=images, instances=instances)
    if rng.random() < 0.5:  # so that wrong rows are not all that is wrong
        pair = _pair_of(_unit(good), images, instances)
    expected = Counter(reference_problems(pair))
    assert _all_problems(pair) == expected, seed
    stored = replace(pair, planned=PlannedPart.of_unit(_unit(good)))
    assert _all_problems(stored) == expected, seed
    return expected.total(), {problem.kind for problem in expected}


def _unit(pair: PartPair) -> Unit:
    assert isinstance(pair.planned, Unit)
    return pair.planned


_FOUND_IN_A_PAIR = {
    "bad_rle", "image_missing", "image_not_planned", "orphan_instance", "unbalanced", "wrong_area",
    "wrong_box", "wrong_canvas", "wrong_image_row", "wrong_instance_row", "wrong_metadata",
}  # fmt: skip


def test_columns_and_loops_find_the_same_problems() -> None:
    for seed in range(40):
        _compare(seed)


@pytest.mark.faults
def test_columns_and_loops_find_the_same_problems_in_many_pairs() -> None:
    checked = [_compare(seed) for seed in range(100, 700)]
    assert set().union(*(kinds for _, kinds in checked)) == _FOUND_IN_A_PAIR
    assert sum(n_problems for n_problems, _ in checked) > 1000


def test_a_missing_value_is_a_wrong_schema() -> None:
    good = _good_pair(random.Random(2))
    index = good.images.schema.get_field_index("etag")
    nulls = pa.nulls(good.images.num_rows, pa.string())
    images = good.images.set_column(index, IMAGES_SCHEMA.field("etag"), nulls)
    (problem,) = check_pair(replace(good, images=images))
    assert problem.kind == "wrong_schema"
    assert f"etag lacks a value in {images.num_rows} rows" in problem.message
