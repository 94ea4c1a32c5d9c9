"""One unit image by image, where a batch would not show which image is to blame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from segcore.models.base import Model
from segcore.output.part_counts import PartCounts
from segcore.output.parts import Parts
from segcore.output.tables import ImageResult
from segcore.sources import Sample, read_unit
from segcore.sources.units import Unit
from segcore.worker.batching import BatchRunner
from segcore.worker.pages import split_pages
from segcore.worker.read_options import ReadOptions
from segcore.worker.unit_results import (
    ReusedRows,
    commit_rows,
    make_row,
    name_row,
    read_reused_rows,
)
from segcore.worker.watchdog import Watchdog

_NO_UNIT = Unit("", "objects", "", "", 0, 0, 0, 0)


class NamedImage(NamedTuple):
    """An image that was read.

    Attributes:
        row: Only names the image.
        pages_after: See `Sample`.
    """

    row: ImageResult
    pages_after: int


class ImageWorker:
    """Segments one image at a time with nothing else in progress, in steps that the caller takes.

    Whatever happens to the process, the caller knows which image is to blame. Rows are the same as
    those of `UnitWorker`, because results do not depend on the batch. For each unit: `open`, then
    `read_next` and `segment` in turn until `read_next` gives None, then `commit`.
    """

    def __init__(self, model: Model, read_options: ReadOptions, parts: Parts) -> None:
        self._model = model
        self._read_options = replace(read_options, threads=1)
        self._parts = parts
        self._prefetcher = self._read_options.prefetcher(1, Watchdog(read_options.image_timeout_s))
        self._samples: Iterator[Sample] = iter(())
        self._sample: Sample | None = None
        self._notes: Counter[str] = Counter()
        self._reused = ReusedRows(_NO_UNIT, [])

    def open(self, unit: Unit, skip: int, retry_failed: bool) -> None:
        """Begin a unit after its first `skip` samples.

        Args:
            retry_failed: The unit is committed; only its failed images are samples.

        Raises:
            StorageError: The unit cannot be read.
        """
        options = self._read_options
        self._notes = Counter()
        self._reused = read_reused_rows(self._parts, unit, retry_failed)
        samples = read_unit(
            unit, options.storage, options.source, self._notes, self._reused.finished_files
        )
        self._samples = self._reused.without_reused(split_pages(samples, options.decode))
        for _ in range(skip):
            next(self._samples, None)

    def read_next(self) -> NamedImage | None:
        """Read the next image; None at the end of the unit."""
        self._sample = next(self._samples, None)
        if self._sample is None:
            return None
        return NamedImage(name_row(self._sample), self._sample.pages_after)

    def segment(self) -> ImageResult:
        """Decode and segment the image that `read_next` read.

        Raises:
            DeviceLost: See `BatchRunner`.
        """
        assert self._sample is not None, "read_next() comes first"
        image = self._prefetcher.prepare(
            self._sample, self._model.preprocess, self._read_options.decode
        )
        if image.error is not None:
            return make_row(image, image.error)
        return make_row(image, BatchRunner(self._model).run([image.value])[0])

    def commit(self, unit: Unit, rows: list[ImageResult], retry_failed: bool) -> PartCounts:
        """Commit the unit; `read_next` must have returned None.

        Raises:
            StorageError: The part cannot be written.
        """
        return commit_rows(self._parts, unit, self._reused.merge(rows), self._notes, retry_failed)
