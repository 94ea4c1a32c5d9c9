"""Rows of single units, read from compacted files."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segcore.errors import ObjectNotFound, StorageError
from segcore.output.compaction import (
    NOTHING_COMPACTED,
    CompactedPointer,
    CompactedUnits,
    CoveredUnit,
    read_compacted_units,
    read_pointer,
    read_withdrawn,
)
from segcore.output.layout import EditionLayout, Table
from segcore.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
from segcore.storage import Storage

_MAX_ROW_GROUPS_KEPT = 4  # decoded, of some 10 MB each
_MAX_FOOTERS_KEPT = 256
_MAX_ATTEMPTS = 3
_SCHEMAS: Mapping[Table, pa.Schema] = {"images": IMAGES_SCHEMA, "instances": INSTANCES_SCHEMA}
_Value = TypeVar("_Value")


class CompactedParts:
    """The current compacted files of an edition, as if each unit had parts of its own.

    What is covered is read when it is first needed, and again when `units` is asked for it. Rows of
    neighbouring units come from the same decoded row group. May be used from many threads, and
    pickled: then it is read anew.
    """

    def __init__(self, storage: Storage, layout: EditionLayout) -> None:
        self.storage = storage
        self.layout = layout
        self._lock = threading.RLock()
        self._pointer: CompactedPointer | None = None
        self._units: CompactedUnits | None = None
        self._footers: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._groups: OrderedDict[Hashable, pa.Table] = OrderedDict()
        self._sorted_file: OrderedDict[Hashable, pa.Table] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"storage": self.storage, "layout": self.layout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def units(self, *, refresh: bool = True) -> CompactedUnits:
        """What is covered, as storage has it now; or as it was seen last.

        Raises:
            StorageError: It cannot be read.
        """
        with self._lock:
            if self._units is not None and not refresh:
                return self._units
            for attempt in range(1, _MAX_ATTEMPTS + 1):
                pointer = read_pointer(self.storage, self.layout)
                try:
                    self._units = self._read_units(pointer)
                    self._pointer = pointer
                    return self._units
                except ObjectNotFound:  # another generation became current in this moment
                    if attempt == _MAX_ATTEMPTS:
                        raise
            raise AssertionError("unreachable")

    def _read_units(self, pointer: CompactedPointer | None) -> CompactedUnits:
        if pointer is None:
            return NOTHING_COMPACTED
        seen = self._units
        if seen is None or seen.layout is None or pointer != self._pointer:
            return read_compacted_units(self.storage, self.layout, pointer)
        withdrawn = read_withdrawn(self.storage, seen.layout)
        if withdrawn == seen.withdrawn:
            return seen
        return CompactedUnits(seen.layout, seen.sort, seen.table, withdrawn)

    def find(self, unit: str, generation: int = 0, *, refresh: bool = False) -> CoveredUnit | None:
        """A unit that is covered in this generation of its part or a higher one."""
        return self.units(refresh=refresh).find(unit, generation)

    def uri(self, table: Table, unit: CoveredUnit) -> str:
        """The file that holds the rows of a unit that was found."""
        files = self.units(refresh=False).layout
        assert files is not None, "a unit was found"
        return files.file(table, unit.file)

    def read(self, table: Table, unit: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a covered unit, without metadata, as its part has them.

        Raises:
            ObjectNotFound: It is not covered.
            StorageError: Its file cannot be read.
        """
        names = tuple(columns or _SCHEMAS[table].names)
        for refresh in (False, True):
            covered = self.find(unit, refresh=refresh)
            if covered is None:
                continue
            try:
                return self.read_found(table, covered, names)
            except ObjectNotFound:  # an older generation, deleted since it was looked up
                if refresh:
                    raise
        raise ObjectNotFound(f"{self.layout.compacted_folder} does not cover the unit {unit}.")

    def read_found(
        self, table: Table, unit: CoveredUnit, columns: tuple[str, ...] | None = None
    ) -> pa.Table:
        """Like `read`, of a unit that was found in the generation that was seen last."""
        columns = columns or tuple(_SCHEMAS[table].names)
        uri = self.uri(table, unit)
        is_images = table == "images"
        start = unit.images_row if is_images else unit.instances_row
        length = unit.counts.images if is_images else unit.counts.instances
        with self._lock:
            is_sorted = not is_images and self.units(refresh=False).sort != "image"
            if is_sorted:
                rows = self._read_sorted_file(unit, columns)
            else:
                offsets = self._row_offsets(uri)
                first = max(int(np.searchsorted(offsets, start, "right")) - 1, 0)
                last = max(int(np.searchsorted(offsets, start + length, "left")), first + 1)
                groups = range(first, min(last, len(offsets) - 1))
                rows = self._read_groups(uri, groups, columns)
                start -= int(offsets[first])
        part = rows.slice(start, length)
        if part.num_rows != length:
            raise StorageError(f"{uri} is damaged: it ends before the rows of unit {unit.unit}.")
        return part

    def _row_offsets(self, uri: str) -> np.ndarray:
        """First row of each row group, and the number of all rows."""

        def read() -> np.ndarray:
            with self.storage.open(uri, 64 << 10) as file:
                metadata = _translated(uri, lambda: pq.read_metadata(file))
            sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

        return _cached(self._footers, uri, _MAX_FOOTERS_KEPT, read)

    def _read_groups(self, uri: str, groups: range, columns: tuple[str, ...]) -> pa.Table:
        def read() -> pa.Table:
            with self.storage.open(uri) as file:
                return _translated(
                    uri,
                    lambda: (
                        pq.ParquetFile(file, page_checksum_verification=True)
                        .read_row_groups(list(groups), list(columns), use_threads=False)
                        .select(list(columns))
                        .replace_schema_metadata(None)
                    ),
                )

        key = (uri, groups.start, groups.stop, columns)
        return _cached(self._groups, key, _MAX_ROW_GROUPS_KEPT, read)

    def _read_sorted_file(self, unit: CoveredUnit, columns: tuple[str, ...]) -> pa.Table:
        """The instances of a whole file, put back into the order of its images."""
        images_uri, uri = self.uri("images", unit), self.uri("instances", unit)

        def read() -> pa.Table:
            n_groups = len(self._row_offsets(images_uri)) - 1
            ids = self._read_groups(images_uri, range(n_groups), ("image_id",))["image_id"]
            names = tuple(dict.fromkeys((*columns, "image_id", "instance_index")))
            n_groups = len(self._row_offsets(uri)) - 1
            with self.storage.open(uri) as file:
                rows = _translated(
                    uri,
                    lambda: pq.ParquetFile(file, page_checksum_verification=True).read(list(names)),
                )
            places = pc.index_in(rows["image_id"], ids.combine_chunks())
            if places.null_count:
                raise StorageError(f"{uri} is damaged: it holds masks of images without a row.")
            order = np.lexsort([rows["instance_index"].to_numpy(), places.to_numpy()])
            return rows.take(pa.array(order)).select(list(columns)).replace_schema_metadata(None)

        return _cached(self._sorted_file, (uri, columns), 1, read)


def _cached(
    cache: OrderedDict[Hashable, _Value], key: Hashable, size: int, make: Callable[[], _Value]
) -> _Value:
    """The value of a key, made when it is not there; the least recently used ones go."""
    if key in cache:
        cache.move_to_end(key)
    else:
        value = make()
        cache[key] = value
        while len(cache) > size:
            cache.popitem(last=False)
    return cache[key]


def _translated(uri: str, action: Callable[[], _Value]) -> _Value:
    """What reading gives; damage is an error that names the file."""
    try:
        return action()
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise StorageError(f"{uri} is not readable: {reason}.") from error
