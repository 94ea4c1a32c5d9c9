"""The rows of a unit: new ones from the model, reused ones from its part, and their commit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from segcore.errors import ErrorCode, ImageError, ImageWarning, WarningCode
from segcore.instances import Instances
from segcore.output.part_counts import PartCounts
from segcore.output.parts import Parts
from segcore.output.tables import ImageResult, results_from_tables
from segcore.sources import Sample
from segcore.sources.units import Unit
from segcore.worker.preprocessing import PreparedSample


class ReusedRows:
    """Rows of a unit that stay as they are, and the order of these and the new ones.

    Args:
        rows: Image id -> row; empty when the whole unit is segmented.

    Attributes:
        sample_order: Image ids of all samples so far, in the order in which they were read.
    """

    def __init__(self, unit: Unit, rows: Mapping[str, ImageResult]) -> None:
        self.rows = rows
        self.sample_order: list[str] = []
        self._unit = unit

    def without_reused(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """The samples that have no row yet; adds all of them to `sample_order`."""
        for sample in samples:
            self.sample_order.append(sample.image_id)
            if sample.image_id not in self.rows:
                yield sample

    def merge(self, new_rows: list[ImageResult]) -> list[ImageResult]:
        """All rows of the unit in its order. `without_reused` must have been exhausted."""
        if not self.rows:
            return new_rows
        if self._unit.kind == "objects":  # reused images were not read
            order = [member.image_id for member in self._unit.members]
        else:
            order = self.sample_order
        all_rows = {**self.rows, **{row.image_id: row for row in new_rows}}
        return [all_rows[image_id] for image_id in order]


def read_reused_rows(parts: Parts, unit: Unit, retry_failed: bool) -> ReusedRows:
    """The rows that need not be made again: with `retry_failed` those that are ok, else none.

    Raises:
        StorageError: The parts of the unit cannot be read.
    """
    rows = results_from_tables(*parts.read_tables(unit.unit)) if retry_failed else []
    return ReusedRows(unit, {row.image_id: row for row in rows})


def name_row(sample: Sample) -> ImageResult:
    """A row that says which image it is, and nothing yet of what became of it."""
    warnings: tuple[ImageWarning, ...] = ()
    if sample.warning:
        message = "its name occurs more than once in its shard"
        warnings = (ImageWarning(WarningCode(sample.warning), message),)
    return ImageResult(sample.image_id, sample.uri, sample.etag, warnings=warnings)


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

    Raises:
        StorageError: See `Parts.commit` and `Parts.replace`.
    """
    commit = parts.replace if retry_failed else parts.commit
    return commit(unit, rows, notes)
