"""Compacted files: the parts of many units in a few large files, and which units these cover.

A generation of compacted files is a folder. Its ``units.parquet`` names the units whose rows lie in
its files, each with the generation of the part that was copied; ``current.json`` names the
generation that is read. Changing that pointer is the only change that readers see. A unit is done
when it has a part or the current generation covers it; of the two, the higher generation of the
part wins, and where they are equal the compacted rows are read.

No row can be taken out of a file. A unit that is to be read no more is written into a list in the
folder of each generation that may cover it (`withdraw_units`): also of those that are only begun,
so that a compaction that goes on at the same time does not bring it back. The next compaction
leaves its rows out.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import ObjectNotFound, StorageError, UsageError
from segcore.output.documents import read_document
from segcore.output.layout import CompactedLayout, EditionLayout
from segcore.output.part_counts import PartCounts
from segcore.output.schema import SCHEMA_VERSION
from segcore.storage import Storage
from segcore.storage.uris import basename
from segcore.text import parse_json

SortOrder = Literal["image", "category,score"]

_GENERATION = re.compile(r"[0-9]{6}-[0-9a-f]{8}")
_COUNTERS = ("failures", "notes", "warnings")

# The first ten columns are those of a table of unit counts.
COVERED_SCHEMA = pa.schema(
    [
        pa.field("unit", pa.string(), nullable=False),
        pa.field("generation", pa.int32(), nullable=False),  # of the part that was copied
        pa.field("size", pa.int64(), nullable=False),  # bytes of its ``images`` file
        pa.field("etag", pa.string(), nullable=False),
        pa.field("ok", pa.int64(), nullable=False),
        pa.field("failed", pa.int64(), nullable=False),
        pa.field("instances", pa.int64(), nullable=False),
        *(pa.field(name, pa.string()) for name in _COUNTERS),  # JSON; null if there are none
        pa.field("instances_size", pa.int64(), nullable=False),
        pa.field("instances_etag", pa.string(), nullable=False),
        pa.field("run", pa.string(), nullable=False),  # that wrote the part
        pa.field("reader", pa.int32(), nullable=False),  # version of the readers of archives
        pa.field("file", pa.int32(), nullable=False),  # number of the file in both tables
        pa.field("images_row", pa.int64(), nullable=False),  # first row in the file
        pa.field("instances_row", pa.int64(), nullable=False),  # the same, in the order of images
        pa.field("place", pa.string(), nullable=False),  # place of the unit in the order of images
        pa.field("place_number", pa.int64(), nullable=False),
    ]
)
_WITHDRAWN_SCHEMA = pa.schema([pa.field("unit", pa.string(), nullable=False)])


@dataclass(frozen=True)
class CoveredUnit:
    """A unit whose rows lie in compacted files; see `COVERED_SCHEMA` for the fields."""

    counts: PartCounts
    generation: int
    size: int
    etag: str
    instances_size: int
    instances_etag: str
    run: str
    reader: int
    file: int
    images_row: int
    instances_row: int
    place: str
    place_number: int

    @property
    def unit(self) -> str:
        """The id of the unit."""
        return self.counts.unit

    def to_row(self) -> dict[str, object]:
        """The unit as a row of `COVERED_SCHEMA`."""
        counts = self.counts
        counters = {name: getattr(counts, name) for name in _COUNTERS}
        row: dict[str, object] = {
            name: json.dumps(counter, sort_keys=True) if counter else None
            for name, counter in counters.items()
        }
        for name in ("unit", "ok", "failed", "instances"):
            row[name] = getattr(counts, name)
        return {name: row[name] if name in row else getattr(self, name) for name in
                COVERED_SCHEMA.names}  # fmt: skip

    @classmethod
    def from_row(cls, row: Mapping[str, object]) -> CoveredUnit:
        """Inverse of `to_row`."""
        values = dict(row)
        counters = {name: parse_json(str(values.pop(name) or "{}")) for name in _COUNTERS}
        numbers = {name: values.pop(name) for name in ("unit", "ok", "failed", "instances")}
        return cls(counts=PartCounts(**numbers, **counters), **values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class CompactedPointer:
    """What ``current.json`` says.

    Attributes:
        generation: Name of the generation that is read.
        previous: Generations that were read before and are not deleted yet, newest first.
        sort: The order of the rows in its files.
    """

    generation: str
    previous: tuple[str, ...] = ()
    sort: SortOrder = "image"


@dataclass(frozen=True)
class CompactedUnits:
    """The units that a generation covers.

    Attributes:
        layout: Its files; None if there is none.
        table: With `COVERED_SCHEMA`, in the order of the rows in the files.
        withdrawn: Units in `table` that are not to be read any more.
    """

    layout: CompactedLayout | None = None
    sort: SortOrder = "image"
    table: pa.Table = field(default_factory=COVERED_SCHEMA.empty_table, repr=False)
    withdrawn: frozenset[str] = frozenset()

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {unit: row for row, unit in enumerate(self.table["unit"].to_pylist())}

    @cached_property
    def generations(self) -> dict[str, int]:
        """Unit -> generation of its part, of all units that are covered, in file order."""
        columns = (self.table[name].to_pylist() for name in ("unit", "generation"))
        return {
            unit: number
            for unit, number in zip(*columns, strict=True)
            if unit not in self.withdrawn
        }

    def find(self, unit: str, generation: int = 0) -> CoveredUnit | None:
        """A unit that is covered in this generation of its part or a higher one."""
        row = self._rows.get(unit)
        if row is None or unit in self.withdrawn:
            return None
        covered = CoveredUnit.from_row(self.table.slice(row, 1).to_pylist()[0])
        return covered if covered.generation >= generation else None

    def counts(self, units: AbstractSet[str]) -> Iterator[PartCounts]:
        """What is known of these covered units, in file order."""
        names = ("unit", "ok", "failed", "instances", *_COUNTERS)
        for batch in self.table.select(names).to_batches(4096):
            for unit, ok, failed, instances, *texts in zip(
                *(column.to_pylist() for column in batch), strict=True
            ):
                if unit in units:
                    counters = (parse_json(text) if text else {} for text in texts)
                    yield PartCounts(unit, ok, failed, instances, *counters)

    def covers(self, unit: str, generation: int) -> bool:
        """Whether a file of this generation of a part is not needed any more."""
        return self.generations.get(unit, -1) >= generation


NOTHING_COMPACTED = CompactedUnits()


def read_pointer(storage: Storage, layout: EditionLayout) -> CompactedPointer | None:
    """Which generation is current; None if the edition was never compacted.

    Raises:
        StorageError: The pointer is damaged, or cannot be read.
    """
    uri = layout.compacted_pointer
    try:
        document = read_document(storage, uri)
        names = [document["generation"], *document["previous"]]
        sort = document["sort"]
        if not all(isinstance(name, str) and _GENERATION.fullmatch(name) for name in names):
            raise ValueError("it names no generation")
        if sort not in ("image", "category,score"):
            raise ValueError(f"its order {str(sort)[:40]!r} is unknown")
    except ObjectNotFound:
        return None
    except (UsageError, KeyError, TypeError, ValueError) as error:
        folders = [basename(uri) for uri in storage.folders(layout.compacted_folder)]
        raise StorageError(
            f"{uri} does not say which compacted files to read: {str(error)[:200]}.",
            f"Restore it. The folders beside it are {', '.join(folders) or 'none'}.",
        ) from None
    return CompactedPointer(names[0], tuple(names[1:]), sort)


def write_pointer(storage: Storage, layout: EditionLayout, pointer: CompactedPointer) -> None:
    """Let readers take the files of this generation."""
    files = layout.compacted(pointer.generation)
    document = {
        "schema_version": SCHEMA_VERSION,
        "generation": pointer.generation,
        # From the folder of the edition, for tools that read the files themselves.
        "images": files.files_pattern("images").removeprefix(f"{layout.prefix}/"),
        "instances": files.files_pattern("instances").removeprefix(f"{layout.prefix}/"),
        "sort": pointer.sort,
        "previous": list(pointer.previous),
    }
    storage.write(layout.compacted_pointer, (json.dumps(document, indent=2) + "\n").encode())


def is_generation(name: str) -> bool:
    """Whether a folder may be one of a generation of compacted files."""
    return _GENERATION.fullmatch(name) is not None


def generation_folders(storage: Storage, layout: EditionLayout) -> list[CompactedLayout]:
    """All generations that there are, oldest first; begun, current and previous ones."""
    folders = storage.folders(layout.compacted_folder)
    return sorted(
        (CompactedLayout(uri) for uri in folders if is_generation(basename(uri))),
        key=lambda files: files.name,
    )


def encode_covered(units: Iterable[CoveredUnit]) -> bytes:
    """Units as the bytes of ``units.parquet``."""
    return _encode(pa.Table.from_pylist([unit.to_row() for unit in units], COVERED_SCHEMA))


def read_covered(storage: Storage, uri: str) -> pa.Table:
    """Inverse of `encode_covered`.

    Raises:
        ObjectNotFound: There is no such file.
        StorageError: It is damaged.
    """
    return _decode(storage, uri, COVERED_SCHEMA)


def read_compacted_units(
    storage: Storage, layout: EditionLayout, pointer: CompactedPointer | None
) -> CompactedUnits:
    """The units that the current generation covers.

    Raises:
        ObjectNotFound: The generation of `pointer` is gone: another one is current by now.
        StorageError: What it covers cannot be read.
    """
    if pointer is None:
        return NOTHING_COMPACTED
    files = layout.compacted(pointer.generation)
    table = read_covered(storage, files.units)
    return CompactedUnits(files, pointer.sort, table, read_withdrawn(storage, files))


def read_withdrawn(storage: Storage, files: CompactedLayout) -> frozenset[str]:
    """The units that are not to be read in a generation any more.

    Raises:
        StorageError: A list is damaged.
    """
    units: set[str] = set()
    for info in storage.list(files.withdrawn_folder):
        if info.uri.endswith(".parquet"):
            units.update(_decode(storage, info.uri, _WITHDRAWN_SCHEMA)["unit"].to_pylist())
    return frozenset(units)


def withdraw_units(storage: Storage, layout: EditionLayout, units: Collection[str]) -> None:
    """Have these units read from no compacted files any more: neither those of now nor those begun.

    The parts of the units must be gone already. A generation that is begun after this has read the
    marks of the current one, and does not find the parts.
    """
    if not units:
        return
    table = pa.table({"unit": sorted(units)}, _WITHDRAWN_SCHEMA)
    data = _encode(table)
    name = hashlib.sha256("\n".join(table["unit"].to_pylist()).encode()).hexdigest()[:16]
    marked: set[str] = set()
    while True:
        pointer = read_pointer(storage, layout)
        previous = set(pointer.previous) if pointer else set()
        folders = {files.name for files in generation_folders(storage, layout)} - previous
        if not folders - marked:
            return
        for folder in sorted(folders - marked):
            storage.write(layout.compacted(folder).withdrawn(name), data)
        marked |= folders


def covered_units(table: pa.Table) -> Iterator[CoveredUnit]:
    """The rows of a table of `COVERED_SCHEMA`."""
    for batch in table.to_batches(4096):
        yield from map(CoveredUnit.from_row, batch.to_pylist())


def _encode(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _decode(storage: Storage, uri: str, schema: pa.Schema) -> pa.Table:
    try:
        with storage.open(uri) as file:
            table = pq.ParquetFile(file, page_checksum_verification=True).read(schema.names)
        table = table.replace_schema_metadata(None).cast(schema)
        table.validate(full=True)
        return table
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise StorageError(
            f"{uri} is not readable: {reason}.",
            "It says which units compacted files hold. Restore it from a copy.",
        ) from error
