"""The parts of an edition: the commit of a unit, and what is committed.

A unit's ``images`` part is written last; its existence is the only record that the unit is done.
The same results of the same unit always give the same bytes. A part that is made again becomes a
file of its own, of the next generation, before the older one goes: at each moment a reader finds a
whole part. `delete_parts` is the only place that deletes parts.

Rows of a unit may also lie in compacted files (`segcore.output.compaction`); whoever reads parts
here need not know.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import ObjectNotFound, StorageError
from segcore.output.committed import CommittedParts, list_committed
from segcore.output.compacted_rows import CompactedParts
from segcore.output.compaction import CompactedUnits, withdraw_units
from segcore.output.layout import EditionLayout, PartName, Table, part_of_file
from segcore.output.part_counts import PartCounts, WrittenPart
from segcore.output.registered import pinned_files
from segcore.output.schema import (
    IMAGES_SCHEMA,
    INSTANCES_SCHEMA,
    SCHEMA_VERSION,
    add_new_columns,
    stated_version,
)
from segcore.output.tables import ImageResult, encode_part, images_table, instances_table
from segcore.sources.tar_members import READER_VERSION
from segcore.sources.units import Unit
from segcore.storage import Storage

_REQUEST_THREADS = 16


@dataclass(frozen=True)
class Parts:
    """The parts of one edition. Holds no connection, so it can be sent to actors.

    Attributes:
        prefix: ``<output>/<edition>``.
        run: Id of the plan that is being carried out; deterministic, so that parts are too.
        categories: (id, name) of each class.
        generations: Unit -> its generation, of units that were made again; see `as_listed`.
        compacted: The compacted files of the edition.
    """

    storage: Storage
    prefix: str
    edition: str
    run: str
    licence: str
    categories: tuple[tuple[int, str], ...]
    generations: Mapping[str, int] = field(default_factory=dict, repr=False)
    compacted: CompactedParts = field(default=None, repr=False, compare=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.compacted is None:
            object.__setattr__(self, "compacted", CompactedParts(self.storage, self.layout))

    @property
    def layout(self) -> EditionLayout:
        """Where the files of the edition lie."""
        return EditionLayout(self.prefix)

    def commit(
        self, unit: Unit, results: Sequence[ImageResult], notes: Mapping[str, int] | None = None
    ) -> PartCounts:
        """Write a unit's two parts, ``images`` last. Doing it twice changes nothing.

        Raises:
            StorageError: Not written; the unit is not done.
        """
        counts = PartCounts.of_results(unit.unit, results, notes or {})
        instances = instances_table(results, dict(self.categories))
        return self.commit_tables(images_table(unit, results), instances, counts)

    def commit_tables(
        self, images: pa.Table, instances: pa.Table, counts: PartCounts, generation: int = 0
    ) -> PartCounts:
        """Like `commit`, for tables that exist already; `counts` must be theirs."""
        metadata = self._metadata(counts)
        layout, name = self.layout, PartName(counts.unit, generation)
        self.storage.write(layout.part("instances", *name), encode_part(instances, metadata))
        info = self.storage.write(layout.part("images", *name), encode_part(images, metadata))
        return dataclasses.replace(counts, written=WrittenPart(generation, info.size, info.etag))

    def replace(
        self, unit: Unit, results: Sequence[ImageResult], notes: Mapping[str, int] | None = None
    ) -> PartCounts:
        """Write other results of a unit that is committed, as the next generation of its part.

        The older part is deleted afterwards: whoever reads in between, or after the process has
        died in between, finds two whole parts and takes the newer. Nothing is touched when the
        rows are the same.

        Raises:
            StorageError: Not written; the unit has its older part.
        """
        counts = PartCounts.of_results(unit.unit, results, notes or {})
        images = images_table(unit, results)
        generation = self.newest_generation(unit.unit)
        if images.equals(self._read_table("images", PartName(unit.unit, generation))):
            return counts
        instances = instances_table(results, dict(self.categories))
        counts = self.commit_tables(images, instances, counts, generation + 1)
        older = [PartName(unit.unit, number) for number in range(generation + 1)]
        self.delete_parts("images", older)
        self.delete_parts("instances", older)
        return counts

    def newest_generation(self, unit: str) -> int:
        """The generation of a committed unit as storage has it now.

        A retry whose worker died after its commit is tried again by a worker that still knows the
        generation before.
        """
        generation = self.generations.get(unit, 0)
        if (covered := self.compacted.find(unit, generation, refresh=True)) is not None:
            generation = covered.generation
        while self.storage.exists(self.layout.part("images", unit, generation + 1)):
            generation += 1
        return generation

    def read_tables(self, unit: str) -> tuple[pa.Table, pa.Table]:
        """The tables `images` and `instances` of a committed unit, without metadata.

        Raises:
            StorageError: A part is missing, damaged, or not one of segcore's.
        """
        name = PartName(unit, self.generations.get(unit, 0))
        return self._read_table("images", name), self._read_table("instances", name)

    def read_newest_tables(self, unit: str) -> tuple[pa.Table, pa.Table]:
        """Like `read_tables`, of the newest generation in storage, known or not."""
        name = PartName(unit, self.newest_generation(unit))
        return self._read_table("images", name), self._read_table("instances", name)

    def read_image_columns(self, unit: str, columns: Sequence[str]) -> tuple[pa.Table, str]:
        """Some columns of the `images` part of a unit, and the run that wrote it.

        Columns that an older version of the schema lacked have their defaults.

        Raises:
            StorageError: It cannot be read; names it.
        """
        name = PartName(unit, self.generations.get(unit, 0))
        if (covered := self.compacted.find(*name)) is not None:
            return self.compacted.read("images", unit, columns), covered.run
        uri = self.layout.part("images", *name)
        try:
            with self.storage.open(uri) as file:
                part = pq.ParquetFile(file, page_checksum_verification=True)
                rows = part.read(list(columns), use_threads=False)
        except ObjectNotFound:
            covered = self.compacted.find(*name, refresh=True)  # moved there in the meantime
            if covered is None:
                raise
            return self.compacted.read("images", unit, columns), covered.run
        except (pa.ArrowException, OSError, ValueError) as error:
            raise StorageError(
                f"{uri} is not a readable part: {error}.",
                "Its unit is not in the plan any more. If its results cannot be restored, delete "
                "this object and rerun the same command.",
            ) from error
        run = (rows.schema.metadata or {}).get(b"segcore.run", b"").decode("utf-8", "replace")
        return add_new_columns(rows.replace_schema_metadata(None), "images", list(columns)), run

    def committed_units(self) -> set[str]:
        """Ids of all units that are done, by listing."""
        return set(self.list_generations())

    def list_generations(self) -> dict[str, int]:
        """All units that are done, each with the newest generation of its part, by listing."""
        return self.list_committed().generations()

    def list_committed(self) -> CommittedParts:
        """All parts of the table ``images`` by listing, and the units of compacted files."""
        return list_committed(self.storage, self.layout, reader=self.compacted)

    def as_listed(self, generations: Mapping[str, int]) -> Parts:
        """These parts, read in the generations that `list_generations` gave."""
        again = {unit: number for unit, number in generations.items() if number}
        return dataclasses.replace(self, generations=again)

    def read_counts(self, units: Iterable[str]) -> Iterator[PartCounts]:
        """What committed parts say about themselves; reads their footers, many at a time.

        Nothing is read for units in compacted files: these say it in one place.

        Raises:
            StorageError: A part cannot be read or is not one of segcore's; names it.
        """
        covered = self.compacted.units(refresh=False)
        loose, compacted = [], set()
        for unit in units:
            if covered.covers(unit, self.generations.get(unit, 0)):
                compacted.add(unit)
            else:
                loose.append(unit)
        yield from covered.counts(compacted)
        with ThreadPoolExecutor(_REQUEST_THREADS) as pool:
            yield from pool.map(self._read_counts, loose)

    def find_counts(self, unit: str) -> PartCounts | None:
        """What the part of a unit says about itself; None where there is none that can be read."""
        try:
            return self._read_counts(unit)
        except StorageError:
            return None

    def delete_all_but(
        self, kept: Mapping[str, int], committed: CommittedParts | None = None
    ) -> int:
        """Delete all parts except these, unit -> generation; returns how many units are gone.

        In compacted files, the rows of the others are not read any more. ``images`` parts go first,
        so that a unit is undone before it is incomplete. A unit that
        has none must be in no table of `kept`.

        Args:
            committed: All ``images`` parts besides these, if the caller has listed them.
        """
        committed = committed or self.list_committed()
        pinned = pinned_files(self.storage, self.layout)
        images = [
            name
            for name in committed.names()
            if kept.get(name.unit) != name.generation
            and self.layout.part("images", *name) not in pinned
        ]
        self.delete_parts("images", images, pinned)
        instances = list_part_names(self.storage, self.layout, "instances")
        others = [name for name in instances if kept.get(name.unit) != name.generation]
        self.delete_parts("instances", others, pinned)
        gone = {name.unit for name in images} - kept.keys()
        gone |= self.compacted.units().generations.keys() - kept.keys()
        withdraw_units(self.storage, self.layout, gone)
        return len(gone)

    def delete_parts(
        self, table: Table, names: Collection[PartName], pinned: frozenset[str] | None = None
    ) -> None:
        """Delete these files, but not those that a table outside of segcore refers to.

        Those that do not exist are no error.

        Args:
            pinned: `pinned_files`, if the caller has read them.
        """
        if not names:
            return
        if pinned is None:
            pinned = pinned_files(self.storage, self.layout)
        uris = (self.layout.part(table, *name) for name in names)
        self.storage.delete_all(uri for uri in uris if uri not in pinned)

    def _metadata(self, counts: PartCounts) -> dict[str, str]:
        return {
            "segcore.schema_version": str(SCHEMA_VERSION),
            "segcore.edition": self.edition,
            "segcore.run": self.run,
            "segcore.licence": self.licence,
            "segcore.reader": str(READER_VERSION),
            **counts.to_metadata(),
        }

    def _read_table(self, table: Table, name: PartName) -> pa.Table:
        if self.compacted.find(*name) is not None:
            return self.compacted.read(table, name.unit)
        try:
            return self._read_own_table(table, name)
        except ObjectNotFound:
            if self.compacted.find(*name, refresh=True) is None:  # else moved in the meantime
                raise
            return self.compacted.read(table, name.unit)

    def _read_own_table(self, table: Table, name: PartName) -> pa.Table:
        uri = self.layout.part(table, *name)
        with self.storage.open(uri) as file:
            return decode_part(file, table, uri).replace_schema_metadata(None)

    def _read_counts(self, unit: str) -> PartCounts:
        name = PartName(unit, self.generations.get(unit, 0))
        uri = self.layout.part("images", *name)
        try:
            with self.storage.open(uri) as file:
                return PartCounts.from_metadata(pq.read_metadata(file).metadata)
        except ObjectNotFound:
            covered = self.compacted.find(*name, refresh=True)  # moved there in the meantime
            if covered is None:
                raise
            return covered.counts
        except (KeyError, ValueError, pa.ArrowException) as error:
            raise StorageError(
                f"{uri} is not a readable part of this edition: {error}.",
                hint="Delete this object and run the same command again to redo its unit.",
            ) from None


def list_part_names(storage: Storage, layout: EditionLayout, table: Table) -> Iterator[PartName]:
    """All parts of one table, older generations among them; other files are passed over."""
    for info in storage.list(layout.parts_folder(table)):
        if (name := part_of_file(info.uri)) is not None:
            yield name


def list_generations(
    storage: Storage, layout: EditionLayout, compacted: CompactedParts
) -> dict[str, int]:
    """All units that are done -> the newest generation of their part.

    Parts are listed first, and then what is compacted is looked up: one that moves there in the
    meantime is found.
    """
    loose = newest_generations(list_part_names(storage, layout, "images"))
    return merge_generations(loose, compacted.units())


def merge_generations(loose: Mapping[str, int], compacted: CompactedUnits) -> dict[str, int]:
    """Each unit of parts and of compacted files -> its newest generation."""
    generations = dict(compacted.generations)
    for unit, generation in loose.items():
        generations[unit] = max(generation, generations.get(unit, 0))
    return generations


def newest_generations(names: Iterable[PartName]) -> dict[str, int]:
    """Each unit that has a part -> the highest generation of it."""
    generations: dict[str, int] = {}
    for unit, generation in names:
        generations[unit] = max(generation, generations.get(unit, 0))
    return generations


def decode_part(file: BinaryIO, table: Table, uri: str) -> pa.Table:
    """The rows of a part, with the columns of today and the metadata of the file.

    Raises:
        StorageError: It is damaged; names `uri`.
    """
    schema = IMAGES_SCHEMA if table == "images" else INSTANCES_SCHEMA
    try:
        rows = pq.ParquetFile(file, page_checksum_verification=True).read(use_threads=False)
        metadata = rows.schema.metadata
        if stated_version(metadata) == 1:
            rows = add_new_columns(rows, table, schema.names)
        return rows.replace_schema_metadata(None).cast(schema).replace_schema_metadata(metadata)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StorageError(f"{uri} is not a readable part: {error}.") from error


def read_part_metadata(storage: Storage, uri: str) -> Mapping[bytes, bytes]:
    """The Parquet metadata of a part.

    Raises:
        ValueError: It is not a Parquet file.
    """
    with storage.open(uri) as file:
        try:
            return pq.read_metadata(file).metadata or {}
        except (pa.ArrowException, OSError) as error:
            raise ValueError(str(error)) from None
