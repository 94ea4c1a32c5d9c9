"""Which units are committed, by listing: tables, as there may be hundreds of thousands.

Whoever asks which units are done asks `list_committed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segcore.output.layout import PART_NAME, EditionLayout, PartName
from segcore.output.unit_counts import UNIT_COUNTS_SCHEMA
from segcore.storage import Storage

LISTED_SCHEMA = pa.schema([UNIT_COUNTS_SCHEMA.field(i) for i in range(4)])


@dataclass(frozen=True)
class CommittedParts:
    """The ``images`` parts of an edition.

    Attributes:
        files: All of them, older generations among them, as a table of `LISTED_SCHEMA`: unit,
            generation, size and etag; sorted by unit and generation.
    """

    files: pa.Table

    @cached_property
    def newest(self) -> pa.Table:
        """The rows of `files` that are to be read: the highest generation of each unit."""
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


NOTHING_COMMITTED = CommittedParts(LISTED_SCHEMA.empty_table())


def list_committed(storage: Storage, layout: EditionLayout) -> CommittedParts:
    """The parts that exist now; other files beside them are passed over."""
    folder = layout.parts_folder("images")
    tables = [LISTED_SCHEMA.empty_table()]
    for batch in storage.listing(folder).to_batches():
        tables.append(_parts_of(pa.Table.from_batches([batch]), f"{folder}/"))
    table = pa.concat_tables(tables).combine_chunks()
    generations = table["generation"].to_numpy()
    if generations.any():  # by unit, the listing is sorted already: "-" and "." come before digits
        is_new_unit = np.ones(table.num_rows, bool)
        units = table["unit"].combine_chunks()
        is_new_unit[1:] = pc.not_equal(units[:-1], units[1:]).to_numpy(zero_copy_only=False)
        table = table.take(np.lexsort((generations, np.cumsum(is_new_unit))))
    return CommittedParts(table)


def _parts_of(listed: pa.Table, prefix: str) -> pa.Table:
    """The rows of a listing that are parts, with what their names say."""
    listed = listed.filter(pc.starts_with(listed["uri"], prefix))
    names = pc.utf8_slice_codeunits(listed["uri"], len(prefix)).cast(pa.string())
    # Named groups are what Arrow wants; the pattern is the one that tells parts everywhere.
    fields = pc.extract_regex(names, f"^{PART_NAME}$").combine_chunks()
    is_part = fields.is_valid()
    fields, listed = fields.filter(is_part), listed.filter(is_part)
    generation = fields.field("generation")
    generation = pc.if_else(pc.equal(generation, ""), "0", generation).cast(pa.int32())
    arrays = [fields.field("unit"), generation, listed["size"], listed["etag"].cast(pa.string())]
    return pa.Table.from_arrays(arrays, schema=LISTED_SCHEMA)
