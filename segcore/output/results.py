"""Reading the output of runs back: which edition, and its committed tables."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import DamagedOutput, ObjectNotFound, UsageError
from segcore.output.compacted_rows import CompactedParts
from segcore.output.documents import read_document
from segcore.output.editions import choose_edition
from segcore.output.layout import EditionLayout, Table
from segcore.output.parts import list_generations
from segcore.output.schema import (
    ADDED_IN_2,
    IMAGES_SCHEMA,
    INSTANCES_SCHEMA,
    add_new_columns,
    stated_version,
)
from segcore.output.visible import find_visible_units
from segcore.storage import Storage
from segcore.text import plural

_SCHEMAS: Mapping[str, pa.Schema] = {"images": IMAGES_SCHEMA, "instances": INSTANCES_SCHEMA}
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Results:
    """One edition of an output: the committed units of its newest complete run.

    Attributes:
        layout: Where the files of the edition lie.
        edition: Contents of its ``edition.json``.
        units: Ids of the units to read, each image in one of them: those in compacted files in the
            order in which they lie there, then the others, sorted.
        newer_edition: One with a newer run that is not published; "" if there is none, or if the
            edition was named.
        edition_notes: Sentences for people: whether it is published, and the newer one.
        run: The run whose units they are; "" when its plan is gone.
        newer_run: A newer run that is not complete, so that it is not read; "" if there is none.
        n_missing_units: Units of `run` without results: it is not finished.
        generations: Unit -> which generation of its part is the newest, where it is not 0.
        compacted: The compacted files of the edition; None to read parts alone.
    """

    storage: Storage
    layout: EditionLayout
    edition: dict[str, Any]
    units: tuple[str, ...]
    newer_edition: str = ""
    edition_notes: tuple[str, ...] = ()
    run: str = ""
    newer_run: str = ""
    n_missing_units: int = 0
    generations: Mapping[str, int] = field(default_factory=dict, repr=False)
    compacted: CompactedParts | None = field(default=None, repr=False)

    @property
    def prefix(self) -> str:
        """URI of the edition."""
        return self.layout.prefix

    @property
    def name(self) -> str:
        """Name of the edition."""
        return self.layout.name

    @property
    def categories(self) -> dict[int, str]:
        """The classes of the model by their ids.

        Raises:
            DamagedOutput: ``edition.json`` does not say.
        """
        try:
            return {int(c["id"]): str(c["name"]) for c in self.edition["model"]["categories"]}
        except (KeyError, TypeError, ValueError):
            raise self._no_model("which classes its model has") from None

    @property
    def model_text(self) -> str:
        """Name of the model, with the beginning of its weights' sha256.

        Raises:
            DamagedOutput: ``edition.json`` does not say.
        """
        try:
            model = self.edition["model"]
            return f"{model['name']} {str(model['weights_sha256'])[:12]}"
        except (KeyError, TypeError):
            raise self._no_model("which model it is of") from None

    def _no_model(self, what: str) -> DamagedOutput:
        return DamagedOutput(
            f"{self.layout.edition_json} is damaged: it does not say {what}.",
            "Restore it, or delete it and rerun the same `segcore segment` command.",
        )

    def remarks(self) -> list[str]:
        """Sentences for people about what is read."""
        sentences = []
        if self.newer_run:
            sentences.append(
                f"Run {self.newer_run} is not complete: these are the results of the run before "
                f"it, {self.run}."
            )
        if self.n_missing_units:
            sentences.append(
                f"Run {self.run} is not complete: {plural(self.n_missing_units, 'unit')} of "
                "images have no results yet and are missing here. Rerun the same `segcore segment` "
                "command to finish it."
            )
        return sentences

    def images(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The `images` table, one unit at a time.

        Columns that an output of schema 1 lacks have their defaults: no warnings, no page.

        Raises:
            DamagedOutput: A part is not a table of this schema, or is gone.
        """
        for unit in self.units:
            yield self.read_rows("images", unit, columns or IMAGES_SCHEMA.names)

    def instances(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The `instances` table, one unit at a time, in the order of `images`."""
        for unit in self.units:
            yield self.read_rows("instances", unit, columns or INSTANCES_SCHEMA.names)

    def to_arrow(self, table: Table, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of `images` or `instances` as one table in memory.

        Leave `counts` out of `columns` where no masks are needed: most of the bytes are in it.

        Args:
            columns: Their names; default all.

        Raises:
            UsageError: There is no such table or column.
            DamagedOutput: A part is not a table of this schema, or is gone.
        """
        if table not in _SCHEMAS:
            raise UsageError(f"There is no table {table!r}.", "The tables: images, instances.")
        names = list(columns or _SCHEMAS[table].names)
        for name in names:
            if name not in _SCHEMAS[table].names:
                raise UsageError(
                    f"The table {table} has no column {name!r}.",
                    f"Its columns: {', '.join(_SCHEMAS[table].names)}.",
                )
        rows = self.images(names) if table == "images" else self.instances(names)
        schema = pa.schema([_SCHEMAS[table].field(name) for name in names])
        return pa.concat_tables([schema.empty_table(), *(part.cast(schema) for part in rows)])

    def to_pandas(self, table: Table, columns: Sequence[str] | None = None) -> Any:
        """All rows of `images` or `instances` as a pandas DataFrame; see `to_arrow`."""
        return self.to_arrow(table, columns).to_pandas()

    def sql(self, table: Table) -> str:
        """A query for DuckDB that gives the rows of `images` or `instances`, of these units alone.

        It is short where compacted files hold all units and no others. Parts of schema 1 beside
        compacted files give null where these have the defaults of new columns.
        """
        loose = [unit for unit in self.units if not self._is_compacted(unit)]
        queries = []
        if len(loose) < len(self.units):
            queries.append(self._compacted_sql(table))
        if loose or not queries:
            uris = (self.layout.part(table, unit, self.generations.get(unit, 0)) for unit in loose)
            files = ", ".join(map(_sql_text, uris))
            queries.append(f"SELECT * FROM read_parquet([{files}])")
        return " UNION ALL BY NAME ".join(queries)

    def _compacted_sql(self, table: Table) -> str:
        assert self.compacted is not None, "only then units are compacted"
        units = self.compacted.units(refresh=False)
        assert units.layout is not None, "only then units are compacted"
        query = f"SELECT * FROM read_parquet({_sql_text(units.layout.files_pattern(table))})"
        read = set(filter(self._is_compacted, self.units))
        hidden = [unit for unit in units.table["unit"].to_pylist() if unit not in read]
        if not hidden:
            return query
        names = ", ".join(map(_sql_text, hidden))
        if table == "images":
            return f"{query} WHERE unit NOT IN ({names})"
        images = _sql_text(units.layout.files_pattern("images"))
        ids = f"SELECT image_id FROM read_parquet({images}) WHERE unit IN ({names})"
        return f"{query} WHERE image_id NOT IN ({ids})"

    def _is_compacted(self, unit: str, *, refresh: bool = False) -> bool:
        """Whether the rows of a unit are to be read from compacted files."""
        if self.compacted is None:
            return False
        units = self.compacted.units(refresh=refresh)
        return units.covers(unit, self.generations.get(unit, 0))

    def read_rows(self, table: Table, unit: str, columns: Sequence[str]) -> pa.Table:
        """The rows of one unit in `images` or `instances`.

        Raises:
            DamagedOutput: Its part is not a table of this schema, or is gone.
        """
        try:
            if self.compacted is not None and self._is_compacted(unit):
                return self.compacted.read(table, unit, columns)
            try:
                return self._read_own_part(table, unit, columns)
            except ObjectNotFound:
                if self.compacted is None or not self._is_compacted(unit, refresh=True):
                    raise
                return self.compacted.read(table, unit, columns)  # moved there in the meantime
        except ObjectNotFound as error:
            raise DamagedOutput(
                f"A part of the results cannot be read: {error.message}",
                "If a run made it again in this moment, repeat the command; `segcore verify` says "
                "whether it is missing.",
            ) from None

    def _read_own_part(self, table: Table, unit: str, columns: Sequence[str]) -> pa.Table:
        uri = self.layout.part(table, unit, self.generations.get(unit, 0))
        names = list(columns)
        with self.storage.open(uri) as file:
            try:
                part = pq.ParquetFile(file, page_checksum_verification=True)
                if stated_version(part.metadata.metadata) == 1:
                    present = [name for name in names if name not in ADDED_IN_2]
                    rows = add_new_columns(part.read(columns=present), table, names)
                else:
                    rows = part.read(columns=names).select(names)
                _check_columns(rows, _SCHEMAS[table])
            except (pa.ArrowException, OSError, KeyError, ValueError) as error:
                reason = str(error).partition("\n")[0][:200]
                raise DamagedOutput(
                    f"{uri} is not a part of a segcore output: {reason}",
                    "`segcore verify` names every damaged file. To segment the images of this one "
                    "again, delete the file of this name in `images` and rerun the same `segcore "
                    "segment` command.",
                ) from None
        return rows


def _check_columns(rows: pa.Table, schema: pa.Schema) -> None:
    """Refuse columns of other types, and missing values where there is always one.

    Raises:
        ValueError: Says which.
    """
    for column in rows.schema:
        expected = schema.field(column.name)
        if column.type != expected.type:
            raise ValueError(f"{column.name} is {column.type}, not {expected.type}")
        if not expected.nullable and (n := rows[column.name].null_count):
            raise ValueError(f"{column.name} lacks a value in {plural(n, 'row')}")


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
    compacted = CompactedParts(storage, layout)
    generations = list_generations(storage, layout, compacted)
    visible = find_visible_units(storage, layout, generations.keys(), include_unlisted)
    places = {unit: row for row, unit in enumerate(compacted.units(refresh=False).generations)}
    return Results(
        storage=storage,
        layout=layout,
        edition=document,
        units=tuple(sorted(visible.units, key=lambda unit: (places.get(unit, len(places)), unit))),
        newer_edition=choice.newer,
        edition_notes=notes,
        run=visible.run,
        newer_run=visible.newer_run,
        n_missing_units=visible.n_missing,
        generations={unit: generations[unit] for unit in visible.units if generations[unit]},
        compacted=compacted,
    )


def _sql_text(text: str) -> str:
    escaped = text.replace("'", "''")
    return f"'{escaped}'"
