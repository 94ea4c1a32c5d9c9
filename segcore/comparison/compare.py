"""Two editions of the same images, or an edition and known masks, unit by unit on all cores."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segcore.comparison.editions import IMAGE_COLUMNS, EditionImages, OtherImages
from segcore.comparison.instances import COLUMNS, ImageInstances
from segcore.comparison.matching import Change, Matches, MatchLimits, match_instances
from segcore.comparison.totals import Totals
from segcore.comparison.truth import TruthImages
from segcore.errors import SegcoreError, StorageError, UsageError
from segcore.evaluation.evaluate import read_ground_truth
from segcore.evaluation.remarks import list_names
from segcore.evaluation.resources import n_cores, paused_collection
from segcore.output.image_rows import read_unit_rows
from segcore.output.results import Results, open_results
from segcore.output.run_records import read_newest_run
from segcore.storage import Storage
from segcore.text import plural

CHANGES_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("change", pa.string(), nullable=False),
        pa.field("iou", pa.float64()),
        *(pa.field(f"instance_index_{side}", pa.int32()) for side in "ab"),
        *(pa.field(f"category_{side}", pa.string()) for side in "ab"),
        *(pa.field(f"score_{side}", pa.float32()) for side in "ab"),
    ]
)
_EXAMPLES = 5


@dataclass
class Comparison:
    """Two sides and what differs between them.

    Attributes:
        first, second: What was compared, for people.
        images: Why images were not compared -> how many; ``compared`` for the others.
        damaged_units: Units that cannot be read; their images are not in the totals.
        notes: Sentences for people.
        known: The known masks, where one side is a ground truth.
    """

    first: str
    second: str
    limits: MatchLimits
    totals: Totals = field(default_factory=Totals)
    images: Counter[str] = field(default_factory=Counter)
    damaged_units: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    known: TruthImages | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "a": self.first,
            "b": self.second,
            "match_iou": self.limits.match_iou,
            "same_iou": self.limits.same_iou,
            **self.totals.to_dict(),
            "not_compared": {k: n for k, n in sorted(self.images.items()) if k != COMPARED},
            "damaged_units": self.damaged_units,
            "notes": self.notes,
        }


COMPARED, OTHER_VERSION = "compared", "compared_though_the_file_changed"
ONLY_A, ONLY_B = "only_in_a", "only_in_b"
FAILED_A, FAILED_B = "failed_in_a", "failed_in_b"
OTHER_SIZE, BAD_MASKS = "of_other_size", "with_damaged_masks"
_REASONS = {
    ONLY_A: "that only A has",
    ONLY_B: "that only B has",
    FAILED_A: "that failed in A",
    FAILED_B: "that failed in B",
    OTHER_SIZE: "whose size differs between A and B",
    BAD_MASKS: "with masks that cannot be read (segcore verify says which)",
}


@dataclass(frozen=True)
class _UnitResult:
    """What one unit of the side that is walked through gives."""

    image_ids: list[str]
    matches: Matches
    sides: tuple[ImageInstances, ImageInstances]
    images: Counter[str]
    examples: dict[str, list[str]]


@dataclass(frozen=True)
class CompareOptions:
    """How to compare.

    Attributes:
        min_score: Instances below it are left out on both sides; known masks have no score.
        table: A local Parquet file for one row per pair or lone instance; None for none.
        threads: Units that are compared at the same time; None: one for each core.
        include_unlisted: Also images that the newest run's listing lacked.
    """

    limits: MatchLimits = field(default_factory=MatchLimits)
    min_score: float = 0.0
    table: Path | None = None
    threads: int | None = None
    include_unlisted: bool = False


def compare(
    storage: Storage,
    first: str,
    second: str,
    options: CompareOptions = CompareOptions(),
    *,
    first_edition: str | None = None,
    second_edition: str | None = None,
    notify_progress: Callable[[int, int], None] = lambda done, units: None,
) -> Comparison:
    """Compare A with B.

    Args:
        first, second: An output, the prefix of an edition, or a COCO instances file (.json).
        first_edition, second_edition: Names of editions of outputs; default the published one.
        notify_progress: Called with the number of finished units, and of all.

    Raises:
        UsageError: A side cannot be opened, both are ground truths, or they have no image in
            common.
        SegcoreError: The table cannot be written.
    """
    is_truth = [uri.lower().endswith(".json") for uri in (first, second)]
    if all(is_truth):
        raise UsageError("Both sides are ground truths.", "One of them must be an output.")
    opened = [
        None
        if is_json
        else open_results(storage, uri, name, include_unlisted=options.include_unlisted)
        for uri, name, is_json in zip(
            (first, second), (first_edition, second_edition), is_truth, strict=True
        )
    ]
    comparison = Comparison(
        opened[0].prefix if opened[0] else first,
        opened[1].prefix if opened[1] else second,
        options.limits,
    )
    walked = opened[0] or opened[1]
    assert walked is not None, "one of them is an edition"
    is_swapped = opened[0] is None
    truth_uri = first if is_swapped else second
    other = _other_side(storage, walked, None if is_swapped else opened[1], truth_uri, comparison)
    walk = _Walk(walked, other, options, is_swapped)
    writer = _TableWriter(options.table)
    examples: dict[str, list[str]] = {}
    with writer:
        for number, result in enumerate(walk.results(comparison.damaged_units), start=1):
            if result is not None:
                comparison.images += result.images
                scores = [side.scores for side in result.sides]
                comparison.totals.add(result.image_ids, result.matches, *scores)
                writer.write(result)
                for reason, ids in result.examples.items():
                    examples.setdefault(reason, []).extend(ids[:_EXAMPLES])
            notify_progress(number, len(walked.units))
        _finish(comparison, other, examples, is_swapped)
    comparison.known = other if isinstance(other, TruthImages) else None
    return comparison


def _other_side(
    storage: Storage,
    walked: Results,
    other: Results | None,
    truth_uri: str,
    comparison: Comparison,
) -> EditionImages | TruthImages:
    for results in (walked, other):
        if results is not None:
            comparison.notes += results.edition_notes
            comparison.notes += results.remarks()
    if other is None:
        with paused_collection():
            return TruthImages.of(walked, read_ground_truth(storage, truth_uri))
    records = [read_newest_run(storage, results.layout) for results in (other, walked)]
    roots = tuple(record.input if record else "" for record in records)
    if roots[0] != roots[1]:
        comparison.notes.append(
            f"The two are of different archives, {roots[1]} and {roots[0]}: images with the same "
            "id, or the same path in them, are compared."
        )
    images = EditionImages(other, walked.units, (roots[0], roots[1]))
    comparison.damaged_units += images.damaged
    return images


def _finish(
    comparison: Comparison,
    other: EditionImages | TruthImages,
    examples: dict[str, list[str]],
    is_swapped: bool,
) -> None:
    """Say what was not compared.

    Raises:
        UsageError: There is no image in common.
    """
    left = list(other.never_found())
    if left:
        reason = ONLY_A if is_swapped else ONLY_B
        comparison.images[reason] += len(left)
        examples[reason] = left[:_EXAMPLES]
    if isinstance(other, TruthImages):
        comparison.notes += other.remarks()
    for reason, words in _REASONS.items():
        if count := comparison.images[reason]:
            named = list_names(examples[reason][:_EXAMPLES])
            more = f" and {count - _EXAMPLES:,} more" if count > _EXAMPLES else ""
            comparison.notes.append(
                f"{plural(count, 'image')} {words}: not compared ({named}{more})."
            )
    if count := comparison.images[OTHER_VERSION]:
        comparison.notes.append(
            f"{plural(count, 'image')} whose file changed between the two runs: compared as they "
            "are."
        )
    if damaged := comparison.damaged_units:
        units = plural(len(damaged), "unit")
        comparison.notes.append(f"{units} cannot be read: left out ({damaged[0]}).")
    if not comparison.totals.images and not comparison.damaged_units:
        raise UsageError(
            f"{comparison.first} and {comparison.second} have no image in common that can be "
            "compared.",
            " ".join(comparison.notes[-2:]),
        )


@dataclass(frozen=True)
class _Walk:
    """Goes through the units of one side and looks their images up on the other."""

    walked: Results
    other: EditionImages | TruthImages
    options: CompareOptions
    is_swapped: bool

    def results(self, damaged: list[str]) -> Iterator[_UnitResult | None]:
        """What each unit gives, in the order of the units; None for one that cannot be read."""
        threads = self.options.threads or n_cores()
        pending: deque[tuple[str, Future[_UnitResult]]] = deque()
        with ThreadPoolExecutor(threads, "compare") as pool:
            units = iter(self.walked.units)
            try:
                while True:
                    while len(pending) < 2 * threads and (unit := next(units, None)):
                        pending.append((unit, pool.submit(self.compare_unit, unit)))
                    if not pending:
                        return
                    unit, future = pending.popleft()
                    try:
                        yield future.result()
                    except (StorageError, UsageError) as error:
                        damaged.append(f"{unit}: {error.message}")
                        yield None
            finally:
                for _, future in pending:
                    future.cancel()

    def compare_unit(self, unit: str) -> _UnitResult:
        rows = read_unit_rows(self.walked, unit, IMAGE_COLUMNS, COLUMNS)
        own = ImageInstances.of_table(rows.instances, rows.offsets)
        other = self.other.find(unit, rows.images)
        reasons = self._reasons(rows.images, own, other)
        kept = np.array([reason in (COMPARED, OTHER_VERSION) for reason in reasons], bool)
        sides = tuple(
            _filter(side, kept, self.options.min_score) for side in (own, other.instances)
        )
        first, second = sides[::-1] if self.is_swapped else sides
        ids = rows.images["image_id"].to_pylist()
        examples: dict[str, list[str]] = {}
        for image_id, reason in zip(ids, reasons, strict=True):
            examples.setdefault(reason, []).append(image_id)
        return _UnitResult(
            [image_id for image_id, is_kept in zip(ids, kept.tolist(), strict=True) if is_kept],
            match_instances(first, second, self.options.limits),
            (first, second),
            Counter(reasons),
            examples,
        )

    def _reasons(self, images: pa.Table, own: ImageInstances, other: OtherImages) -> list[str]:
        """For each image that it is compared, or why not."""
        only, own_failed, other_failed = ONLY_A, FAILED_A, FAILED_B
        if self.is_swapped:
            only, own_failed, other_failed = ONLY_B, FAILED_B, FAILED_A
        failed = np.array([status != "ok" for status in images["status"].to_pylist()], bool)
        sizes = np.stack([images[n].fill_null(-1).to_numpy() for n in ("height", "width")], axis=1)
        is_bad = _has_bad_masks(own, sizes) | _has_bad_masks(other.instances, other.sizes)
        reasons = np.full(len(failed), COMPARED, object)
        reasons[other.is_other_version] = OTHER_VERSION
        reasons[is_bad] = BAD_MASKS
        reasons[(sizes != other.sizes).any(axis=1)] = OTHER_SIZE
        reasons[other.is_failed] = other_failed
        reasons[failed] = own_failed
        reasons[~other.is_there] = only
        result: list[str] = reasons.tolist()
        return result


def _has_bad_masks(instances: ImageInstances, sizes: np.ndarray) -> np.ndarray:
    """(K,) bool: images with a mask that cannot be read, or is on another canvas."""
    masks = instances.masks
    image = np.repeat(np.arange(len(sizes)), np.diff(instances.offsets))
    is_bad = ~masks.measures.valid
    is_bad |= (masks.heights != sizes[image, 0]) | (masks.widths != sizes[image, 1])
    return np.bincount(image[is_bad], minlength=len(sizes)) > 0


def _filter(side: ImageInstances, kept: np.ndarray, min_score: float) -> ImageInstances:
    """The instances of the images that are kept, of this score or more."""
    image = np.repeat(np.arange(len(kept)), np.diff(side.offsets))
    chosen = kept[image] & ~(side.scores < min_score)
    counts = np.bincount(image[chosen], minlength=len(kept))[kept]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return side.take(np.flatnonzero(chosen), offsets)


class _TableWriter:
    """Writes one row for each pair and lone instance, if a file is wanted.

    The file gets its name when it is whole; where the comparison fails, there is none.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._unfinished = path and path.with_name(f".{path.name[:100]}.{os.getpid()}")
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> None:
        if self._path is None or self._unfinished is None:
            return
        with self._named_errors():
            if self._path.is_dir():
                raise ValueError("it is a folder")
            self._writer = pq.ParquetWriter(self._unfinished, CHANGES_SCHEMA, compression="zstd")

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if self._writer is None or self._path is None or self._unfinished is None:
            return
        try:
            with self._named_errors():
                self._writer.close()
                if kind is None:
                    self._unfinished.replace(self._path)
        finally:
            self._unfinished.unlink(missing_ok=True)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: no name of a file
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise SegcoreError(f"{self._path} cannot be written: {reason}.") from None

    def write(self, result: _UnitResult) -> None:
        """Add the rows of a unit."""
        if self._writer is None:
            return
        matches = result.matches
        columns: dict[str, Any] = {
            "image_id": pa.array(result.image_ids, pa.string()).take(pa.array(matches.images)),
            "change": [Change(change).word for change in matches.changes.tolist()],
            "iou": pa.array(matches.ious, from_pandas=True),
        }
        rows = (matches.first, matches.second)
        for side, name in enumerate("ab"):
            instances = result.sides[side]
            place = pa.array(rows[side], mask=rows[side] < 0)
            columns[f"instance_index_{name}"] = pa.array(instances.indices).take(place)
            columns[f"category_{name}"] = instances.categories.take(place)
            scores = pa.array(instances.scores, from_pandas=True).cast(pa.float32())
            columns[f"score_{name}"] = scores.take(place)
        table = pa.table({n: columns[n] for n in CHANGES_SCHEMA.names}).cast(CHANGES_SCHEMA)
        with self._named_errors():
            self._writer.write_table(table)
