"""What can be wrong with compacted files beside the rows of their units."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import ObjectNotFound, StorageError
from segcore.inspection.problems import Problem
from segcore.output.compacted_rows import CompactedParts
from segcore.output.compaction import CompactedUnits, CoveredUnit
from segcore.output.layout import Table
from segcore.output.schema import SCHEMA_VERSION, schema_of
from segcore.storage import Storage
from segcore.text import plural

_TABLES: tuple[Table, Table] = ("images", "instances")


def read_compacted_unit(
    compacted: CompactedParts, unit: CoveredUnit, edition: str
) -> tuple[pa.Table, pa.Table]:
    """The tables of a unit as its part would have them, with the metadata of a part.

    Raises:
        StorageError: They cannot be read.
    """
    metadata = {
        "segcore.schema_version": str(SCHEMA_VERSION),
        "segcore.edition": edition,
        **unit.counts.to_metadata(),
    }
    images, instances = (
        compacted.read(table, unit.unit).replace_schema_metadata(metadata) for table in _TABLES
    )
    return images, instances


def check_compacted_files(
    storage: Storage, units: CompactedUnits, edition: str
) -> Iterator[Problem]:
    """Each file is there, is of this edition, and holds the rows of its units and no others."""
    if units.layout is None:
        return
    expected: dict[tuple[Table, int], list[tuple[int, int]]] = {}  # file -> (first row, rows)
    names = ("file", "images_row", "instances_row", "ok", "failed", "instances")
    for file, images_row, instances_row, ok, failed, instances in zip(
        *(units.table[name].to_pylist() for name in names), strict=True
    ):
        expected.setdefault(("images", file), []).append((images_row, ok + failed))
        expected.setdefault(("instances", file), []).append((instances_row, instances))
    for (table, number), ranges in expected.items():
        uri = units.layout.file(table, number)
        problem = _check_file(storage, uri, table, ranges, edition)
        if problem:
            yield Problem("bad_compaction", uri, problem)
    uris = {units.layout.file(*key) for key in expected}
    for table in _TABLES:
        folder = units.layout.file(table, 0).rpartition("/")[0]
        for info in storage.list(folder):
            if info.uri not in uris:
                yield Problem("alien_file", info.uri, "it is not one of the compacted files.")


def _check_file(
    storage: Storage, uri: str, table: Table, ranges: list[tuple[int, int]], edition: str
) -> str:
    """What is wrong with a file, or ""."""
    n_rows = 0
    for start, length in sorted(ranges):
        if start != n_rows:
            return "the list of its units has a gap, or gives rows to two units."
        n_rows += length
    try:
        with storage.open(uri, 64 << 10) as file:
            footer = pq.ParquetFile(file)
            metadata, schema = footer.metadata, footer.schema_arrow
    except ObjectNotFound:
        return "it does not exist."
    except (pa.ArrowException, OSError, ValueError, StorageError) as error:
        reason = str(error).partition("\n")[0][:200]
        return f"it cannot be read: {reason}"
    if metadata.num_rows != n_rows:
        return f"it has {plural(metadata.num_rows, 'row')}; its units have {n_rows:,}."
    if not schema.remove_metadata().equals(schema_of(table, SCHEMA_VERSION)):
        return f"its columns are not those of `{table}`."
    stated = (metadata.metadata or {}).get(b"segcore.edition", b"").decode("utf-8", "replace")
    return "" if stated == edition else f"its metadata says edition {stated!r}, not {edition!r}."
