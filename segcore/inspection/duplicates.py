"""Images with several rows, found with 8 bytes of memory for each image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow.parquet as pq

from segcore.inspection.part_listings import PartListing
from segcore.inspection.problems import Problem
from segcore.output.layout import EditionLayout
from segcore.storage import Storage

_UNITS_PER_ARRAY = 4096


class ImageIdHashes:
    """Hashes of the image ids of units; see `segcore.inspection.unit_checks.hash_names`."""

    def __init__(self) -> None:
        self._units: list[str] = []
        self._lengths: list[int] = []
        self._arrays: list[np.ndarray] = []  # of many units each, and
        self._recent: list[np.ndarray] = []  # of the units since

    def add(self, unit: str, hashes: np.ndarray) -> None:
        """Add a unit.

        Args:
            hashes: (N,) uint64 of its image ids, in the order of its rows.
        """
        self._units.append(unit)
        self._lengths.append(hashes.size)
        self._recent.append(hashes)
        if len(self._recent) == _UNITS_PER_ARRAY:
            self._arrays.append(np.concatenate(self._recent))
            self._recent = []

    def repeated_rows(self) -> Iterator[tuple[str, list[int]]]:
        """Units and those of their rows whose hash occurs more than once."""
        arrays = [*self._arrays, *self._recent]
        if not arrays:
            return
        in_order = np.sort(np.concatenate(arrays))
        repeated = np.unique(in_order[1:][in_order[1:] == in_order[:-1]])
        del in_order
        if not repeated.size:
            return
        is_repeated = np.concatenate([np.isin(array, repeated) for array in arrays])
        start = 0
        for unit, length in zip(self._units, self._lengths, strict=True):
            rows = np.flatnonzero(is_repeated[start : start + length]).tolist()
            start += length
            if rows:
                yield unit, rows


def find_duplicates(
    storage: Storage,
    layout: EditionLayout,
    parts: PartListing,
    hashes: ImageIdHashes,
    from_list: Mapping[str, Sequence[str]],
) -> Iterator[Problem]:
    """Images with several rows: equal hashes first, then the ids themselves decide.

    Args:
        from_list: Units whose ids are those of the list of unlisted images.
    """
    first_uris: dict[str, str] = {}  # image id -> the part that has its first row
    for unit, rows in hashes.repeated_rows():
        if unit not in parts.generations:
            continue  # a problem of its own
        uri = parts.uri(layout, "images", unit)
        ids = from_list.get(unit) or _read_ids(storage, parts, unit, uri)
        for image_id in (ids[row] for row in rows):
            if image_id in first_uris:
                first = first_uris[image_id]
                message = f"it also has a row in {'this part' if first == uri else first}."
                yield Problem("duplicate_image", uri, message, image_id)
            first_uris.setdefault(image_id, uri)


def _read_ids(storage: Storage, parts: PartListing, unit: str, uri: str) -> list[str]:
    if parts.reader is not None and parts.find_compacted(unit) is not None:
        return list(parts.reader.read("images", unit, ["image_id"])["image_id"].to_pylist())
    with storage.open(uri) as file:
        ids: list[str] = pq.read_table(file, columns=["image_id"])["image_id"].to_pylist()
    return ids
