"""The images of an edition with their masks, unit by unit in the order of its plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segcore.errors import ImageError, ObjectNotFound
from segcore.exports.names import archive_path
from segcore.output.results import Results
from segcore.output.run_records import read_plan
from segcore.planning.plan import Plan
from segcore.sources import file_image_id, read_unit, reading_options
from segcore.visualize.originals import recorded_decoding
from segcore.worker.pages import image_bytes, split_pages

_IMAGE_COLUMNS = ("image_id", "etag", "shard", "width", "height", "status", "page")
_INSTANCE_COLUMNS = (
    "image_id", "category_id", "score", "bbox_x", "bbox_y", "bbox_w", "bbox_h", "area", "height",
    "width", "counts", "window_x", "window_y",
)  # fmt: skip


class ArchivedImage(NamedTuple):
    """A row of `images`, and where the image is in the archive; see `archive_path`."""

    image_id: str
    etag: str
    shard: str
    width: int | None
    height: int | None
    is_ok: bool
    page: int | None
    path: str


@dataclass(frozen=True)
class MaskColumns:
    """The masks of one unit, in the order of `instances`.

    Attributes:
        image_ids: (N,) dictionary codes into `ids`.
        boxes: (N, 4) float32.
        canvases: (N, 4) int32: width, height, window_x, window_y.
    """

    ids: Sequence[str]
    image_codes: np.ndarray
    category_ids: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    canvases: np.ndarray
    counts: pa.Array


class Archive:
    """Results and the archive that they are of.

    Attributes:
        unit_ids: All units to read, in the order of the plan.
        decoding: How the job read and decoded the images.
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        self.decoding = recorded_decoding(results)
        self._plan = _plan_of(results)
        known = set(results.units)
        planned = self._plan.units.ids() if self._plan else []
        listed = [unit for unit in planned if unit in known]
        self.unit_ids = [*listed, *sorted(known.difference(listed))]
        self._rows = {unit: row for row, unit in enumerate(planned)}

    @property
    def input(self) -> str:
        """URI of the archive; "" if the plan is gone."""
        return self._plan.input if self._plan else ""

    @property
    def first_shard(self) -> str:
        """URI of a tar or Parquet file that holds images; "" if all are files of their own."""
        if self._plan is None:
            return ""
        shards = self._plan.units.table["shard"]
        place = pc.index(pc.not_equal(shards, ""), True).as_py()
        return "" if place < 0 else str(shards[place].as_py())

    def images(self, unit: str) -> list[ArchivedImage]:
        """The images of a unit, in order."""
        table = self.results.read_rows("images", unit, _IMAGE_COLUMNS)
        records = []
        for values in zip(*(table[name].to_pylist() for name in _IMAGE_COLUMNS), strict=True):
            image_id, etag, shard, width, height, status, page = values
            path = archive_path(image_id, shard, page, self.input)
            is_ok = status == "ok"
            records.append(ArchivedImage(image_id, etag, shard, width, height, is_ok, page, path))
        return records

    def masks(self, unit: str) -> MaskColumns:
        """All masks of a unit."""
        table = self.results.read_rows("instances", unit, _INSTANCE_COLUMNS).combine_chunks()
        ids = table["image_id"].combine_chunks().dictionary_encode()
        if isinstance(ids, pa.ChunkedArray):
            ids = ids.combine_chunks()

        def stack(*names: str) -> np.ndarray:
            return np.stack([table[name].to_numpy() for name in names], axis=1)

        return MaskColumns(
            ids=ids.dictionary.to_pylist(),
            image_codes=ids.indices.to_numpy(),
            category_ids=table["category_id"].to_numpy(),
            scores=table["score"].to_numpy(),
            boxes=stack("bbox_x", "bbox_y", "bbox_w", "bbox_h"),
            areas=table["area"].to_numpy(),
            canvases=stack("width", "height", "window_x", "window_y"),
            counts=table["counts"].combine_chunks(),
        )

    def pictures(
        self, unit: str, records: Sequence[ArchivedImage]
    ) -> Iterator[tuple[ArchivedImage, bytes | ImageError]]:
        """The encoded bytes of these images, as the job read them, in the order of the archive.

        Those that are not found any more are left out.

        Raises:
            StorageError: The archive cannot be read now, or a shard has changed.
        """
        if self._plan is None or unit not in self._rows:
            return
        places = {(file_image_id(r.image_id, r.page), r.page or 1): r for r in records}
        wanted_files = {place[0] for place in places}
        planned = self._plan.units[self._rows[unit]]
        skipped = {m.image_id for m in planned.members if m.image_id not in wanted_files}
        options = reading_options(planned, self.decoding.max_bytes)
        exclude = skipped if planned.kind == "objects" else ()
        samples = read_unit(planned, self.results.storage, options, exclude=exclude)
        for sample in split_pages(samples, self.decoding):
            place = (file_image_id(sample.image_id, sample.page), sample.page or 1)
            record = places.pop(place, None)
            if record is None:
                continue
            try:
                yield record, image_bytes(sample)
            except ImageError as error:
                yield record, error
            if not places:
                return


def _plan_of(results: Results) -> Plan | None:
    if not results.run:
        return None
    try:
        return read_plan(results.storage, results.layout, results.run)
    except ObjectNotFound:
        return None
