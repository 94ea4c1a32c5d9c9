"""Reading the output of runs back: which edition, and its committed tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import ObjectNotFound, UsageError
from segcore.output.documents import read_document
from segcore.output.latest import read_latest
from segcore.output.layout import EditionLayout, OutputLayout, Table, part_of_file
from segcore.output.parts import newest_generations
from segcore.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
from segcore.output.visible import find_visible_units
from segcore.storage import Storage, normalize


@dataclass(frozen=True)
class Results:
    """One edition of an output: the committed units of its newest complete run.

    Attributes:
        layout: Where the files of the edition lie.
        edition: Contents of its ``edition.json``.
        units: Ids of the units to read, sorted; each image is in one of them.
        run: The run whose units they are; "" when its plan is gone.
        newer_run: A newer run that is not complete, so that it is not read; "" if there is none.
        generations: Unit -> which generation of its part is the newest, where it is not 0.
    """

    storage: Storage
    layout: EditionLayout
    edition: dict[str, Any]
    units: tuple[str, ...]
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
                return pq.read_table(file, columns=list(columns))
            except (pa.ArrowException, OSError) as error:
                raise UsageError(f"{uri} is not a part of a segcore output: {error}") from None


def open_results(
    storage: Storage, output: str, edition: str | None = None, *, include_unlisted: bool = False
) -> Results:
    """Find the edition to read.

    Args:
        output: What a run was given as output, or the prefix of one edition in it.
        edition: Name of the edition; default the one that ``latest.json`` points to, else the
            only one.
        include_unlisted: Also read the results of images that the newest listing lacked.

    Raises:
        UsageError: There is no output, no such edition, or there are several and none was chosen;
            or see `find_visible_units`.
    """
    layout = find_edition(storage, output, edition)
    document = read_document(storage, layout.edition_json)
    infos = storage.list(layout.parts_folder("images"))
    names = (name for info in infos if (name := part_of_file(info.uri)) is not None)
    generations = newest_generations(names)
    visible = find_visible_units(storage, layout, generations.keys(), include_unlisted)
    again = {unit: generations[unit] for unit in visible.units if generations[unit]}
    return Results(storage, layout, document, visible.units, visible.run, visible.newer_run, again)


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
