"""The result tables: their schemas, the commit of one unit, and the count at the end.

A unit's ``images`` part is written last; its existence is the only record that the unit is done.
The same results of the same unit always give the same bytes.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import ErrorCode, ImageError, StorageError
from segcore.instances import Instances
from segcore.sources.units import Unit
from segcore.storage import Storage, join

SCHEMA_VERSION = 1

IMAGES_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),  # "" for loose images
        pa.field("unit", pa.string(), nullable=False),
        pa.field("width", pa.int32()),  # after EXIF orientation; null when never decoded
        pa.field("height", pa.int32()),
        pa.field("status", pa.string(), nullable=False),  # ok | failed
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("n_instances", pa.int32(), nullable=False),
    ]
)

INSTANCES_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("instance_index", pa.int32(), nullable=False),  # from 0, by falling score
        pa.field("category_id", pa.int32(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("bbox_x", pa.float32(), nullable=False),  # pixels of the original image
        pa.field("bbox_y", pa.float32(), nullable=False),
        pa.field("bbox_w", pa.float32(), nullable=False),
        pa.field("bbox_h", pa.float32(), nullable=False),
        pa.field("area", pa.int64(), nullable=False),  # set pixels of the mask
        pa.field("height", pa.int32(), nullable=False),  # canvas of the mask
        pa.field("width", pa.int32(), nullable=False),
        pa.field("counts", pa.string(), nullable=False),  # COCO compressed RLE
    ]
)

_NAME = re.compile(r"([0-9a-f]{8,64})\.parquet")
_READERS = 16


@dataclass(frozen=True)
class ImageResult:
    """What became of one image: instances or an error, never both.

    Attributes:
        width, height: Pixels after EXIF orientation; None when the image was never decoded.
    """

    image_id: str
    uri: str
    etag: str
    width: int | None = None
    height: int | None = None
    instances: Instances | None = None
    error: ImageError | None = None


@dataclass(frozen=True)
class PartCounts:
    """What a part says about itself in its Parquet metadata.

    Attributes:
        failures: Failed images by error code.
        notes: What reading noticed, such as ``duplicate_names`` (renamed) in a tar.
    """

    unit: str
    ok: int
    failed: int
    instances: int
    failures: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """Rows of the ``images`` part."""
        return self.ok + self.failed


@dataclass(frozen=True)
class Parts:
    """The parts of one edition. Holds no connection; travels to actors.

    Attributes:
        prefix: ``<output>/<edition>``.
        run: Id of the plan that is written; deterministic, so that parts are too.
        categories: (id, name) of each class.
    """

    storage: Storage
    prefix: str
    edition: str
    run: str
    licence: str
    categories: tuple[tuple[int, str], ...]

    def commit(
        self, unit: Unit, results: Sequence[ImageResult], notes: Mapping[str, int] | None = None
    ) -> PartCounts:
        """Write a unit's two parts, ``images`` last. Doing it twice changes nothing.

        Raises:
            StorageError: Not written; the unit is not done.
        """
        counts = count_results(unit.unit, results, notes or {})
        instances = instances_table(results, dict(self.categories))
        self.commit_tables(images_table(unit, results), instances, counts)
        return counts

    def replace(
        self, unit: Unit, results: Sequence[ImageResult], notes: Mapping[str, int] | None = None
    ) -> PartCounts:
        """Write other results of a unit that is committed.

        The unit is undone first: dying in between leaves work to do, never two tables that
        contradict each other. Nothing is touched when the rows are the same.

        Raises:
            StorageError: Not written; the unit may be undone.
        """
        counts = count_results(unit.unit, results, notes or {})
        images = images_table(unit, results)
        if images.equals(self.read(unit.unit)[0]):
            return counts
        self.storage.delete(self.uri("images", unit.unit))
        self.commit_tables(images, instances_table(results, dict(self.categories)), counts)
        return counts

    def read(self, unit: str) -> tuple[pa.Table, pa.Table]:
        """The tables `images` and `instances` of a committed unit, without metadata.

        Raises:
            StorageError: A part is missing, damaged, or none of ours.
        """

        def read(table: str, schema: pa.Schema) -> pa.Table:
            uri = self.uri(table, unit)
            try:
                with self.storage.open(uri) as file:
                    found = pq.ParquetFile(file, page_checksum_verification=True)
                    return found.read(use_threads=False).replace_schema_metadata(None).cast(schema)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise StorageError(f"{uri} is not a readable part: {error}.") from error

        return read("images", IMAGES_SCHEMA), read("instances", INSTANCES_SCHEMA)

    def commit_tables(self, images: pa.Table, instances: pa.Table, counts: PartCounts) -> None:
        """The same with the tables made already; `counts` must be theirs."""
        metadata = self._metadata(counts)
        self.storage.write(self.uri("instances", counts.unit), encode_part(instances, metadata))
        self.storage.write(self.uri("images", counts.unit), encode_part(images, metadata))

    def committed(self) -> set[str]:
        """Ids of all units that are done, by listing."""
        return set(self._listed("images"))

    def counts(self, units: Iterable[str]) -> Iterator[PartCounts]:
        """What committed parts say about themselves; reads their footers, many at a time.

        Raises:
            StorageError: A part cannot be read or is none of ours; names it.
        """
        with ThreadPoolExecutor(_READERS) as pool:
            yield from pool.map(self._read_counts, units)

    def delete_stale(self, keep: set[str]) -> int:
        """Delete all parts of units that are not in `keep`; returns how many were committed.

        ``images`` go first, so that a unit is undone before it is incomplete.
        """
        stale = [unit for unit in self._listed("images") if unit not in keep]
        orphans = [unit for unit in self._listed("instances") if unit not in keep]
        for table, units in (("images", stale), ("instances", orphans)):
            with ThreadPoolExecutor(_READERS) as pool:
                list(pool.map(self.storage.delete, [self.uri(table, unit) for unit in units]))
        return len(stale)

    def uri(self, table: str, unit: str) -> str:
        """Where the part of a unit lies; `table` is ``images`` or ``instances``."""
        return join(self.prefix, table, f"{unit}.parquet")

    def _listed(self, table: str) -> Iterator[str]:
        for info in self.storage.list(join(self.prefix, table)):
            unit = unit_of_part(info.uri)
            if unit is not None:
                yield unit

    def _metadata(self, counts: PartCounts) -> dict[str, str]:
        return {
            "segcore.schema_version": str(SCHEMA_VERSION),
            "segcore.edition": self.edition,
            "segcore.run": self.run,
            "segcore.licence": self.licence,
            "segcore.unit": counts.unit,
            "segcore.n_ok": str(counts.ok),
            "segcore.n_failed": str(counts.failed),
            "segcore.n_instances": str(counts.instances),
            "segcore.failures": json.dumps(counts.failures, sort_keys=True),
            "segcore.notes": json.dumps(counts.notes, sort_keys=True),
        }

    def _read_counts(self, unit: str) -> PartCounts:
        uri = self.uri("images", unit)
        try:
            with self.storage.open(uri) as file:
                return counts_from_metadata(pq.read_metadata(file).metadata)
        except (KeyError, ValueError, pa.ArrowException) as error:
            raise StorageError(
                f"{uri} is not a readable part of this edition: {error}.",
                hint="Delete this object and run the same command again; its unit is redone.",
            ) from None


def unit_of_part(uri: str) -> str | None:
    """The unit whose part an object of ``images/`` or ``instances/`` is; None when it is none."""
    match = _NAME.fullmatch(uri.rpartition("/")[2])
    return match.group(1) if match else None


def counts_from_metadata(metadata: Mapping[bytes, bytes] | None) -> PartCounts:
    """The counts that the Parquet metadata of a part holds.

    Raises:
        KeyError, ValueError: It is not that of a part.
    """
    found = {key.decode(): value.decode() for key, value in (metadata or {}).items()}
    return PartCounts(
        unit=found["segcore.unit"],
        ok=int(found["segcore.n_ok"]),
        failed=int(found["segcore.n_failed"]),
        instances=int(found["segcore.n_instances"]),
        failures=json.loads(found["segcore.failures"]),
        notes=json.loads(found["segcore.notes"]),
    )


def count_results(
    unit: str, results: Sequence[ImageResult], notes: Mapping[str, int]
) -> PartCounts:
    """The counts of a unit's results."""
    failures = Counter(str(r.error.code) for r in results if r.error is not None)
    failed = sum(failures.values())
    return PartCounts(
        unit=unit,
        ok=len(results) - failed,
        failed=failed,
        instances=sum(len(r.instances) for r in results if r.instances is not None),
        failures=dict(sorted(failures.items())),
        notes={name: number for name, number in sorted(notes.items()) if number},
    )


