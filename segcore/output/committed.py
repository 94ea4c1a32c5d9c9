"""Which units are committed, by listing: tables, as there may be hundreds of thousands.

Whoever asks which units are done asks `list_committed`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segcore.output.compacted_rows import CompactedParts
from segcore.output.compaction import NOTHING_COMPACTED, CompactedUnits
from segcore.output.layout import PART_NAME, EditionLayout, PartName
from segcore.output.unit_counts import UNIT_COUNTS_SCHEMA
from segcore.storage import Storage

LISTED_SCHEMA = pa.schema([UNIT_COUNTS_SCHEMA.field(i) for i in range(4)])


@dataclass(frozen=True)
class CommittedParts:
    """The ``images`` parts of an edition.

    Attributes:
        files: All of them, older generations among them, as a table of `LISTED_SCHEMA`: unit,
            generation, size and etag; sorted by unit and generation. Perhaps with a further
            column ``changed``, see `list_committed`.
        compacted: What compacted files cover.
    """

    files: pa.Table
    compacted: CompactedUnits = NOTHING_COMPACTED

    @cached_property
    def newest(self) -> pa.Table:
        """What is to be read: of each unit the highest generation, in compacted files or not.

        Rows for compacted files give the generation, size and etag of the part that was copied, and
        0 as the time of the change.
        """
        newest = self._newest_files
        if not self.read_compacted:
            return newest
        units = pa.array(sorted(self.read_compacted), pa.string())
        loose = newest.filter(pc.invert(pc.is_in(newest["unit"], value_set=units)))
        table = self.compacted.table
        rows = table.filter(pc.is_in(table["unit"], value_set=units)).select(LISTED_SCHEMA.names)
        if "changed" in newest.column_names:
            # A part that still lies beside compacted files tells when the unit was done.
            times = (
                newest["changed"]
                .combine_chunks()
                .take(pc.index_in(rows["unit"], newest["unit"].combine_chunks()).combine_chunks())
            )
            rows = rows.append_column(_CHANGED_FIELD, pc.fill_null(times, 0.0))
        return pa.concat_tables([loose, rows.cast(newest.schema)]).sort_by("unit").combine_chunks()

    @cached_property
    def read_compacted(self) -> frozenset[str]:
        """The units that are read from compacted files."""
        columns = (self._newest_files[name].to_pylist() for name in ("unit", "generation"))
        loose = dict(zip(*columns, strict=True))
        covered = self.compacted.generations
        return frozenset(unit for unit, number in covered.items() if loose.get(unit, 0) <= number)

    @cached_property
    def _newest_files(self) -> pa.Table:
        """The rows of `files` of the highest generation of each unit."""
        units = self.files["unit"].combine_chunks()
        if not len(units):
            return self.files
        is_last = np.ones(len(units), bool)
        is_last[:-1] = pc.not_equal(units[:-1], units[1:]).to_numpy(zero_copy_only=False)
        return self.files if is_last.all() else self.files.filter(pa.array(is_last))

    def rows_of(self, units: pa.ChunkedArray) -> pa.Table:
        """The rows of `newest` that are of these units."""
        return self.newest.filter(pc.is_in(self.newest["unit"], value_set=units))

    def generations(self) -> dict[str, int]:
        """Each committed unit -> the newest generation of its part."""
        columns = (self.newest[name].to_pylist() for name in ("unit", "generation"))
        return dict(zip(*columns, strict=True))

    def names(self) -> list[PartName]:
        """The names of `files`."""
        columns = (self.files[name].to_pylist() for name in ("unit", "generation"))
        return [PartName(*name) for name in zip(*columns, strict=True)]


_CHANGED_FIELD = pa.field("changed", pa.float64(), nullable=False)
_BATCH_ROWS = 10_000
NOTHING_COMMITTED = CommittedParts(LISTED_SCHEMA.empty_table())


def list_committed(
    storage: Storage,
    layout: EditionLayout,
    *,
    with_times: bool = False,
    reader: CompactedParts | None = None,
) -> CommittedParts:
    """The parts that exist now; other files beside them are passed over.

    Parts are listed first, and then what is compacted is looked up: one that moves there in the
    meantime is found.

    Args:
        reader: Of the compacted files; without it, only parts are looked for.
        with_times: With a column ``changed``: when each was written, in seconds since 1970 by the
            clock of the storage.
    """
    folder = layout.parts_folder("images")
    listed: Iterable[pa.Table]
    if with_times:
        listed = _list_with_times(storage, folder)
    else:
        listed = (pa.Table.from_batches([b]) for b in storage.listing(folder).to_batches())
    schema = LISTED_SCHEMA.append(_CHANGED_FIELD) if with_times else LISTED_SCHEMA
    tables = [_parts_of(table, f"{folder}/", schema) for table in listed]
    table = pa.concat_tables([schema.empty_table(), *tables]).combine_chunks()
    generations = table["generation"].to_numpy()
    if generations.any():  # by unit, the listing is sorted already: "-" and "." come before digits
        is_new_unit = np.ones(table.num_rows, bool)
        units = table["unit"].combine_chunks()
        is_new_unit[1:] = pc.not_equal(units[:-1], units[1:]).to_numpy(zero_copy_only=False)
        table = table.take(np.lexsort((generations, np.cumsum(is_new_unit))))
    return CommittedParts(table, reader.units() if reader else NOTHING_COMPACTED)


def _list_with_times(storage: Storage, folder: str) -> Iterator[pa.Table]:
    """One table of a listing with a further column ``changed``, sorted by URI."""
    rows = storage.list_with_times(folder)
    tables = []
    while batch := list(islice(rows, _BATCH_ROWS)):
        columns = {
            "uri": pa.array([info.uri for info, _ in batch], pa.large_string()),
            "size": pa.array([info.size for info, _ in batch], pa.int64()),
            "etag": pa.array([info.etag for info, _ in batch], pa.large_string()),
            "changed": pa.array([changed for _, changed in batch], pa.float64()),
        }
        tables.append(pa.table(columns))
    if tables:
        yield pa.concat_tables(tables).sort_by("uri")


def _parts_of(listed: pa.Table, prefix: str, schema: pa.Schema) -> pa.Table:
    """The rows of a listing that are parts, with what their names say."""
    listed = listed.filter(pc.starts_with(listed["uri"], prefix))
    names = pc.utf8_slice_codeunits(listed["uri"], len(prefix)).cast(pa.string())
    # Named groups are what Arrow wants; the pattern is the one that tells parts everywhere.
    fields = pc.extract_regex(names, f"^{PART_NAME}$").combine_chunks()
    is_part = fields.is_valid()
    fields, listed = fields.filter(is_part), listed.filter(is_part)
    generation = fields.field("generation")
    generation = pc.if_else(pc.equal(generation, ""), "0", generation).cast(pa.int32())
    columns = {"unit": fields.field("unit"), "generation": generation}
    return pa.table(
        {name: columns[name] if name in columns else listed[name] for name in schema.names}
    ).cast(schema)
