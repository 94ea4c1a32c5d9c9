"""One unit from bytes to committed parts. Knows nothing of Ray: an actor calls it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from segcore.batches import BatchRunner
from segcore.errors import ErrorCode, ImageError
from segcore.images import DecodeOptions
from segcore.instances import Instances
from segcore.models.base import Model
from segcore.parts import ImageResult, PartCounts, Parts
from segcore.readahead import Prepared, ReadAhead
from segcore.sources import SourceOptions, read_unit
from segcore.storage import Storage
from segcore.units import Unit

Report = Callable[[int, int, int], None]  # ok, failed, instances so far in this unit


@dataclass(frozen=True)
class Reading:
    """How a unit's images are read and decoded."""

    storage: Storage
    source: SourceOptions
    decode: DecodeOptions
    threads: int
    max_decoded_bytes: int


class UnitWorker:
    """Segments units with one loaded model and commits their parts."""

    def __init__(self, model: Model, reading: Reading, parts: Parts) -> None:
        self._model = model
        self._reading = reading
        self._parts = parts
        self._runner = BatchRunner(model)

    def segment(
        self, unit: Unit, report: Report = lambda ok, failed, instances: None
    ) -> PartCounts:
        """Read, segment and commit one unit.

        Rows stand in the order of the unit's samples, whatever the batches were.

        Raises:
            StorageError: The unit's input as a whole cannot be read or its parts not written.
            DeviceLost: See `BatchRunner`.
        """
        reading = self._reading
        ahead = ReadAhead(
            reading.threads, 2 * self._runner.size + reading.threads, reading.max_decoded_bytes
        )
        results: list[ImageResult | None] = []
        waiting: list[tuple[int, Prepared]] = []
        tally = _Tally(report)

        def flush() -> None:
            found = self._runner.run([item.value for _, item in waiting])
            for (place, item), outcome in zip(waiting, found, strict=True):
                results[place] = tally.note(_result(item, outcome))
            waiting.clear()
            tally.send()

        notes: Counter[str] = Counter()
        samples = read_unit(unit, reading.storage, reading.source, notes)
        for item in ahead.stream(samples, self._model.preprocess, reading.decode):
            if item.error is not None:
                results.append(tally.note(_result(item, item.error)))
                continue
            waiting.append((len(results), item))
            results.append(None)
            if len(waiting) >= self._runner.size:
                flush()
        flush()
        rows = [result for result in results if result is not None]
        return self._parts.commit(unit, rows, notes)


class _Tally:
    """Counts of the unit under way, for the progress line."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.ok = self.failed = self.instances = 0

    def note(self, result: ImageResult) -> ImageResult:
        if result.instances is None:
            self.failed += 1
        else:
            self.ok += 1
            self.instances += len(result.instances)
        return result

    def send(self) -> None:
        self._report(self.ok, self.failed, self.instances)


def _result(item: Prepared, outcome: Instances | ImageError) -> ImageResult:
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
