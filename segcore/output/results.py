"""Reading the output of runs back: which edition, and its committed tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import ObjectNotFound, UsageError
from segcore.output.documents import read_document
from segcore.output.latest import read_latest
from segcore.output.layout import EditionLayout, OutputLayout, Table, unit_of_part
from segcore.output.schema import (
    ADDED_IN_2,
    IMAGES_SCHEMA,
    INSTANCES_SCHEMA,
    add_new_columns,
    stated_version,
)
from segcore.storage import Storage, normalize


@dataclass(frozen=True)
class Results:
    """One edition of an output. Only units whose `images` part exists are seen.

    Attributes:
        layout: Where the files of the edition lie.
        edition: Contents of its ``edition.json``.
        units: Ids of the committed units, sorted.
    """

    storage: Storage
    layout: EditionLayout
    edition: dict[str, Any]
    units: tuple[str, ...]

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
    """Find the edition to read.

    Args:
        output: What a run was given as output, or the prefix of one edition in it.
        edition: Name of the edition; default the one that ``latest.json`` points to, else the
            only one.

    Raises:
        UsageError: There is no output, no such edition, or there are several and none was chosen.
    """
    layout = find_edition(storage, output, edition)
    document = read_document(storage, layout.edition_json)
    listed_units = (unit_of_part(info.uri) for info in storage.list(layout.parts_folder("images")))
    units = tuple(sorted(unit for unit in listed_units if unit is not None))
    return Results(storage, layout, document, units)


def find_edition(
    storage: Storage, output: str, edition: str | None = None, *, newest: bool = False
) -> EditionLayout:
    """The edition to look at; other arguments and errors are those of `open_results`.

    Args:
        newest: Of several, take the one whose run record was written last, published or not.
    """
    uri = normalize(output)
    if edition is not None:
        return _edition_by_name(storage, OutputLayout(uri), edition)
    if storage.exists(EditionLayout(uri).edition_json):
        return EditionLayout(uri)
    if newest:
        layout = _edition_of_newest_run(storage, OutputLayout(uri))
        if layout is not None:
            return layout
    return _published_or_only_edition(storage, OutputLayout(uri))


def _edition_by_name(storage: Storage, output: OutputLayout, name: str) -> EditionLayout:
    layout = output.edition(name)
    if storage.exists(layout.edition_json):
        return layout
    raise UsageError(
        f"{output.uri} has no edition {name}.", _describe_editions(_editions(storage, output))
    )


def _edition_of_newest_run(storage: Storage, output: OutputLayout) -> EditionLayout | None:
    """The edition whose run record was written last; None when there is no record."""
    dated = [
        (changed, layout.prefix)
        for info, changed in storage.list_with_times(output.uri)
        if (layout := output.edition_of_run_record(info.uri)) is not None
    ]
    return EditionLayout(max(dated)[1]) if dated else None


def _published_or_only_edition(storage: Storage, output: OutputLayout) -> EditionLayout:
    try:
        latest = read_latest(storage, output)
    except ObjectNotFound:
        editions = _editions(storage, output)
        if len(editions) == 1:
            return output.edition(editions[0])
        if editions:
            raise UsageError(
                f"{output.uri} holds {len(editions)} editions, and none of them is published.",
                f"Choose one with --edition. {_describe_editions(editions)}",
            ) from None
        raise UsageError(
            f"{output.uri} is not the output of a run: it holds no edition.",
            "Give the folder or URI that was the OUTPUT of `segcore segment`.",
        ) from None
    if not isinstance(latest.get("edition"), str):
        raise UsageError(
            f"{output.latest_json} does not name an edition.", "Choose one with --edition."
        )
    return output.edition(latest["edition"])


def _editions(storage: Storage, output: OutputLayout) -> list[str]:
    """Names of the editions of an output, by listing."""
    layouts = (output.edition_of_document(info.uri) for info in storage.list(output.uri))
    return [layout.name for layout in layouts if layout is not None]


def _describe_editions(editions: list[str]) -> str:
    return f"Its editions: {', '.join(editions)}." if editions else "It has no editions."