def images_table(unit: Unit, results: Sequence[ImageResult]) -> pa.Table:
    """One row per image, in the order given."""
    errors = [r.error for r in results]
    columns: dict[str, list] = {
        "image_id": [r.image_id for r in results],
        "uri": [r.uri for r in results],
        "etag": [r.etag for r in results],
        "shard": [unit.shard] * len(results),
        "unit": [unit.unit] * len(results),
        "width": [r.width for r in results],
        "height": [r.height for r in results],
        "status": ["ok" if error is None else "failed" for error in errors],
        "error_code": [None if error is None else str(ErrorCode(error.code)) for error in errors],
        "error_message": [None if error is None else error.message for error in errors],
        "n_instances": [0 if r.instances is None else len(r.instances) for r in results],
    }
    return pa.table(
        {name: _clean(values) for name, values in columns.items()}, schema=IMAGES_SCHEMA
    )


def instances_table(results: Sequence[ImageResult], categories: dict[int, str]) -> pa.Table:
    """One row per instance, images in the order given, by falling score within each."""
    found = [(r.image_id, r.instances) for r in results if r.instances is not None and r.instances]
    if not found:
        return INSTANCES_SCHEMA.empty_table()
    sizes = [len(instances) for _, instances in found]
    ids = np.concatenate([instances.category_ids for _, instances in found])
    boxes = np.concatenate([instances.boxes for _, instances in found]).astype(np.float32)
    counts = [text for _, instances in found for text in instances.counts]
    columns = {
        "image_id": pa.array(_clean([image_id for image_id, _ in found]), pa.string()).take(
            np.repeat(np.arange(len(found)), sizes)
        ),
        "instance_index": np.concatenate([np.arange(size) for size in sizes]).astype(np.int32),
        "category_id": ids.astype(np.int32),
        "category": [categories[int(category)] for category in ids],
        "score": np.concatenate([i.scores for _, i in found]).astype(np.float32),
        "area": np.concatenate([i.areas for _, i in found]).astype(np.int64),
        "height": np.repeat([i.height for _, i in found], sizes).astype(np.int32),
        "width": np.repeat([i.width for _, i in found], sizes).astype(np.int32),
        "counts": pa.array(counts, pa.binary()).cast(pa.string()),
    }
    for axis, name in enumerate(("bbox_x", "bbox_y", "bbox_w", "bbox_h")):
        columns[name] = np.ascontiguousarray(boxes[:, axis])
    return pa.table(
        {name: columns[name] for name in INSTANCES_SCHEMA.names}, schema=INSTANCES_SCHEMA
    )


