"""What an edition holds: counts, histograms and images to look at, in one pass over its units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segcore.errors import StorageError, UsageError
from segcore.output.image_rows import (
    RECORD_COLUMNS,
    ImageRecord,
    UnitRows,
    read_unit_rows,
    to_records,
)
from segcore.output.results import Results
from segcore.visualize.selection import BestImages, Choice, rank_images

N_SCORE_BINS = 20
N_AREA_BINS = 33  # by powers of 2: 1, 2 to 3, 4 to 7, ... pixels
N_COUNT_BINS = 33  # 0, 1, 2, 3 to 4, 5 to 8, ... instances
_MAX_CATEGORIES = 2000  # that are counted each by itself
_INSTANCE_COLUMNS = ("category", "score", "area")
_MAX_DAMAGED_NAMED = 20


class Group(StrEnum):
    """A kind of images in the gallery."""

    RANDOM = "random"
    LEAST_CERTAIN = "least-certain"  # lowest mean score of the instances
    CROWDED = "crowded"
    LARGEST = "largest"  # largest share of the image in one mask
    EMPTY = "empty"
    FAILED = "failed"


_CHOICES = {
    Group.RANDOM: Choice.RANDOM,
    Group.CROWDED: Choice.CROWDED,
    Group.EMPTY: Choice.EMPTY,
    Group.FAILED: Choice.FAILED,
}


@dataclass
class CategoryCounts:
    """Histograms of K categories, one row for each.

    Attributes:
        names: The row of each category.
        scores: (K, `N_SCORE_BINS`) instances by score.
        areas: (K, `N_AREA_BINS`) instances by area.
        per_image: (K, `N_COUNT_BINS`) images by how many instances of the category they have; the
            first bin stays empty.
        n_pooled: Instances of categories beyond those that have a row.
    """

    names: dict[str, int] = field(default_factory=dict)
    scores: np.ndarray = field(default_factory=lambda: np.zeros((0, N_SCORE_BINS), np.int64))
    areas: np.ndarray = field(default_factory=lambda: np.zeros((0, N_AREA_BINS), np.int64))
    per_image: np.ndarray = field(default_factory=lambda: np.zeros((0, N_COUNT_BINS), np.int64))
    n_pooled: int = 0

    def add(
        self, categories: pa.Array, scores: np.ndarray, areas: np.ndarray, images: np.ndarray
    ) -> None:
        """Add instances.

        Args:
            categories: N names, as a dictionary array.
            scores, areas: (N,).
            images: (N,) the number of the image of each.
        """
        names = categories.dictionary.to_pylist()
        rows = np.array([self._row(name) for name in names], np.int64)
        if not rows.size:
            return
        rows = rows[categories.indices.to_numpy()]
        kept = rows >= 0
        self.n_pooled += int((~kept).sum())
        rows, images = rows[kept], images[kept]
        self._count(self.scores, rows, score_bins(scores[kept]))
        self._count(self.areas, rows, area_bins(areas[kept]))
        if rows.size:
            n_images = int(images.max()) + 1
            pairs, n_instances = np.unique(rows * n_images + images, return_counts=True)
            self._count(self.per_image, pairs // n_images, count_bins(n_instances))

    def _row(self, name: str) -> int:
        """The row of a category; -1 where there are too many."""
        if name not in self.names:
            if len(self.names) >= _MAX_CATEGORIES:
                return -1
            self.names[name] = len(self.names)
            for attribute in ("scores", "areas", "per_image"):
                counts = getattr(self, attribute)
                setattr(self, attribute, np.pad(counts, ((0, 1), (0, 0))))
        return self.names[name]

    @staticmethod
    def _count(counts: np.ndarray, rows: np.ndarray, bins: np.ndarray) -> None:
        n_bins = counts.shape[1]
        flat = np.bincount(rows * n_bins + bins, minlength=counts.size)
        counts += flat.reshape(counts.shape)


@dataclass
class Contents:
    """What was counted.

    Attributes:
        per_image: (`N_COUNT_BINS`,) segmented images by how many instances they have.
        failures: Failed images by error code.
        warnings: Images by the code of a warning.
        damaged_units: Sentences about units that cannot be read; they count in nothing else.
        groups: Images to look at.
        records: image_id -> row, of the images that were asked for by their ids.
    """

    ok: int = 0
    failed: int = 0
    instances: int = 0
    units: int = 0
    per_image: np.ndarray = field(default_factory=lambda: np.zeros(N_COUNT_BINS, np.int64))
    failures: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    categories: CategoryCounts = field(default_factory=CategoryCounts)
    damaged_units: list[str] = field(default_factory=list)
    n_damaged: int = 0
    groups: dict[Group, BestImages] = field(default_factory=dict)
    records: dict[str, ImageRecord] = field(default_factory=dict)


def read_contents(
    results: Results,
    limit: int,
    seed: int,
    image_ids: Iterable[str] = (),
    notify_progress: Callable[[int, int], None] = lambda done, units: None,
) -> Contents:
    """Go through an edition once, unit by unit; a unit that cannot be read is left out and named.

    Args:
        limit: Most images of a group.
        seed: Of the random images.
        image_ids: Images whose rows are wanted.
        notify_progress: Called with the number of finished units, and of all.
    """
    contents = Contents(groups={group: BestImages(limit) for group in Group})
    columns = (*RECORD_COLUMNS, "warnings")
    wanted = pa.array(sorted(set(image_ids)), pa.string())
    for number, unit in enumerate(results.units, start=1):
        try:
            rows = read_unit_rows(results, unit, columns, _INSTANCE_COLUMNS)
        except (StorageError, UsageError) as error:
            contents.n_damaged += 1
            if contents.n_damaged <= _MAX_DAMAGED_NAMED:
                contents.damaged_units.append(f"{unit}: {error.message}")
        else:
            _add_unit(contents, rows, seed)
            if len(wanted):
                found = rows.images.filter(pc.is_in(rows.images["image_id"], value_set=wanted))
                contents.records |= {record.image_id: record for record in to_records(found)}
        notify_progress(number, len(results.units))
    return contents


def _add_unit(contents: Contents, rows: UnitRows, seed: int) -> None:
    images = rows.images
    is_ok = np.asarray(pc.equal(images["status"], "ok"), bool)
    n_instances = np.diff(rows.offsets)
    scores = rows.instances["score"].to_numpy()
    areas = rows.instances["area"].to_numpy()
    contents.units += 1
    contents.ok += int(is_ok.sum())
    contents.failed += int((~is_ok).sum())
    contents.instances += len(scores)
    contents.per_image += np.bincount(count_bins(n_instances[is_ok]), minlength=N_COUNT_BINS)
    _add_codes(contents, images)
    owners = np.repeat(np.arange(len(n_instances)), n_instances)
    names = rows.instances["category"].combine_chunks().dictionary_encode()
    contents.categories.add(names, scores, areas, owners)
    for group, choice in _CHOICES.items():
        contents.groups[group].add(*rank_images(images, choice, seed))
    filled = np.flatnonzero(n_instances)
    if filled.size:
        starts = rows.offsets[filled]
        some = images.take(pa.array(filled))
        means = np.add.reduceat(scores.astype(np.float64), starts) / n_instances[filled]
        contents.groups[Group.LEAST_CERTAIN].add(some, means)
        sides = (
            some[name].cast(pa.float64()).fill_null(1).to_numpy() for name in ("width", "height")
        )
        shares = np.maximum.reduceat(areas, starts) / np.maximum(np.prod(list(sides), axis=0), 1)
        contents.groups[Group.LARGEST].add(some, -shares)


def _add_codes(contents: Contents, images: pa.Table) -> None:
    failed = images["error_code"].filter(pc.not_equal(images["status"], "ok"))
    for count in pc.value_counts(failed).to_pylist():
        contents.failures[str(count["values"])] += count["counts"]
    warned = images["warnings"].filter(pc.greater(pc.list_value_length(images["warnings"]), 0))
    for texts in warned.to_pylist():
        contents.warnings.update({text.partition(":")[0] for text in texts})


def score_bins(scores: np.ndarray) -> np.ndarray:
    """(N,) the bin of each score, as its decimal number reads: 0.7 in float32 is a little less."""
    bins = np.floor(np.round(np.nan_to_num(scores.astype(np.float64)), 6) * N_SCORE_BINS)
    return np.clip(bins, 0, N_SCORE_BINS - 1).astype(np.int64)


def area_bins(areas: np.ndarray) -> np.ndarray:
    """(N,) the bin of each area: the whole part of its binary logarithm."""
    return np.clip(np.frexp(np.maximum(areas, 1).astype(np.float64))[1] - 1, 0, N_AREA_BINS - 1)


def count_bins(counts: np.ndarray) -> np.ndarray:
    """(N,) the bin of each number of instances: 0 for none, then by powers of 2."""
    exponents = np.frexp(np.maximum(counts - 1, 0).astype(np.float64))[1]  # of 2, rounded up
    return np.where(counts > 0, np.minimum(exponents + 1, N_COUNT_BINS - 1), 0)


def score_labels() -> list[str]:
    """What each bin of `score_bins` holds."""
    return [f"{i / N_SCORE_BINS:.2f} to {(i + 1) / N_SCORE_BINS:.2f}" for i in range(N_SCORE_BINS)]


def area_labels() -> list[str]:
    """What each bin of `area_bins` holds, in pixels."""
    return [_range(1 << i, (1 << (i + 1)) - 1) for i in range(N_AREA_BINS)]


def count_labels() -> list[str]:
    """What each bin of `count_bins` holds."""
    bounds = [(1 << (i - 1) >> 1, 1 << (i - 1)) for i in range(1, N_COUNT_BINS)]
    return ["0", *(_range(low + 1, high) for low, high in bounds)]


def _range(low: int, high: int) -> str:
    return f"{low:,} to {high:,}" if high > low else f"{low:,}"
