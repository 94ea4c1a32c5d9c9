"""Reading the output of runs back: which edition, and its committed tables."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import UsageError
from segcore.output.documents import read_document
from segcore.output.editions import choose_edition
from segcore.output.layout import EditionLayout, Table, unit_of_part
from segcore.output.schema import (
    ADDED_IN_2,
    IMAGES_SCHEMA,
    INSTANCES_SCHEMA,
    add_new_columns,
    stated_version,
)
from segcore.storage import Storage

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Results:
    """One edition of an output. Only units whose `images` part exists are seen.

    Attributes:
        layout: Where the files of the edition lie.
        edition: Contents of its ``edition.json``.
        units: Ids of the committed units, sorted.
        newer_edition: One with a newer run that is not published; "" if there is none, or if the
            edition was named.
        edition_notes: Sentences for people: whether it is published, and the newer one.
    """

    storage: Storage
    layout: EditionLayout
    edition: dict[str, Any]
    units: tuple[str, ...]
    newer_edition: str = ""
    edition_notes: tuple[str, ...] = ()

    @property
    def prefix(self) -> str:
        """URI of the edition."""
        return self.layout.prefix

    @property
    def name(self) -> str:
        """Name of the edition."""
        return self.layout.name

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
        uri = self.layout.part(table, unit)
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


def open_results(storage: Storage, output: str, edition: str | None = None) -> Results:
    """Find the edition to read; `Results.edition_notes` and the log say which that is.

    Args:
        output: What a run was given as output, or the prefix of one edition in it.
        edition: Name of the edition; default the one that ``latest.json`` points to, else the
            only one.

    Raises:
        UsageError: There is no output, no such edition, or there are several and none was chosen.
    """
    choice = choose_edition(storage, output, edition)
    layout = choice.layout
    notes = tuple(choice.sentences())
    for sentence in notes:
        _LOGGER.info("%s", sentence)
    document = read_document(storage, layout.edition_json)
    listed_units = (unit_of_part(info.uri) for info in storage.list(layout.parts_folder("images")))
    units = tuple(sorted(unit for unit in listed_units if unit is not None))
    return Results(storage, layout, document, units, choice.newer, notes)
