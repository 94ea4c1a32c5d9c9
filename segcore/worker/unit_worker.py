"""One unit from its bytes to its committed part. Knows nothing of Ray: an actor calls it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass

from segcore.errors import ErrorCode
from segcore.models.base import Model
from segcore.output.part_counts import PartCounts
from segcore.output.parts import Parts
from segcore.output.tables import ImageResult
from segcore.sources import read_unit
from segcore.sources.units import Unit
from segcore.worker.batcher import Batcher, BatchQueue
from segcore.worker.batching import Batch, ConcurrentBatches, Outcomes
from segcore.worker.pages import split_pages
from segcore.worker.preprocessing import PreparedSample
from segcore.worker.read_options import ReadOptions
from segcore.worker.unit_results import ReusedRows, commit_rows, make_row, read_reused_rows
from segcore.worker.watchdog import Watchdog

ReportProgress = Callable[[int, int, int], None]  # ok, failed, instances so far in this unit
_REPORT_INTERVAL_S = 1.0


class HostOutOfMemory(Exception):
    """Memory ran out while several images were in progress: each must be tried alone."""


class UnitImages:
    """The images of a unit that have no row yet, read and prepared.

    Attributes:
        reused: The rows that need not be made again.
        notes: What reading noticed; complete once `stream` is exhausted.
    """

    def __init__(
        self, unit: Unit, reused: ReusedRows, model: Model, read_options: ReadOptions
    ) -> None:
        self.reused = reused
        self.notes: Counter[str] = Counter()
        self._unit = unit
        self._model = model
        self._read_options = read_options

    def stream(self, window: int, watchdog: Watchdog) -> Generator[PreparedSample]:
        """The images in the unit's order, read at most `window` ahead of the caller.

        Raises:
            StorageError: The unit as a whole cannot be read.
        """
        options = self._read_options
        samples = read_unit(
            self._unit, options.storage, options.source, self.notes, self.reused.finished_files
        )
        new_samples = self.reused.without_reused(split_pages(samples, options.decode))
        images = options.prefetcher(window, watchdog).stream(
            new_samples, self._model.preprocess, options.decode
        )
        with closing(images):
            yield from images


@dataclass(frozen=True)
class Remarks:
    """What reading a unit told besides its images.

    Attributes:
        notes: What reading noticed.
        file_order: See `ReusedRows`.
    """

    notes: Counter[str]
    file_order: list[str]


class UnitReader:
    """The first half of `UnitWorker`, for a stage of its own."""

    def __init__(self, model: Model, read_options: ReadOptions, parts: Parts) -> None:
        self._model = model
        self._read_options = read_options
        self._parts = parts
        self._watchdog = Watchdog(read_options.image_timeout_s)

    def read(
        self, unit: Unit, *, retry_failed: bool = False
    ) -> Generator[PreparedSample, None, Remarks]:
        """Read and prepare the images of a unit, with `retry_failed` only its failed ones.

        Yields:
            Those that have no row yet, in the unit's order.

        Returns:
            The remarks, which are complete only now.

        Raises:
            StorageError: The unit as a whole cannot be read.
        """
        reused = read_reused_rows(self._parts, unit, retry_failed)
        unit_images = UnitImages(unit, reused, self._model, self._read_options)
        window = 2 * self._read_options.threads
        with closing(unit_images.stream(window, self._watchdog)) as images:
            yield from images
        return Remarks(unit_images.notes, reused.file_order)


class UnitWorker:
    """Segments units with one loaded model and commits their parts; thread-safe.

    Args:
        max_concurrent_batches: Batches in the model at once, of one unit or several, where the
            model allows it.
    """

    def __init__(
        self,
        model: Model,
        read_options: ReadOptions,
        parts: Parts,
        max_concurrent_batches: int = 1,
    ) -> None:
        self._model = model
        self._read_options = read_options
        self._parts = parts
        self._watchdog = Watchdog(read_options.image_timeout_s)  # a process has only one
        self._concurrent_batches = ConcurrentBatches(model, max_concurrent_batches, self._watchdog)
        self._batch_queue = BatchQueue(self._concurrent_batches)

    def segment(
        self,
        unit: Unit,
        report: ReportProgress = lambda ok, failed, instances: None,
        *,
        retry_failed: bool = False,
    ) -> PartCounts:
        """Read, segment and commit one unit.

        Rows are in the order of the unit's samples, whatever the batches were.

        Args:
            report: Called now and then, and at the end, with the counts so far.
            retry_failed: The unit is committed; segment its failed images again and keep the other
                rows.

        Raises:
            StorageError: The unit's input as a whole cannot be read or its part not written.
            DeviceLost: See `BatchRunner`.
            HostOutOfMemory: Nothing is committed; `ImageWorker` finds the image that needs too
                much memory.
        """
        reused = read_reused_rows(self._parts, unit, retry_failed)
        unit_images = UnitImages(unit, reused, self._model, self._read_options)
        window = self._concurrent_batches.prefetch_images + self._read_options.threads
        rows = self._segment_images(unit_images.stream(window, self._watchdog), report)
        return commit_rows(self._parts, unit, reused.merge(rows), unit_images.notes, retry_failed)

    def segment_prepared(
        self,
        unit: Unit,
        images: Iterable[PreparedSample],
        remarks: Remarks,
        report: ReportProgress = lambda ok, failed, instances: None,
        *,
        retry_failed: bool = False,
    ) -> PartCounts:
        """Segment and commit a unit that a `UnitReader` has read; otherwise as `segment`."""
        reused = read_reused_rows(self._parts, unit, retry_failed)
        reused.file_order = remarks.file_order
        rows = self._segment_images(images, report)
        return commit_rows(self._parts, unit, reused.merge(rows), remarks.notes, retry_failed)

    def _segment_images(
        self, images: Iterable[PreparedSample], report: ReportProgress
    ) -> list[ImageResult]:
        """The rows of all images, in order.

        Raises:
            DeviceLost, HostOutOfMemory: See `segment`.
        """
        rows: list[ImageResult | None] = []  # None while the image waits for its batch
        progress = _UnitProgress(report)

        def store_outcomes(batch: Batch, outcomes: Outcomes) -> None:
            for (position, image), outcome in zip(batch, outcomes, strict=True):
                rows[position] = progress.count(make_row(image, outcome))
            progress.report_when_due()

        with Batcher(self._batch_queue, store_outcomes) as batcher:
            for image in images:
                if image.error is not None:
                    rows.append(progress.count(make_row(image, image.error)))
                else:
                    rows.append(None)
                    batcher.add(len(rows) - 1, image)
        progress.report()
        finished_rows = [row for row in rows if row is not None]
        if any(row.error and row.error.code is ErrorCode.OUT_OF_MEMORY for row in finished_rows):
            raise HostOutOfMemory
        return finished_rows


class _UnitProgress:
    """Counts of the unit in progress, for the progress line."""

    def __init__(self, report: ReportProgress) -> None:
        self._report = report
        self._reported_at = 0.0  # monotonic seconds
        self._ok = self._failed = self._instances = 0

    def count(self, row: ImageResult) -> ImageResult:
        """Add a row to the counts; returns it."""
        if row.instances is None:
            self._failed += 1
        else:
            self._ok += 1
            self._instances += len(row.instances)
        return row

    def report_when_due(self) -> None:
        """Report at most once in `_REPORT_INTERVAL_S`: each report is a message to an actor."""
        if time.monotonic() - self._reported_at >= _REPORT_INTERVAL_S:
            self.report()

    def report(self) -> None:
        """Report the counts so far."""
        self._reported_at = time.monotonic()
        self._report(self._ok, self._failed, self._instances)
