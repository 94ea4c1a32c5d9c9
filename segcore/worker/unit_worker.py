"""One unit from bytes to committed parts. Knows nothing of Ray: an actor calls it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from segcore.errors import ErrorCode, ImageError
from segcore.images import DecodeOptions
from segcore.instances import Instances
from segcore.models.base import Model
from segcore.output.part_counts import PartCounts
from segcore.output.parts import Parts
from segcore.output.tables import ImageResult, results_from_tables
from segcore.sources import Sample, SourceOptions, read_unit
from segcore.sources.units import Unit
from segcore.storage import Storage
from segcore.worker.batching import Batch, Batcher, BatchRunner, ConcurrentBatches, Outcomes
from segcore.worker.prefetch import Prefetcher, PreparedSample
from segcore.worker.watchdog import Watchdog

ReportProgress = Callable[[int, int, int], None]  # ok, failed, instances so far in this unit


class HostOutOfMemory(Exception):
    """Memory ran out while several images were under way: each must be judged alone."""


@dataclass(frozen=True)
class ReadOptions:
    """How a unit's images are read and decoded.

    Attributes:
        threads: Decoders.
        max_decoded_bytes: Decoded pixels held by all of them together, at most.
        image_timeout_s: Seconds that one image may take to decode, or to segment.
    """

    storage: Storage
    source: SourceOptions
    decode: DecodeOptions
    threads: int
    max_decoded_bytes: int
    image_timeout_s: float = 300.0

    @property
    def read_timeout_s(self) -> float:
        """Seconds that a read may take with all retries before it counts as hung."""
        options = self.storage.options
        return 2 * (options.retries + 1) * options.timeout_s

    def ahead(self, window: int, watchdog: Watchdog) -> Prefetcher:
        """Reading and decoding ahead of the model by at most `window` images."""
        return Prefetcher(
            self.threads, window, self.max_decoded_bytes, watchdog, self.read_timeout_s
        )


class ReusedRows:
    """Rows of a unit that stay as they are, and where they stand among the new ones.

    Args:
        rows: Image id -> row; empty when the whole unit is segmented.
    """

    def __init__(self, unit: Unit, rows: Mapping[str, ImageResult]) -> None:
        self.rows = rows
        self._unit = unit
        self.order: list[str] = []

    def without_reused(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """The samples that have no row yet; remembers the order of all."""
        for sample in samples:
            self.order.append(sample.image_id)
            if sample.image_id not in self.rows:
                yield sample

    def merged(self, results: list[ImageResult]) -> list[ImageResult]:
        """All rows of the unit in its order. `without_reused` must have come to its end."""
        if not self.rows:
            return results
        loose = self._unit.kind == "objects"  # then kept ones were not read
        order = [m.image_id for m in self._unit.members] if loose else self.order
        together = {**self.rows, **{result.image_id: result for result in results}}
        return [together[image_id] for image_id in order]


def reused_rows(parts: Parts, unit: Unit, retry_failed: bool) -> ReusedRows:
    """What of a unit need not be done: with `retry_failed` its images that are ok, else nothing.

    Raises:
        StorageError: The parts of the unit cannot be read.
    """
    found = results_from_tables(*parts.read_tables(unit.unit)) if retry_failed else []
    return ReusedRows(unit, {result.image_id: result for result in found})


class UnitImages:
    """A unit whose images are being read and prepared.

    Attributes:
        kept: What of it need not be done.
        notes: What reading noticed; complete once `images` has come to its end.
    """

    def __init__(self, unit: Unit, kept: ReusedRows, model: Model, reading: ReadOptions) -> None:
        self.kept = kept
        self.notes: Counter[str] = Counter()
        self._unit = unit
        self._model = model
        self._reading = reading

    def images(self, window: int, watchdog: Watchdog) -> Iterator[PreparedSample]:
        """The images in the unit's order, read at most `window` ahead of the caller.

        Raises:
            StorageError: The unit as a whole cannot be read.
        """
        reading = self._reading
        samples = read_unit(self._unit, reading.storage, reading.source, self.notes, self.kept.rows)
        ahead = reading.ahead(window, watchdog)
        return ahead.stream(
            self.kept.without_reused(samples), self._model.preprocess, reading.decode
        )


@dataclass(frozen=True)
class PreparedUnit:
    """A unit that is read and prepared as a whole: what travels from stage to stage."""

    images: list[PreparedSample]
    notes: Counter[str]
    order: list[str]


class UnitReader:
    """The first half of `UnitWorker`, for a stage of its own."""

    def __init__(self, model: Model, reading: ReadOptions, parts: Parts) -> None:
        self._model = model
        self._reading = reading
        self._parts = parts
        self._watchdog = Watchdog(reading.image_timeout_s)

    def read(self, unit: Unit, *, retry_failed: bool = False) -> PreparedUnit:
        """Read and prepare a unit; what is kept of it is left out.

        Raises:
            StorageError: The unit as a whole cannot be read.
        """
        kept = reused_rows(self._parts, unit, retry_failed)
        coming = UnitImages(unit, kept, self._model, self._reading)
        images = list(coming.images(2 * self._reading.threads, self._watchdog))
        return PreparedUnit(images, coming.notes, kept.order)


class UnitWorker:
    """Segments units with one loaded model and commits their parts; several at once, if asked.

    Args:
        lanes: Batches in the model at once, where the model allows it.
    """

    def __init__(
        self, model: Model, reading: ReadOptions, parts: Parts, max_concurrent_batches: int = 1
    ) -> None:
        self._model = model
        self._reading = reading
        self._parts = parts
        self._watchdog = Watchdog(reading.image_timeout_s)  # a process has one
        self._lanes = ConcurrentBatches(model, max_concurrent_batches, self._watchdog)

    def segment(
        self,
        unit: Unit,
        report: ReportProgress = lambda ok, failed, instances: None,
        *,
        retry_failed: bool = False,
    ) -> PartCounts:
        """Read, segment and commit one unit.

        Rows stand in the order of the unit's samples, whatever the batches were.

        Args:
            redo: The unit is committed; segment its failed images again and keep the others.

        Raises:
            StorageError: The unit's input as a whole cannot be read or its parts not written.
            DeviceLost: See `BatchRunner`.
            Exhausted: Nothing is committed; `ImageWorker` can tell which image is too much.
        """
        kept = reused_rows(self._parts, unit, retry_failed)
        coming = UnitImages(unit, kept, self._model, self._reading)
        window = self._lanes.prefetch_images + self._reading.threads
        done = self._through_model(coming.images(window, self._watchdog), report)
        return self._commit(unit, kept.merged(done), coming.notes, retry_failed)

    def finish(
        self,
        unit: Unit,
        read: PreparedUnit,
        report: ReportProgress = lambda ok, failed, instances: None,
        *,
        retry_failed: bool = False,
    ) -> PartCounts:
        """Segment and commit a unit that a `UnitReader` has read; otherwise as `segment`."""
        kept = reused_rows(self._parts, unit, retry_failed)
        kept.order = read.order
        done = self._through_model(iter(read.images), report)
        return self._commit(unit, kept.merged(done), read.notes, retry_failed)

    def _through_model(
        self, images: Iterator[PreparedSample], report: ReportProgress
    ) -> list[ImageResult]:
        results: list[ImageResult | None] = []
        tally = _Tally(report)

        def take(batch: Batch, outcomes: Outcomes) -> None:
            for (place, item), outcome in zip(batch, outcomes, strict=True):
                results[place] = tally.note(_result(item, outcome))
            tally.send()

        with Batcher(self._lanes, take) as line:
            for item in images:
                results.append(tally.note(_result(item, item.error)) if item.error else None)
                if item.error is None:
                    line.add(len(results) - 1, item)
        tally.send(final=True)
        done = [result for result in results if result is not None]
        if any(row.error and row.error.code is ErrorCode.OUT_OF_MEMORY for row in done):
            raise HostOutOfMemory
        return done

    def _commit(
        self, unit: Unit, results: list[ImageResult], notes: Counter[str], retry_failed: bool
    ) -> PartCounts:
        commit = self._parts.replace if retry_failed else self._parts.commit
        return commit(unit, results, notes)


class ImageWorker:
    """One image at a time with nothing else under way, in two steps.

    Whatever becomes of the process, the caller knows which image is to blame. Rows are the same
    as those of `UnitWorker`, because results do not depend on the batch.
    """

    def __init__(self, model: Model, reading: ReadOptions, parts: Parts) -> None:
        self._model = model
        self._reading = replace(reading, threads=1)
        self._parts = parts
        self._ahead = self._reading.ahead(1, Watchdog(reading.image_timeout_s))
        self._samples: Iterator[Sample] = iter(())
        self._notes: Counter[str] = Counter()
        self._kept = ReusedRows(_NO_UNIT, {})
        self._sample: Sample | None = None

    def open(self, unit: Unit, skip: int, retry_failed: bool) -> None:
        """Begin a unit behind the first `skip` of its samples (with `retry_failed`: of the failed ones)."""
        reading = self._reading
        self._notes = Counter()
        self._kept = reused_rows(self._parts, unit, retry_failed)
        samples = read_unit(unit, reading.storage, reading.source, self._notes, self._kept.rows)
        self._samples = self._kept.without_reused(samples)
        for _ in range(skip):
            next(self._samples, None)

    def advance(self) -> ImageResult | None:
        """Read the next image; who it is (a row without result), None at the end."""
        self._sample = next(self._samples, None)
        if self._sample is None:
            return None
        return ImageResult(self._sample.image_id, self._sample.uri, self._sample.etag)

    def finish(self) -> ImageResult:
        """Decode and segment the image that `advance` read."""
        assert self._sample is not None, "advance() comes first"
        item = self._ahead.prepare(self._sample, self._model.preprocess, self._reading.decode)
        if item.error is not None:
            return _result(item, item.error)
        return _result(item, BatchRunner(self._model).run([item.value])[0])

    def commit(self, unit: Unit, results: list[ImageResult], retry_failed: bool) -> PartCounts:
        """Commit the unit; `advance` must have given None."""
        commit = self._parts.replace if retry_failed else self._parts.commit
        return commit(unit, self._kept.merged(results), self._notes)


_REPORT_EVERY_S = 1.0
_NO_UNIT = Unit("", "objects", "", "", 0, 0, 0, 0)


class _Tally:
    """Counts of the unit under way, for the progress line."""

    def __init__(self, report: ReportProgress) -> None:
        self._report = report
        self._sent = 0.0
        self.ok = self.failed = self.instances = 0

    def note(self, result: ImageResult) -> ImageResult:
        if result.instances is None:
            self.failed += 1
        else:
            self.ok += 1
            self.instances += len(result.instances)
        return result

    def send(self, final: bool = False) -> None:
        """Report now and then: each time would be a message for each image."""
        now = time.monotonic()
        if final or now - self._sent >= _REPORT_EVERY_S:
            self._sent = now
            self._report(self.ok, self.failed, self.instances)


def _result(item: PreparedSample, outcome: Instances | ImageError) -> ImageResult:
    """The row of an image; a result for another canvas than the image's is the model's error."""
    sample = item.sample
    size = (item.width, item.height)
    if isinstance(outcome, Instances) and (outcome.width, outcome.height) != size:
        message = (
            f"model gave masks of {outcome.width} x {outcome.height} pixels "
            f"for an image of {item.width} x {item.height}"
        )
        outcome = ImageError(ErrorCode.MODEL_ERROR, message)
    failed = isinstance(outcome, ImageError)
    return ImageResult(
        image_id=sample.image_id,
        uri=sample.uri,
        etag=sample.etag,
        width=item.width,
        height=item.height,
        instances=None if failed else outcome,  # type: ignore[arg-type]
        error=outcome if failed else None,  # type: ignore[arg-type]
    )
