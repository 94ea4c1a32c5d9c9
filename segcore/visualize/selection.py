"""Which images of an edition to look at."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segcore.errors import StorageError, UsageError
from segcore.output.image_rows import RECORD_COLUMNS, ImageRecord, to_records
from segcore.output.rankings import Ranking
from segcore.output.results import Results
from segcore.text import plural

_MAX_SUGGESTIONS = 3
_MAX_LOOKED_AT = 5000  # names that are compared letter by letter with one that is unknown
_KEY_END = r"[/#\\]"  # what a name may begin after


class Choice(StrEnum):
    """Which of the images are taken where there are more than are wanted."""

    FIRST = "first"  # in the order of the tables
    RANDOM = "random"
    FAILED = "failed"
    CROWDED = "crowded"  # those with the most instances, the most crowded one first
    EMPTY = "empty"  # segmented, and nothing was found
    RANKED = "ranked"  # in the order of a ranking


@dataclass(frozen=True)
class Selection:
    """What was asked for.

    Attributes:
        name: Only images with this id, or whose id ends with it at a slash or `#`; `*` and `?`
            stand for any letters and for one. "" for all.
        limit: Most images.
        seed: Of a random choice; the same seed gives the same images.
        ranking: Which images are ranked, and how; for `Choice.RANKED` alone.
    """

    choice: Choice = Choice.RANDOM
    name: str = ""
    limit: int = 12
    seed: int = 0
    ranking: Ranking | None = None


@dataclass(frozen=True)
class Selected:
    """The images, and how many there would be without the limit.

    Attributes:
        damaged_units: Sentences about units that cannot be read and whose images are left out.
    """

    records: tuple[ImageRecord, ...]
    n_matching: int
    damaged_units: tuple[str, ...] = ()


def select_images(results: Results, selection: Selection) -> Selected:
    """Find the images that are asked for, in one pass over the `images` table.

    A unit that cannot be read is left out and named.

    Raises:
        UsageError: There is no image of this name; the message names some that are like it.
    """
    best = BestImages(selection.limit)
    units = _Units(results)
    for table in _named(units, selection.name) if selection.name else units.tables():
        if selection.ranking is not None:
            best.add(*rank_by(selection.ranking, table))
        else:
            best.add(*rank_images(table, selection.choice, selection.seed))
    return replace(best.selected(), damaged_units=tuple(units.damaged.values()))


class BestImages:
    """Keeps the images of the lowest ranks among all that are added; of equal ones the first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._best: pa.Table | None = None
        self._n_matching = 0

    def add(self, images: pa.Table, ranks: np.ndarray) -> None:
        """Add rows of the `images` table, at least `RECORD_COLUMNS`, and (N,) their ranks."""
        self._n_matching += images.num_rows
        part = images.select(list(RECORD_COLUMNS))
        part = part.append_column("rank", pa.array(ranks, pa.float64()))
        if self._best is not None:
            part = pa.concat_tables([self._best, part])
        order = np.argsort(part["rank"].to_numpy(), kind="stable")[: self.limit]
        self._best = part.take(pa.array(order))

    def selected(self) -> Selected:
        """What was kept, the lowest rank first, and how many images were added."""
        records = to_records(self._best) if self._best is not None else []
        return Selected(tuple(records), self._n_matching)


@dataclass
class _Units:
    """Reads the units that can be read.

    Attributes:
        damaged: Unit -> a sentence, of the others.
    """

    results: Results
    damaged: dict[str, str] = field(default_factory=dict)

    def tables(self, columns: Sequence[str] = RECORD_COLUMNS) -> Iterator[pa.Table]:
        """The rows of each in `images`."""
        for unit in self.results.units:
            try:
                yield self.results.read_rows("images", unit, list(columns))
            except (StorageError, UsageError) as error:
                self.damaged[unit] = f"{unit}: {error.message}"


def rank_images(images: pa.Table, choice: Choice, seed: int) -> tuple[pa.Table, np.ndarray]:
    """The images of one unit that a choice is about, and (N,) their ranks: the lowest are taken."""
    if choice == Choice.FAILED:
        images = images.filter(pc.not_equal(images["status"], "ok"))
    elif choice != Choice.FIRST:
        images = images.filter(pc.equal(images["status"], "ok"))
    if choice == Choice.EMPTY:
        images = images.filter(pc.equal(images["n_instances"], 0))
    ranks = np.zeros(images.num_rows)
    if choice == Choice.CROWDED:
        ranks = -images["n_instances"].to_numpy().astype(np.float64)
    elif choice == Choice.RANDOM and images.num_rows:
        # By unit, so that the choice does not depend on the order in which units are read.
        unit = int(images["unit"][0].as_py(), 16)
        ranks = np.random.default_rng([seed, unit]).random(images.num_rows)
    return images, ranks


def rank_by(ranking: Ranking, images: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """The images of one unit that are ranked, and (N,) their ranks."""
    places = ranking.places(images["image_id"])
    is_ranked = pc.is_valid(places)
    return images.filter(is_ranked), places.filter(is_ranked).to_numpy().astype(np.float64)


def _named(units: _Units, name: str) -> Iterator[pa.Table]:
    """The images of this very id; else those whose ids end with it; else those of a pattern."""
    of_id: list[pa.Table] = []
    of_end: list[pa.Table] = []
    ends = f"(^|{_KEY_END}){re.escape(name)}$"
    for table in units.tables():
        of_id.append(table.filter(pc.equal(table["image_id"], name)))
        of_end.append(table.filter(pc.match_substring_regex(table["image_id"], ends)))
    for tables in (of_id, of_end):
        if any(table.num_rows for table in tables):
            return iter(tables)
    if "*" in name or "?" in name:
        return _of_pattern(units, name)
    raise UsageError(f"{units.results.prefix} has no image {name}.", _suggest(units, name))


def _of_pattern(units: _Units, name: str) -> Iterator[pa.Table]:
    letters = re.escape(name).replace(r"\*", ".*").replace(r"\?", ".")
    pattern = f"(?s)(^|{_KEY_END}){letters}$"
    is_found = False
    for table in units.tables():
        table = table.filter(pc.match_substring_regex(table["image_id"], pattern))
        is_found = is_found or table.num_rows > 0
        yield table
    if not is_found:
        raise UsageError(
            f"{units.results.prefix} has no image {name}.",
            "A pattern is compared with the end of an id, from a slash or # on: *.jpg, b/*/7.png",
        )


def _suggest(units: _Units, name: str) -> str:
    """What may have been meant."""
    base = re.split(_KEY_END, name)[-1]
    stem = base.rpartition(".")[0] or base
    alike: dict[str, str] = {}  # last part of an id -> the id
    n_images = 0
    for table in units.tables(["image_id"]):
        n_images += table.num_rows
        ids = table["image_id"]
        if len(alike) >= _MAX_LOOKED_AT:
            ids = ids.filter(pc.match_substring(ids, stem, ignore_case=True))
        for image_id in ids.slice(0, _MAX_LOOKED_AT).to_pylist():
            alike.setdefault(re.split(_KEY_END, image_id)[-1], image_id)
    close = difflib.get_close_matches(base, alike, _MAX_SUGGESTIONS)
    if not close:
        return f"Its {plural(n_images, 'image')} have ids such as {next(iter(alike.values()), '-')}"
    return f"Did you mean {', '.join(alike[one] for one in close)}?"