def results_from_tables(images: pa.Table, instances: pa.Table) -> list[ImageResult]:
    """Inverse of `images_table` and `instances_table`, for the images that are ok."""
    at = dict(_first_places(instances["image_id"]))
    found = []
    for row in images.to_pylist():
        if row["status"] != "ok":
            continue
        start = at.get(row["image_id"], 0)
        mine = instances.slice(start, row["n_instances"])
        boxes = [mine[name].to_numpy() for name in ("bbox_x", "bbox_y", "bbox_w", "bbox_h")]
        result = Instances(
            height=row["height"],
            width=row["width"],
            boxes=np.stack(boxes, axis=1).astype(np.float32).reshape(-1, 4),
            scores=mine["score"].to_numpy(),
            category_ids=mine["category_id"].to_numpy(),
            areas=mine["area"].to_numpy(),
            counts=[text.encode() for text in mine["counts"].to_pylist()],
        )
        names = {name: row[name] for name in ("image_id", "uri", "etag", "width", "height")}
        found.append(ImageResult(**names, instances=result))
    return found


def _first_places(column: pa.ChunkedArray) -> Iterator[tuple[str, int]]:
    """(value, position of its first row) of a column whose equal values stand together."""
    before = None
    for place, value in enumerate(column.to_pylist()):
        if value != before:
            yield value, place
            before = value


def _clean(values: list) -> list:
    """Texts that UTF-8 can hold: file names on disk may carry undecodable bytes."""
    return [
        value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
        for value in values
    ]


def encode_part(table: pa.Table, metadata: Mapping[str, str]) -> bytes:
    """Parquet bytes, the same for the same table; no time and no writer state in them."""
    sink = io.BytesIO()
    plain = [name for name in table.column_names if name != "counts"]
    pq.write_table(
        table.replace_schema_metadata(metadata),
        sink,
        compression="zstd",
        compression_level=3,
        use_dictionary=plain,  # every RLE string is its own: a dictionary only costs
        write_statistics=plain,
        write_page_checksum=True,  # zstd alone lets a flipped bit pass as another number
    )
    return sink.getvalue()
