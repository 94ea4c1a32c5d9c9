"""The parts of an edition: the commit of a unit, and what is committed.

A unit's ``images`` part is written last; its existence is the only record that the unit is done.
The same results of the same unit always give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import StorageError
from segcore.output.layout import EditionLayout, Table, unit_of_part
from segcore.output.part_counts import PartCounts
from segcore.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA, SCHEMA_VERSION
from segcore.output.tables import ImageResult, encode_part, images_table, instances_table
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
    """

    storage: Storage
    prefix: str
    edition: str
    run: str
    licence: str
    categories: tuple[tuple[int, str], ...]

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
        self.commit_tables(images_table(unit, results), instances, counts)
        return counts

    def commit_tables(self, images: pa.Table, instances: pa.Table, counts: PartCounts) -> None:
        """Like `commit`, for tables that exist already; `counts` must be theirs."""
        metadata = self._metadata(counts)
        layout = self.layout
        self.storage.write(layout.part("instances", counts.unit), encode_part(instances, metadata))
        self.storage.write(layout.part("images", counts.unit), encode_part(images, metadata))

    def replace(
        self, unit: Unit, results: Sequence[ImageResult], notes: Mapping[str, int] | None = None
    ) -> PartCounts:
        """Write other results of a unit that is committed.

        The ``images`` part is deleted first: if the process dies in between, the unit has to be
        done again, but there are never two tables that contradict each other. Nothing is touched
        when the rows are the same.

        Raises:
            StorageError: Not written; the unit may no longer be committed.
        """
        counts = PartCounts.of_results(unit.unit, results, notes or {})
        images = images_table(unit, results)
        committed_images, _ = self.read_tables(unit.unit)
        if images.equals(committed_images):
            return counts
        self.storage.delete(self.layout.part("images", unit.unit))
        self.commit_tables(images, instances_table(results, dict(self.categories)), counts)
        return counts

    def read_tables(self, unit: str) -> tuple[pa.Table, pa.Table]:
        """The tables `images` and `instances` of a committed unit, without metadata.

        Raises:
            StorageError: A part is missing, damaged, or not one of segcore's.
        """
        images = self._read_table("images", unit, IMAGES_SCHEMA)
        return images, self._read_table("instances", unit, INSTANCES_SCHEMA)

    def committed_units(self) -> set[str]:
        """Ids of all units that are done, by listing."""
        return set(self._units_with_part("images"))

    def read_counts(self, units: Iterable[str]) -> Iterator[PartCounts]:
        """What committed parts say about themselves; reads their footers, many at a time.

        Raises:
            StorageError: A part cannot be read or is not one of segcore's; names it.
        """
        with ThreadPoolExecutor(_REQUEST_THREADS) as pool:
            yield from pool.map(self._read_counts, units)

    def delete_stale(self, valid_units: set[str]) -> int:
        """Delete the parts of all other units; returns how many of these were committed.

        ``images`` parts go first, so that a unit is undone before it is incomplete.
        """
        committed = [unit for unit in self._units_with_part("images") if unit not in valid_units]
        with_instances = [
            unit for unit in self._units_with_part("instances") if unit not in valid_units
        ]
        self._delete_parts("images", committed)
        self._delete_parts("instances", with_instances)
        return len(committed)

    def _delete_parts(self, table: Table, units: Iterable[str]) -> None:
        uris = [self.layout.part(table, unit) for unit in units]
        with ThreadPoolExecutor(_REQUEST_THREADS) as pool:
            list(pool.map(self.storage.delete, uris))

    def _units_with_part(self, table: Table) -> Iterator[str]:
        for info in self.storage.list(self.layout.parts_folder(table)):
            unit = unit_of_part(info.uri)
            if unit is not None:
                yield unit

    def _metadata(self, counts: PartCounts) -> dict[str, str]:
        return {
            "segcore.schema_version": str(SCHEMA_VERSION),
            "segcore.edition": self.edition,
            "segcore.run": self.run,
            "segcore.licence": self.licence,
            **counts.to_metadata(),
        }

    def _read_table(self, table: Table, unit: str, schema: pa.Schema) -> pa.Table:
        uri = self.layout.part(table, unit)
        try:
            with self.storage.open(uri) as file:
                rows = pq.ParquetFile(file, page_checksum_verification=True).read(use_threads=False)
                return rows.replace_schema_metadata(None).cast(schema)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise StorageError(f"{uri} is not a readable part: {error}.") from error

    def _read_counts(self, unit: str) -> PartCounts:
        uri = self.layout.part("images", unit)
        try:
            with self.storage.open(uri) as file:
                return PartCounts.from_metadata(pq.read_metadata(file).metadata)
        except (KeyError, ValueError, pa.ArrowException) as error:
            raise StorageError(
                f"{uri} is not a readable part of this edition: {error}.",
                hint="Delete this object and run the same command again to redo its unit.",
            ) from None
