"""The rows of a unit: new ones from the model, reused ones from its part, and their commit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import pyarrow.compute as pc

from segcore.errors import ErrorCode, ImageError, ImageWarning, SegcoreError, WarningCode
from segcore.instances import Instances
from segcore.output.part_counts import PartCounts
from segcore.output.parts import Parts
from segcore.output.tables import (
    ImageResult,
    images_table,
    instances_table,
    results_from_tables,
)
from segcore.sources import Sample, file_image_id
from segcore.sources.units import Unit
from segcore.worker.faults import code_failure, log_fault
from segcore.worker.measures import MEASURES
from segcore.worker.preprocessing import PreparedSample


class ReusedRows:
    """Rows of a unit that stay as they are, and the order of these and the new ones.

    Args:
        rows: Those that stay; empty when the whole unit is segmented.
        failed_files: Image ids of the files of which an image failed.

    Attributes:
        rows: Image id -> row.
        finished_files: Image ids of the files of which nothing is left to do.
        file_order: Image ids of the files of all samples so far, in the order of reading.
    """

    def __init__(
        self, unit: Unit, rows: Sequence[ImageResult], failed_files: Collection[str] = ()
    ) -> None:
        self.rows = {row.image_id: row for row in rows}
        self.finished_files = {row.file_id for row in rows}.difference(failed_files)
        self.file_order: list[str] = []
        self._unit = unit

    def without_reused(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """The samples that have no row yet; adds the files of all of them to `file_order`."""
        for sample in samples:
            file_id = file_image_id(sample.image_id, sample.page)
            self.file_order.append(file_id)
            if sample.image_id not in self.rows and not self._has_older_name(sample, file_id):
                yield sample

    def _has_older_name(self, sample: Sample, file_id: str) -> bool:
        """Whether a row has its image by the id that files named like pages had in older parts."""
        row = self.rows.get(file_id) if sample.page == 1 else None
        return row is not None and row.page in (None, 1)

    def merge(self, new_rows: list[ImageResult]) -> list[ImageResult]:
        """All rows of the unit in its order. `without_reused` must have been exhausted."""
        if not self.rows:
            return new_rows
        if self._unit.kind == "objects":  # finished files were not read
            order = [member.image_id for member in self._unit.members]
        else:
            order = self.file_order
        places = {file_id: place for place, file_id in enumerate(dict.fromkeys(order))}
        all_rows = {**self.rows, **{row.image_id: row for row in new_rows}}
        return sorted(all_rows.values(), key=lambda row: (places[row.file_id], row.page or 0))


def read_reused_rows(parts: Parts, unit: Unit, retry_failed: bool) -> ReusedRows:
    """The rows that need not be made again: with `retry_failed` those that are ok, else none.

    Raises:
        StorageError: The parts of the unit cannot be read.
    """
    if not retry_failed:
        return ReusedRows(unit, [])
    images, instances = parts.read_newest_tables(unit.unit)
    failed = images.filter(pc.equal(images["status"], "failed")).select(["image_id", "page"])
    failed_files = {file_image_id(row["image_id"], row["page"]) for row in failed.to_pylist()}
    return ReusedRows(unit, results_from_tables(images, instances), failed_files)


def name_row(sample: Sample) -> ImageResult:
    """A row that says which image it is, and nothing yet of what became of it."""
    warnings: tuple[ImageWarning, ...] = ()
    if sample.warning:
        message = "its name occurs more than once in its shard"
        warnings = (ImageWarning(WarningCode(sample.warning), message),)
    return ImageResult(
        sample.image_id, sample.uri, sample.etag, warnings=warnings, page=sample.page
    )


def make_row(image: PreparedSample, outcome: Instances | ImageError) -> ImageResult:
    """The row of an image. Masks for a canvas other than the image's are an error of the model."""
    if isinstance(outcome, Instances) and (
        (outcome.width, outcome.height) != (image.width, image.height)
    ):
        message = (
            f"model gave masks of {outcome.width} x {outcome.height} pixels "
            f"for an image of {image.width} x {image.height}"
        )
        outcome = ImageError(ErrorCode.MODEL_ERROR, message)
    row = name_row(image.sample)
    if isinstance(outcome, ImageError):
        log_fault(outcome, row.image_id)
    return replace(
        row,
        width=image.width,
        height=image.height,
        instances=outcome if isinstance(outcome, Instances) else None,
        error=outcome if isinstance(outcome, ImageError) else None,
        warnings=(*row.warnings, *image.warnings),
    )


def commit_rows(
    parts: Parts,
    unit: Unit,
    rows: Sequence[ImageResult],
    notes: Mapping[str, int],
    retry_failed: bool,
) -> PartCounts:
    """Commit a unit; with `retry_failed` in place of the part that is there.

    A row that cannot be written, whatever else the unit holds, becomes an `internal_error`.

    Raises:
        StorageError: See `Parts.commit` and `Parts.replace`.
        Exception: A fault of our own that is not about single rows.
    """
    commit = parts.replace if retry_failed else parts.commit
    try:
        with MEASURES.stage("write"):
            return commit(unit, rows, notes)
    except (SegcoreError, MemoryError):
        raise
    except Exception:
        writable = [_writable(parts, unit, row) for row in rows]
        if all(new is row for new, row in zip(writable, rows, strict=True)):
            raise
        return commit(unit, writable, notes)


def _writable(parts: Parts, unit: Unit, row: ImageResult) -> ImageResult:
    """The row, or one that says that it cannot be written."""
    try:
        images_table(unit, [row])
        instances_table([row], dict(parts.categories))
    except Exception as error:
        failure = code_failure(ErrorCode.INTERNAL_ERROR, error)
        log_fault(failure, row.image_id)
        return replace(row, instances=None, error=failure)
    return row
