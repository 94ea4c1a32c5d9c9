"""Which images of an edition to look at."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segcore.errors import UsageError
from segcore.output.image_rows import RECORD_COLUMNS, ImageRecord, to_records
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


@dataclass(frozen=True)
class Selection:
    """What was asked for.

    Attributes:
        name: Only images with this id, or whose id ends with it at a slash or `#`; `*` and `?`
            stand for any letters and for one. "" for all.
        limit: Most images.
        seed: Of a random choice; the same seed gives the same images.
    """

    choice: Choice = Choice.RANDOM
    name: str = ""
    limit: int = 12
    seed: int = 0


@dataclass(frozen=True)
class Selected:
    """The images, and how many there would be without the limit."""

    records: tuple[ImageRecord, ...]
    n_matching: int


def select_images(results: Results, selection: Selection) -> Selected:
    """Find the images that are asked for, in one pass over the `images` table.

    Raises:
        UsageError: There is no image of this name; the message names some that are like it.
    """
    parts = _rank_of(selection.choice, selection.seed)(
        _named(results, selection.name) if selection.name else _all(results)
    )
    best: pa.Table | None = None
    n_matching = 0
    for part in parts:
        n_matching += part.num_rows
        best = part if best is None else pa.concat_tables([best, part])
        order = np.argsort(best["rank"].to_numpy(), kind="stable")[: selection.limit]
        best = best.take(pa.array(order))
    if best is None:
        return Selected((), 0)
    return Selected(tuple(to_records(best)), n_matching)


def _all(results: Results) -> Iterator[pa.Table]:
    return results.images(list(RECORD_COLUMNS))


def _rank_of(choice: Choice, seed: int) -> Callable[[Iterator[pa.Table]], Iterator[pa.Table]]:
    """Gives each table a column `rank`, of which the lowest are taken; leaves out other images."""

    def add_ranks(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            if choice == Choice.FAILED:
                table = table.filter(pc.not_equal(table["status"], "ok"))
            elif choice != Choice.FIRST:
                table = table.filter(pc.equal(table["status"], "ok"))
            if choice == Choice.EMPTY:
                table = table.filter(pc.equal(table["n_instances"], 0))
            ranks = np.zeros(table.num_rows)
            if choice == Choice.CROWDED:
                ranks = -table["n_instances"].to_numpy().astype(np.float64)
            elif choice == Choice.RANDOM and table.num_rows:
                # By unit, so that the choice does not depend on the order in which units are read.
                unit = int(table["unit"][0].as_py(), 16)
                ranks = np.random.default_rng([seed, unit]).random(table.num_rows)
            yield table.append_column("rank", pa.array(ranks))

    return add_ranks


def _named(results: Results, name: str) -> Iterator[pa.Table]:
    """The images of this very id; else those whose ids end with it; else those of a pattern."""
    of_id: list[pa.Table] = []
    of_end: list[pa.Table] = []
    ends = f"(^|{_KEY_END}){re.escape(name)}$"
    for table in _all(results):
        of_id.append(table.filter(pc.equal(table["image_id"], name)))
        of_end.append(table.filter(pc.match_substring_regex(table["image_id"], ends)))
    for tables in (of_id, of_end):
        if any(table.num_rows for table in tables):
            return iter(tables)
    if "*" in name or "?" in name:
        return _of_pattern(results, name)
    raise UsageError(f"{results.prefix} has no image {name}.", _suggest(results, name))


def _of_pattern(results: Results, name: str) -> Iterator[pa.Table]:
    letters = re.escape(name).replace(r"\*", ".*").replace(r"\?", ".")
    pattern = f"(?s)(^|{_KEY_END}){letters}$"
    is_found = False
    for table in _all(results):
        table = table.filter(pc.match_substring_regex(table["image_id"], pattern))
        is_found = is_found or table.num_rows > 0
        yield table
    if not is_found:
        raise UsageError(
            f"{results.prefix} has no image {name}.",
            "A pattern is compared with the end of an id, from a slash or # on: *.jpg, b/*/7.png",
        )


def _suggest(results: Results, name: str) -> str:
    """What may have been meant."""
    base = re.split(_KEY_END, name)[-1]
    stem = base.rpartition(".")[0] or base
    alike: dict[str, str] = {}  # last part of an id -> the id
    n_images = 0
    for table in results.images(["image_id"]):
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
