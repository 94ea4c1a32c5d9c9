"""The instances of an edition, found by the ids of the images of another one."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from segcore.comparison.instances import COLUMNS, ImageInstances
from segcore.errors import StorageError, UsageError
from segcore.output.image_rows import UnitRows, read_unit_rows
from segcore.output.results import Results

IMAGE_COLUMNS = ("image_id", "etag", "width", "height", "status", "n_instances")
_MAX_UNITS_KEPT = 8


@dataclass(frozen=True)
class OtherImages:
    """What one side has of K images of the other.

    Attributes:
        is_there: (K,) bool; where it is False, the rest means nothing.
        is_failed: (K,) bool.
        sizes: (K, 2) int64 height and width; -1 where they are not known.
        is_other_version: (K,) bool: the file is another version than on the other side.
        instances: Of the images; none for those that are not there.
    """

    is_there: np.ndarray
    is_failed: np.ndarray
    sizes: np.ndarray
    is_other_version: np.ndarray
    instances: ImageInstances


class EditionImages:
    """Finds the images of an edition by their ids. May be used from many threads.

    Units that both editions have are read as such, without an index. The ids of all other images
    are kept in memory.

    Args:
        results: The edition in which to look.
        others: The units of the edition whose images are looked up.
        roots: The inputs of both; where they differ, ids are compared without them, too.

    Attributes:
        damaged: Sentences about units that cannot be read, so that their images are not found.
    """

    def __init__(self, results: Results, others: Sequence[str], roots: tuple[str, str]) -> None:
        self._results = results
        self._own_root, self._other_root = roots
        self._units = frozenset(results.units)
        shared = self._units & frozenset(others)
        self._places: dict[str, tuple[str, int]] = {}
        self._ids: dict[str, str] = {}  # without the root -> as they are
        self._kept: OrderedDict[str, UnitRows] = OrderedDict()
        self._lock = threading.Lock()
        self._found: set[str] = set()
        self.damaged: list[str] = []
        for unit in results.units:
            if unit not in shared:
                try:
                    self._index(unit, results.read_rows("images", unit, ["image_id"]))
                except (StorageError, UsageError) as error:
                    self.damaged.append(f"{unit}: {error.message}")

    def _index(self, unit: str, images: pa.Table) -> None:
        for row, image_id in enumerate(images["image_id"].to_pylist()):
            self._places[image_id] = unit, row
            if self._own_root != self._other_root:
                self._ids[image_id.removeprefix(self._own_root)] = image_id

    def never_found(self) -> Iterator[str]:
        """The ids of images that nobody has asked for, of units that only this edition has."""
        return (image_id for image_id in self._places if image_id not in self._found)

    def find(self, unit: str, images: pa.Table) -> OtherImages:
        """The images of a unit of the other edition.

        Raises:
            SegcoreError: A part cannot be read.
        """
        ids = images["image_id"].to_pylist()
        if unit in self._units:
            rows = self._read(unit)
            if rows.images["image_id"].to_pylist() == ids:
                return self._gather(images, [rows], np.arange(len(ids)))
            with self._lock:  # as where one edition has all pages of files
                self._index(unit, rows.images)
        places = [self._place(image_id) for image_id in ids]
        needed = sorted({place[0] for place in places if place})
        units = [self._read_kept(one) for one in needed]
        bases = np.cumsum([0, *(one.images.num_rows for one in units)])
        base_of = dict(zip(needed, bases.tolist(), strict=False))
        order = [base_of[place[0]] + place[1] if place else -1 for place in places]
        return self._gather(images, units, np.array(order, np.int64))

    def _place(self, image_id: str) -> tuple[str, int] | None:
        own_id = image_id
        if own_id not in self._places:
            own_id = self._ids.get(image_id.removeprefix(self._other_root), image_id)
        place = self._places.get(own_id)
        if place is not None:
            with self._lock:
                self._found.add(own_id)
        return place

    def _read(self, unit: str) -> UnitRows:
        return read_unit_rows(self._results, unit, IMAGE_COLUMNS, COLUMNS)

    def _read_kept(self, unit: str) -> UnitRows:
        with self._lock:
            rows = self._kept.get(unit)
        rows = rows or self._read(unit)
        with self._lock:
            self._kept[unit] = rows
            self._kept.move_to_end(unit)
            while len(self._kept) > _MAX_UNITS_KEPT:
                self._kept.popitem(last=False)
        return rows

    def _gather(self, images: pa.Table, units: list[UnitRows], order: np.ndarray) -> OtherImages:
        """The rows of some units in this order; -1 for an image that is not there."""
        is_there = order >= 0
        own = pa.concat_tables([unit.images for unit in units]) if units else images.slice(0, 0)
        taken = own.take(pa.array(order[is_there]))
        failed = np.zeros(len(order), bool)
        failed[is_there] = [status != "ok" for status in taken["status"].to_pylist()]
        sizes = np.full((len(order), 2), -1, np.int64)
        for axis, name in enumerate(("height", "width")):
            sizes[is_there, axis] = taken[name].fill_null(-1).to_numpy()
        is_other = np.zeros(len(order), bool)
        if self._own_root == self._other_root:  # copies have etags of their own
            etags = images["etag"].filter(is_there).to_pylist(), taken["etag"].to_pylist()
            is_other[is_there] = [bool(a and b and a != b) for a, b in zip(*etags, strict=True)]
        return OtherImages(is_there, failed, sizes, is_other, _gather_instances(units, order))


def _gather_instances(units: list[UnitRows], order: np.ndarray) -> ImageInstances:
    if not units:
        return ImageInstances.of_lists([0] * len(order), [], [], [], [])
    starts = np.zeros(len(order), np.int64)
    lengths = np.zeros(len(order), np.int64)
    bases = np.cumsum([0, *(unit.instances.num_rows for unit in units)])
    firsts = np.concatenate([u.offsets[:-1] + base for u, base in zip(units, bases, strict=False)])
    counts = np.concatenate([np.diff(unit.offsets) for unit in units])
    is_there = order >= 0
    starts[is_there], lengths[is_there] = firsts[order[is_there]], counts[order[is_there]]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    instances = pa.concat_tables([unit.instances for unit in units])
    if len(rows) != instances.num_rows or (np.diff(rows) != 1).any():
        instances = instances.take(pa.array(rows))
    return ImageInstances.of_table(instances, offsets)
