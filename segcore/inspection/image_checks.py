"""The rows of an `images` part: each by itself, the pages of a file, and all against the plan."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segcore.errors import ErrorCode, WarningCode
from segcore.inspection.problems import Problem
from segcore.sources import file_image_id, page_image_id
from segcore.sources.units import Unit
from segcore.text import plural

_ERROR_CODES = frozenset(str(code) for code in ErrorCode)
_WARNING_CODES = frozenset(str(code) for code in WarningCode)
_PAGE_SUFFIX = "#page=[0-9]+$"


def _no_texts() -> pa.Array:
    return pa.array([], pa.string())


@dataclass(frozen=True)
class PlannedPart:
    """What the plan says of one unit.

    Attributes:
        kind, shard, n_images: See `segcore.sources.units.Unit`.
        image_ids, etags: Of the members of a unit of loose images: arrays of strings.
    """

    kind: str
    shard: str
    n_images: int | None
    image_ids: pa.Array = field(default_factory=_no_texts)
    etags: pa.Array = field(default_factory=_no_texts)

    @classmethod
    def of_unit(cls, unit: Unit) -> PlannedPart:
        """The same of a unit."""
        ids, etags = (
            pa.array([getattr(member, name) for member in unit.members], pa.string())
            for name in ("image_id", "etag")
        )
        return cls(unit.kind, unit.shard, unit.n_images, ids, etags)


def check_images(
    unit: str, uri: str, images: pa.Table, planned: PlannedPart | None
) -> Iterator[Problem]:
    """All problems of the rows.

    Args:
        images: With today's columns, and at most one chunk in each.
    """
    suspects = np.flatnonzero(_is_wrong(images, unit))
    for row in images.take(pa.array(suspects)).to_pylist():
        for message in _image_row_messages(row, unit):
            yield Problem("wrong_image_row", uri, message, row["image_id"])
    file_ids = _file_ids(images)
    if not _pages_are_fine(images, file_ids):
        yield from _check_pages(uri, images)
    if planned is not None:
        yield from _check_against_plan(uri, images, file_ids, planned)


def count_warnings(images: pa.Table) -> dict[str, int]:
    """Images by code of their warnings; an older schema has no warnings."""
    if "warnings" not in images.column_names:
        return {}
    texts, rows = _flat_warnings(images)
    if len(texts) == 0:
        return {}
    codes = pc.list_element(pc.split_pattern(texts, ":", max_splits=1), 0)
    pairs = pa.table({"row": rows, "code": codes}).group_by(["row", "code"]).aggregate([])
    counts = pc.value_counts(pairs["code"]).to_pylist()
    return dict(sorted((item["values"], item["counts"]) for item in counts))


def _flat_warnings(images: pa.Table) -> tuple[pa.Array, pa.Array]:
    """(all warnings, the row of each)."""
    lists = images["warnings"].combine_chunks()
    return pc.list_flatten(lists), pc.list_parent_indices(lists)


def _is_wrong(images: pa.Table, unit: str) -> np.ndarray:
    """(N,) bool: the rows for which there are `_image_row_messages`."""
    width, height = images["width"], images["height"]
    is_ok, is_failed = (pc.equal(images["status"], status) for status in ("ok", "failed"))
    has_error = pc.or_(pc.is_valid(images["error_code"]), pc.is_valid(images["error_message"]))
    has_no_size = pc.or_(pc.is_null(width), pc.is_null(height))
    is_known = pc.is_in(images["error_code"], pa.array(sorted(_ERROR_CODES)), skip_nulls=True)
    has_instances = pc.not_equal(images["n_instances"], 0)
    conditions = [
        pc.not_equal(images["unit"], unit),
        pc.and_(is_ok, pc.or_(has_error, has_no_size)),
        pc.and_(is_failed, pc.or_(pc.invert(is_known), has_instances)),
        pc.invert(pc.or_(is_ok, is_failed)),
        *(pc.fill_null(pc.less(images[name], 1), False) for name in ("width", "height", "page")),
    ]
    is_wrong = np.zeros(images.num_rows, bool)
    for condition in conditions:
        is_wrong |= condition.to_numpy()
    warnings, rows = _flat_warnings(images)
    if len(warnings):
        codes = pc.list_element(pc.split_pattern(warnings, ": ", max_splits=1), 0)
        is_unknown = pc.invert(pc.is_in(codes, pa.array(sorted(_WARNING_CODES))))
        is_wrong[rows.filter(is_unknown).to_numpy()] = True
    return is_wrong


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


def _file_ids(images: pa.Table) -> pa.Array | None:
    """`file_image_id` of each row; None where an id contradicts its page."""
    ids, pages = images["image_id"].combine_chunks(), images["page"].combine_chunks()
    if pages.null_count == len(pages):
        return ids
    is_first = pc.equal(pages, 1)  # has the id of its file, unless that reads like one of a page
    reads_like_page = pc.match_substring_regex(ids, _PAGE_SUFFIX)
    has_suffix = pc.fill_null(pc.or_(pc.invert(is_first), reads_like_page), False)
    stems = pc.replace_substring_regex(ids, _PAGE_SUFFIX, "")
    expected = pc.binary_join_element_wise(stems, pc.cast(pages, pa.string()), "#page=")
    needs_suffix = pc.or_(pc.invert(is_first), pc.match_substring_regex(stems, _PAGE_SUFFIX))
    is_as_expected = pc.fill_null(pc.and_(pc.equal(expected, ids), needs_suffix), False)
    is_right = pc.or_(pc.invert(has_suffix), is_as_expected)
    return pc.if_else(has_suffix, stems, ids) if pc.all(is_right).as_py() else None


def _pages_are_fine(images: pa.Table, file_ids: pa.Array | None) -> bool:
    """Whether `_check_pages` has nothing to say."""
    pages = images["page"].combine_chunks()
    if pages.null_count == len(pages):
        return True
    if file_ids is None:
        return False
    paged = pa.table({"file": file_ids, "page": pages}).filter(pc.is_valid(pages))
    statistics = ["count", "count_distinct", "min", "max"]
    files = paged.group_by("file").aggregate([("page", name) for name in statistics])
    n_pages, n_distinct, first, last = (files[f"page_{name}"].to_numpy() for name in statistics)
    return bool(((first == 1) & (last == n_pages) & (n_distinct == n_pages)).all())


def _check_pages(uri: str, images: pa.Table) -> Iterator[Problem]:
    """Where pages of a file are images, there is each of them from the first to the last."""
    pages: dict[str, list[int]] = {}
    paged = images.filter(pc.is_valid(images["page"]))
    for row in paged.select(["image_id", "page"]).to_pylist():
        file_id, page = file_image_id(row["image_id"], row["page"]), row["page"]
        if page_image_id(file_id, page) != row["image_id"]:
            message = f"its page is {page}, but its id says otherwise."
            yield Problem("wrong_image_row", uri, message, row["image_id"])
        pages.setdefault(file_id, []).append(page)
    for file_id, numbers in pages.items():
        if sorted(numbers) != list(range(1, len(numbers) + 1)):
            known = set(numbers)
            missing = next(page for page in itertools.count(1) if page not in known)
            message = f"its pages go to {max(numbers):,}, but page {missing:,} has no row."
            yield Problem("image_missing", uri, message, file_id)


def _check_against_plan(
    uri: str, images: pa.Table, file_ids: pa.Array | None, planned: PlannedPart
) -> Iterator[Problem]:
    n_images = images.num_rows
    if planned.n_images is not None and planned.n_images != n_images:
        message = f"it holds {plural(n_images, 'image')}; the plan says {planned.n_images:,}."
        yield Problem("unbalanced", uri, message)
    shards = pc.unique(images["shard"]).to_pylist()
    if shards not in ([], [planned.shard]):
        message = f"its rows name shards {shards}, not {planned.shard!r}."
        yield Problem("wrong_image_row", uri, message)
    if planned.kind == "objects" and not _are_as_planned(images, file_ids, planned):
        yield from _compare_versions(uri, images, planned)


def _are_as_planned(images: pa.Table, file_ids: pa.Array | None, planned: PlannedPart) -> bool:
    """Whether the files are those of the plan, in its order and versions.

    False says nothing: `_compare_versions` decides then.
    """
    if file_ids is None or len(file_ids) == 0:
        return False
    etags = images["etag"].combine_chunks()
    is_next = pa.array([True] * min(1, len(file_ids)))
    if len(file_ids) > 1:  # pages of a file follow each other
        is_next = pa.concat_arrays([is_next, pc.not_equal(file_ids[1:], file_ids[:-1])])
        same_version = pc.equal(etags[1:], etags[:-1])
        if not pc.all(pc.or_(is_next[1:], same_version)).as_py():
            return False
    if not file_ids.filter(is_next).equals(planned.image_ids):
        return False
    is_right = pc.or_(pc.equal(planned.etags, ""), pc.equal(planned.etags, etags.filter(is_next)))
    return bool(pc.all(is_right).as_py())


def _compare_versions(uri: str, images: pa.Table, planned: PlannedPart) -> Iterator[Problem]:
    rows = images.select(["image_id", "page", "etag"]).to_pylist()
    etags = {file_image_id(row["image_id"], row["page"]): row["etag"] for row in rows}
    planned_etags = dict(zip(planned.image_ids.to_pylist(), planned.etags.to_pylist(), strict=True))
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
