"""Reading the output of runs back: which edition, and its committed tables."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import UsageError
from segcore.output.documents import read_document
from segcore.output.editions import choose_edition
from segcore.output.layout import EditionLayout, Table
from segcore.output.parts import list_part_names, newest_generations
from segcore.output.schema import (
    ADDED_IN_2,
    IMAGES_SCHEMA,
    INSTANCES_SCHEMA,
    add_new_columns,
    stated_version,
)
from segcore.output.visible import find_visible_units
from segcore.storage import Storage

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Results:
    """One edition of an output: the committed units of its newest complete run.

    Attributes:
        layout: Where the files of the edition lie.
        edition: Contents of its ``edition.json``.
        units: Ids of the units to read, sorted; each image is in one of them.
        newer_edition: One with a newer run that is not published; "" if there is none, or if the
            edition was named.
        edition_notes: Sentences for people: whether it is published, and the newer one.
        run: The run whose units they are; "" when its plan is gone.
        newer_run: A newer run that is not complete, so that it is not read; "" if there is none.
        generations: Unit -> which generation of its part is the newest, where it is not 0.
    """

    storage: Storage
    layout: EditionLayout
    edition: dict[str, Any]
    units: tuple[str, ...]
    newer_edition: str = ""
    edition_notes: tuple[str, ...] = ()
    run: str = ""
    newer_run: str = ""
    generations: Mapping[str, int] = field(default_factory=dict, repr=False)

    @property
    def prefix(self) -> str:
        """URI of the edition."""
        return self.layout.prefix

    @property
    def name(self) -> str:
        """Name of the edition."""
        return self.layout.name

    def remarks(self) -> list[str]:
        """Sentences for people about what is read."""
        if not self.newer_run:
            return []
        return [
            f"Run {self.newer_run} is not complete: these are the results of the run before it, "
            f"{self.run}."
        ]

    def images(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The `images` table, one unit at a time.

        Columns that an output of schema 1 lacks have their defaults: no warnings, no page.

        Raises:
            UsageError: A part is not a table of this schema.
        """
        for unit in self.units:
            yield self._read_part("images", unit, columns or IMAGES_SCHEMA.names)

    def instances(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The `instances` table, one unit at a time, in the order of `images`."""
        for unit in self.units:
            yield self._read_part("instances", unit, columns or INSTANCES_SCHEMA.names)

    def _read_part(self, table: Table, unit: str, columns: Sequence[str]) -> pa.Table:
        uri = self.layout.part(table, unit, self.generations.get(unit, 0))
        with self.storage.open(uri) as file:
            try:
                part = pq.ParquetFile(file)
                names = list(columns)
                if stated_version(part.metadata.metadata) == 1:
                    present = [name for name in names if name not in ADDED_IN_2]
                    return add_new_columns(part.read(columns=present), table, names)
                return part.read(columns=names).select(names)
            except (pa.ArrowException, OSError, KeyError) as error:
                raise UsageError(f"{uri} is not a part of a segcore output: {error}") from None


def open_results(
    storage: Storage, output: str, edition: str | None = None, *, include_unlisted: bool = False
) -> Results:
    """Find the edition to read; `Results.edition_notes` and the log say which that is.

    Args:
        output: What a run was given as output, or the prefix of one edition in it.
        edition: Name of the edition; default the one that ``latest.json`` points to, else the
            only one.
        include_unlisted: Also read the results of images that the newest listing lacked.

    Raises:
        UsageError: There is no output, no such edition, or there are several and none was chosen;
            or see `find_visible_units`.
    """
    choice = choose_edition(storage, output, edition)
    layout = choice.layout
    notes = tuple(choice.sentences())
    for sentence in notes:
        _LOGGER.info("%s", sentence)
    document = read_document(storage, layout.edition_json)
    generations = newest_generations(list_part_names(storage, layout, "images"))
    visible = find_visible_units(storage, layout, generations.keys(), include_unlisted)
    return Results(
        storage=storage,
        layout=layout,
        edition=document,
        units=visible.units,
        newer_edition=choice.newer,
        edition_notes=notes,
        run=visible.run,
        newer_run=visible.newer_run,
        generations={unit: generations[unit] for unit in visible.units if generations[unit]},
    )
