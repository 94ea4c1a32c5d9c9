"""A ranking of the images of an edition, from what is asked for to the file.

Two passes over the units: the first keeps some twenty bytes of each image, from which the order
follows; the second reads what is said of the images that are ranked, a million at most. So memory
is bounded by the limit, not by how long the names in an archive are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from segcore.errors import NothingFound, SegcoreError, StorageError, UsageError
from segcore.output.rankings import (
    MAX_RANKED,
    RANKING_SCHEMA,
    Ranking,
    check_ranking_name,
    find_ranking,
    write_ranking,
)
from segcore.output.results import Results
from segcore.ranking.diverse import (
    MAX_CANDIDATES,
    MAX_CHOSEN,
    choose_diverse,
    feature_columns,
)
from segcore.ranking.facts import ImageFacts, hash_ids, read_counts, read_facts
from segcore.ranking.methods import STRATA, RankBy
from segcore.text import plural

_MAX_DAMAGED_NAMED = 20
_DEFAULT_LIMIT, _DEFAULT_DIVERSE = 100_000, 1000


@dataclass(frozen=True)
class RankOptions:
    """How to rank.

    Attributes:
        name: Of the ranking; "" for what it is by.
        limit: Most images in it; None for 100,000, or 1,000 where they are to be diverse.
        seed: The same seed gives the same ranking.
        strata: What tells the kinds of images apart in a stratified ranking, of `STRATA`.
        overwrite: Replace a ranking of this name that was made with other options.
    """

    by: RankBy
    name: str = ""
    limit: int | None = None
    seed: int = 0
    strata: tuple[str, ...] = STRATA
    overwrite: bool = False

    @property
    def most(self) -> int:
        """The limit."""
        default = _DEFAULT_DIVERSE if self.by == RankBy.DIVERSE else _DEFAULT_LIMIT
        return self.limit or default

    def stated(self) -> dict[str, Any]:
        """What decides the ranking of an edition in one state."""
        strata = list(self.strata) if self.by == RankBy.STRATIFIED else None
        return {"by": str(self.by), "limit": self.most, "seed": self.seed, "strata": strata}

    def check(self) -> None:
        """Refuse values that nothing can be made of.

        Raises:
            UsageError: The limit or the strata cannot be.
        """
        highest = MAX_CHOSEN if self.by == RankBy.DIVERSE else MAX_RANKED
        if not 1 <= self.most <= highest:
            raise UsageError(
                f"A ranking by {self.by} has 1 to {highest:,} images, not {self.most:,}."
            )
        if self.seed < 0:
            raise UsageError(f"The seed is {self.seed}; it must not be negative.")
        if not self.strata or not set(self.strata) <= set(STRATA):
            raise UsageError(
                f"The strata are {', '.join(self.strata) or 'none'}; they can be one or more of "
                f"{', '.join(STRATA)}."
            )


@dataclass(frozen=True)
class RankReport:
    """A ranking that was made.

    Attributes:
        n_candidates: Images that it was chosen from, of `ranking.n_images`.
        damaged_units: Sentences about units that cannot be read and whose images are left out, the
            first 20 of `n_damaged`.
        notes: Sentences for people.
    """

    ranking: Ranking
    edition: str
    n_candidates: int
    damaged_units: tuple[str, ...] = ()
    n_damaged: int = 0
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "edition": self.edition,
            "name": self.ranking.name,
            "file": self.ranking.uri,
            **self.ranking.options,
            "images": self.ranking.n_images,
            "candidates": self.n_candidates,
            "ranked": self.ranking.rows.num_rows,
            "damaged_units": list(self.damaged_units),
            "n_damaged_units": self.n_damaged,
            "notes": list(self.notes),
        }


@dataclass
class _Order:
    """All N segmented images of an edition, in the order of its units.

    Attributes:
        units: Those that could be read, and `starts` their first rows.
        keys: (N,) float64: the lowest are ranked first; of equal ones those of the lowest hash.
        hashes: (N,) uint64.
        strata: (N,) int32 of a stratified ranking, places in `stratum_names`.
    """

    units: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    keys: np.ndarray = field(default_factory=lambda: np.zeros(0))
    hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    strata: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    stratum_names: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    n_damaged: int = 0

    def add_damage(self, unit: str, error: SegcoreError) -> None:
        """Note that a unit cannot be read."""
        self.n_damaged += 1
        if self.n_damaged <= _MAX_DAMAGED_NAMED:
            self.damaged.append(f"{unit}: {error.message}")

    def first(self, n: int) -> np.ndarray:
        """The rows of the first `n` images, in their order."""
        return np.lexsort((self.hashes, self.keys))[:n]


Progress = Callable[[int, int], None]


def rank(
    results: Results, options: RankOptions, notify_progress: Progress = lambda done, units: None
) -> RankReport:
    """Rank the segmented images of an edition, and write that to ``rankings/<name>.parquet``.

    Failed images are not ranked. A unit that cannot be read is left out and named.

    Args:
        notify_progress: Called with the number of finished units, and of all.

    Raises:
        UsageError: An option is wrong, or the name is taken by a ranking that was made otherwise.
        NothingFound: There is no image to rank.
        StorageError: The ranking cannot be written.
    """
    options.check()
    name = options.name or str(options.by)
    check_ranking_name(name)
    _refuse_other(results, name, options)
    order = _read_order(results, options, notify_progress)
    n_images = len(order.keys)
    if not n_images:
        unread = "; ".join(order.damaged[:1])
        raise NothingFound(f"{results.prefix} has no segmented image to rank.", unread)
    most = MAX_CANDIDATES if options.by == RankBy.DIVERSE else options.most
    rows = order.first(most)
    table = _Chosen(results, order, rows, options).table()
    if not len(table):
        raise NothingFound(f"No unit of {results.prefix} can be read.", order.damaged[0])
    ranking = write_ranking(results, name, table, options.stated(), n_images)
    notes = [*results.remarks()]
    if len(rows) < n_images and options.by == RankBy.DIVERSE:
        notes.append(
            f"Chosen from {len(rows):,} of {plural(n_images, 'image')}, drawn at random: comparing "
            "all of them would take too long."
        )
    damage = tuple(order.damaged)
    return RankReport(ranking, results.name, len(rows), damage, order.n_damaged, tuple(notes))


def _refuse_other(results: Results, name: str, options: RankOptions) -> None:
    if options.overwrite:
        return
    there = find_ranking(results.storage, results.layout, name)
    if there is None:
        return
    stated = options.stated()
    differing = [
        f"{key} {there.options.get(key)!r}, not {value!r}"
        for key, value in stated.items()
        if there.options.get(key) != value
    ]
    if differing:
        raise UsageError(
            f"There is a ranking {name} of {results.name} that was made otherwise: "
            f"{'; '.join(differing)}.",
            "Give the new one another --name, or replace the old one with --overwrite.",
        )


def _read_order(results: Results, options: RankOptions, notify_progress: Progress) -> _Order:
    order = _Order()
    pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    places: dict[str, int] = {}
    n_images = 0
    for number, unit in enumerate(results.units, start=1):
        try:
            ids, keys, strata = _keys(results, unit, options)
        except (StorageError, UsageError) as error:
            order.add_damage(unit, error)
        else:
            codes = [places.setdefault(text, len(places)) for text in strata]
            pieces.append((keys, hash_ids(ids, options.seed), np.array(codes, np.int32)))
            order.units.append(unit)
            order.starts.append(n_images)
            n_images += len(ids)
        notify_progress(number, len(results.units))
    if pieces:
        order.keys, order.hashes, order.strata = map(np.concatenate, zip(*pieces, strict=True))
    order.stratum_names = list(places)
    if options.by == RankBy.STRATIFIED:
        order.keys = _proportional(order.strata, order.hashes)
    return order


def _keys(
    results: Results, unit: str, options: RankOptions
) -> tuple[list[str], np.ndarray, Sequence[str]]:
    """Ids of the images of a unit, what they are ordered by, and their strata if needed."""
    if options.by in (RankBy.UNCERTAIN, RankBy.STRATIFIED):
        facts = read_facts(results, unit)
        rows = range(len(facts.ids))
        if options.by == RankBy.STRATIFIED:
            strata = [facts.stratum(row, options.strata) for row in rows]
            return facts.ids, np.zeros(len(facts.ids)), strata
        return facts.ids, np.nan_to_num(facts.mean_scores - 1, nan=0.0), ()
    facts = read_counts(results, unit)
    if options.by == RankBy.CROWDED:
        return facts.ids, -facts.n_instances.astype(np.float64), ()
    return facts.ids, np.zeros(len(facts.ids)), ()


def _proportional(strata: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """(N,) keys so that each stratum has its share of any first images (Webster, Sainte-Lague)."""
    if not len(strata):
        return np.zeros(0)
    order = np.lexsort((hashes, strata))
    sizes = np.bincount(strata)
    starts = np.cumsum(sizes) - sizes
    keys = np.empty(len(strata))
    of = strata[order]
    keys[order] = (np.arange(len(strata)) - starts[of] + 0.5) / sizes[of]
    return keys


class _Chosen:
    """What is said of the images that were chosen, in the order of the ranking.

    Args:
        rows: Their rows in `order`.
    """

    def __init__(
        self, results: Results, order: _Order, rows: np.ndarray, options: RankOptions
    ) -> None:
        self._order, self._rows, self._options = order, rows, options
        self._stratum_sizes = np.bincount(order.strata)
        self._ids = [""] * len(rows)
        self._scores = np.full(len(rows), np.nan)
        self._why = [""] * len(rows)
        columns = None
        if options.by == RankBy.DIVERSE:
            columns = feature_columns(results.categories.values())
        features = []
        self._feature_places: list[np.ndarray] = []
        for places, unit_rows, facts in self._facts(results, columns):
            for place, row in zip(places.tolist(), unit_rows.tolist(), strict=True):
                self._ids[place] = facts.ids[row]
                self._scores[place], self._why[place] = self._say(place, row, facts)
            if columns is not None:
                features.append(facts.features[unit_rows])
                self._feature_places.append(places)
        if features:
            places = np.concatenate(self._feature_places)
            order_of = np.argsort(places)
            self._choose(places[order_of], np.concatenate(features)[order_of])

    def _facts(
        self, results: Results, columns: dict[str, int] | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, ImageFacts]]:
        """For each unit that holds some: places in the ranking, rows in the unit, the facts."""
        starts = np.array(self._order.starts, np.int64)
        unit_of = np.searchsorted(starts, self._rows, "right") - 1
        by_unit = np.argsort(unit_of, kind="stable")
        borders = np.flatnonzero(np.diff(unit_of[by_unit])) + 1
        for places in np.split(by_unit, borders):
            number = int(unit_of[places[0]])
            unit = self._order.units[number]
            try:
                if self._options.by in (RankBy.CROWDED, RankBy.RANDOM):
                    facts = read_counts(results, unit)
                else:
                    facts = read_facts(results, unit, columns)
            except (StorageError, UsageError) as error:
                self._order.add_damage(unit, error)
            else:
                yield places, self._rows[places] - starts[number], facts

    def _say(self, place: int, row: int, facts: ImageFacts) -> tuple[float, str]:
        """The score of an image, and why it has its rank."""
        order_row = int(self._rows[place])
        by = self._options.by
        n = int(facts.n_instances[row])
        if by == RankBy.UNCERTAIN:
            if not n:
                return 0.0, "nothing found"
            mean, lowest = facts.mean_scores[row], facts.lowest_scores[row]
            return 1 - mean, f"{plural(n, 'instance')}, mean score {mean:.2f}, lowest {lowest:.2f}"
        if by == RankBy.CROWDED:
            return n, plural(n, "instance")
        if by == RankBy.RANDOM:
            return int(self._order.hashes[order_row]) / 2.0**64, "drawn at random"
        if by == RankBy.STRATIFIED:
            code = int(self._order.strata[order_row])
            size = int(self._stratum_sizes[code])
            name = self._order.stratum_names[code]
            return float(self._order.keys[order_row]), f"one of {plural(size, 'image')}: {name}"
        return np.nan, facts.words(row)

    def _choose(self, places: np.ndarray, features: np.ndarray) -> None:
        """Keep the images that differ most from one another, in their order.

        Args:
            places: (N,) of the candidates that could be read.
            features: (N, D) of these.
        """
        kept, distances = choose_diverse(features, self._options.most)
        kept = places[kept]
        self._ids = [self._ids[row] for row in kept.tolist()]
        self._why = [
            f"nearest to the average image; {self._why[row]}"
            if np.isnan(distance)
            else f"{distance:.2f} from all before; {self._why[row]}"
            for row, distance in zip(kept.tolist(), distances.tolist(), strict=True)
        ]
        self._scores = distances

    def table(self) -> pa.Table:
        """The rows of the ranking."""
        read = [place for place, image_id in enumerate(self._ids) if image_id]
        scores = pa.array(self._scores[read], pa.float64(), from_pandas=True)  # NaN becomes null
        ranks = np.arange(1, len(read) + 1, dtype=np.int32)
        ids, why = ([values[place] for place in read] for values in (self._ids, self._why))
        columns = [ids, ranks, scores, why]
        return pa.table(dict(zip(RANKING_SCHEMA.names, columns, strict=True)), RANKING_SCHEMA)
