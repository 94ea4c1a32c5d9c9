"""Which of the committed units make up the result of an edition.

While a run replaces units, the old and the new parts of an image lie side by side. So that no image
is read twice, and none is missing meanwhile, readers take the units of one plan: the newest that is
committed as a whole. Parts that it replaces are deleted only after that.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from segcore.errors import ObjectNotFound, UsageError
from segcore.output.layout import EditionLayout
from segcore.output.run_records import read_planned_ids, read_run_records
from segcore.output.unlisted import read_unlisted
from segcore.storage import Storage


@dataclass(frozen=True)
class VisibleUnits:
    """What to read.

    Attributes:
        run: The run whose plan they are of; "" when no plan can be found.
        units: Sorted.
        newer_run: A newer run that is not complete, and whose results are therefore not read; "" if
            there is none.
        n_missing: Units of `run` that have no part: it is not complete, and no run before it is.
    """

    run: str
    units: tuple[str, ...]
    newer_run: str = ""
    n_missing: int = 0


def find_visible_units(
    storage: Storage,
    layout: EditionLayout,
    committed: AbstractSet[str],
    include_unlisted: bool = False,
) -> VisibleUnits:
    """The committed units to read.

    Args:
        include_unlisted: Also those of images that the listing of that run lacked.

    Raises:
        UsageError: Unlisted images are asked for before a run has found out which they are.
        DamagedOutput: A run record is damaged.
        StorageError: A plan or the list of unlisted images is damaged.
    """
    run, planned, newer_run = _choose_run(storage, layout, committed)
    listed = committed & planned
    others = committed - planned
    n_missing = len(planned) - len(listed)
    if not others or (run and not include_unlisted):
        return VisibleUnits(run, tuple(sorted(listed)), newer_run, n_missing)
    table = read_unlisted(storage, layout, run, ["unit"]) if run else None
    if table is None and include_unlisted and run:
        raise UsageError(
            f"{layout.prefix} holds parts of images that are not in its newest plan, and no run "
            "has found out yet which of them to keep.",
            "Rerun the same `segcore segment` command, or leave unlisted images out.",
        )
    unlisted = set(table["unit"].to_pylist()) if table is not None else set(others)
    units = tuple(sorted(listed | (others & unlisted)))
    return VisibleUnits(run, units, newer_run, n_missing)


def _choose_run(
    storage: Storage, layout: EditionLayout, committed: AbstractSet[str]
) -> tuple[str, set[str], str]:
    """The newest run whose units are all committed, these, and the newest run if that is another.

    Where it is not the newest of all, the newest is taken nevertheless if it lacks none of the
    other's units: then it only adds images. Where no run is complete, the newest is taken.
    """
    newest: tuple[str, set[str]] | None = None
    for record in reversed(read_run_records(storage, layout)):
        try:
            planned = read_planned_ids(storage, layout, record.run)
        except ObjectNotFound:
            continue
        if newest is None:
            newest = record.run, planned
        if planned <= committed:
            return (*newest, "") if planned <= newest[1] else (record.run, planned, newest[0])
    return (*newest, "") if newest else ("", set(), "")
