"""The files that hold the rows of an edition, and no others.

Parts are registered as they are: a part holds either listed images alone or unlisted ones alone.
So are compacted files; where one of them holds rows that are not to be read any more, the others
are copied into a file of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

import pyarrow.parquet as pq

from segcore.errors import UsageError
from segcore.output.compacted_rows import CompactedParts
from segcore.output.documents import read_document
from segcore.output.layout import EditionLayout, Table
from segcore.output.parts import list_generations
from segcore.output.run_records import RunRecord, read_planned_ids
from segcore.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA, SCHEMA_VERSION
from segcore.storage import Storage
from segcore.storage.uris import is_remote, scheme_of

TABLES: tuple[Table, Table] = ("instances", "images")  # published in this order
SCHEMAS = {"images": IMAGES_SCHEMA, "instances": INSTANCES_SCHEMA}


@dataclass(frozen=True)
class TableFiles:
    """The rows of one table of an edition.

    Attributes:
        uris: Sorted.
        n_rows: Of all of them together, by the record of the run.
    """

    uris: tuple[str, ...]
    n_rows: int

    @property
    def digest(self) -> str:
        """Names this set of files."""
        return hashlib.sha256("\n".join(self.uris).encode()).hexdigest()[:32]


def list_table_files(
    storage: Storage, layout: EditionLayout, record: RunRecord
) -> dict[Table, TableFiles]:
    """The files of both tables that hold what a complete run planned.

    Raises:
        UsageError: The edition has an older schema, or lies where no table format can refer to it.
        StorageError: Its parts cannot be listed.
    """
    if is_remote(layout.prefix) and scheme_of(layout.prefix) != "s3":
        raise UsageError(
            f"Files of {layout.prefix} cannot be registered: tables are published of outputs on "
            "S3 or on a shared disk."
        )
    version = read_document(storage, layout.edition_json).get("schema_version")
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"{layout.prefix} has the tables of schema {version}; tables take schema "
            f"{SCHEMA_VERSION}.",
            "Segment it with this version of segcore into a new output.",
        )
    reader = CompactedParts(storage, layout)
    generations = list_generations(storage, layout, reader)
    planned = read_planned_ids(storage, layout, record.run)
    covers = reader.units(refresh=False).covers
    compacted = {unit for unit in planned if covers(unit, generations[unit])}
    loose = sorted(planned - compacted)
    values = record.values
    n_rows = {"images": values["ok"] + values["failed"], "instances": values["instances"]}
    files: dict[Table, TableFiles] = {}
    for table in TABLES:
        parts = (layout.part(table, unit, generations[unit]) for unit in loose)
        others = _compacted_files(storage, layout, reader, compacted, table)
        files[table] = TableFiles(tuple(sorted([*parts, *others])), int(n_rows[table]))
    return files


def _compacted_files(
    storage: Storage,
    layout: EditionLayout,
    reader: CompactedParts,
    wanted: set[str],
    table: Table,
) -> list[str]:
    """The compacted files of these units; copies of those that hold others, too."""
    if not wanted:
        return []
    covered = reader.units(refresh=False)
    assert covered.layout is not None, "it covers a unit"
    units_of_file: dict[int, list[str]] = {}
    columns = (covered.table[name].to_pylist() for name in ("unit", "file"))
    for unit, number in zip(*columns, strict=True):
        units_of_file.setdefault(number, []).append(unit)
    uris = []
    for number, units in units_of_file.items():
        kept = [unit for unit in units if unit in wanted]
        if len(kept) == len(units):
            uris.append(covered.layout.file(table, number))
        elif kept:
            name = "\n".join([covered.layout.name, str(number), *kept])
            copy = layout.table_copy(table, hashlib.sha256(name.encode()).hexdigest()[:16])
            if not storage.exists(copy):
                storage.write_with(copy, partial(_copy_rows, reader, table, kept))
            uris.append(copy)
    return uris


def _copy_rows(reader: CompactedParts, table: Table, units: Sequence[str], file: BinaryIO) -> None:
    schema = SCHEMAS[table]
    with pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:
        for unit in units:
            writer.write_table(reader.read(table, unit).cast(schema))
