"""The result tables of one unit: made from its results, read back, and encoded as Parquet."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import ErrorCode, ImageError, ImageWarning
from segcore.instances import Instances
from segcore.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
from segcore.sources import file_image_id
from segcore.sources.units import Unit


@dataclass(frozen=True)
class ImageResult:
    """What became of one image: instances or an error, never both.

    Attributes:
        width, height: Pixels after EXIF orientation; None when the image was never decoded.
        warnings: What a person should know of the image, whatever became of it.
        page: From 1, where the file has several pages and each is an image; None otherwise.
    """

    image_id: str
    uri: str
    etag: str
    width: int | None = None
    height: int | None = None
    instances: Instances | None = None
    error: ImageError | None = None
    warnings: tuple[ImageWarning, ...] = ()
    page: int | None = None

    @property
    def file_id(self) -> str:
        """The image id of the file of which this is a page; without pages, that of the image."""
        return file_image_id(self.image_id, self.page)


def images_table(unit: Unit, results: Sequence[ImageResult]) -> pa.Table:
    """One row per image, in the order of `results`."""
    errors = [result.error for result in results]
    columns: dict[str, list] = {
        "image_id": [result.image_id for result in results],
        "uri": [result.uri for result in results],
        "etag": [result.etag for result in results],
        "shard": [unit.shard] * len(results),
        "unit": [unit.unit] * len(results),
        "width": [result.width for result in results],
        "height": [result.height for result in results],
        "status": ["ok" if error is None else "failed" for error in errors],
        "error_code": [None if error is None else str(ErrorCode(error.code)) for error in errors],
        "error_message": [None if error is None else error.message for error in errors],
        "n_instances": [
            0 if result.instances is None else len(result.instances) for result in results
        ],
        "warnings": [[str(warning) for warning in result.warnings] for result in results],
        "page": [result.page for result in results],
    }
    return pa.table(
        {name: _escape_undecodable(values) for name, values in columns.items()},
        schema=IMAGES_SCHEMA,
    )


def instances_table(results: Sequence[ImageResult], categories: dict[int, str]) -> pa.Table:
    """One row per instance: images in the order of `results`, by descending score within each.

    Args:
        categories: Name of each category id.

    Raises:
        KeyError: An instance is of a category that is not in `categories`.
    """
    pairs = [(result.image_id, result.instances) for result in results if result.instances]
    if not pairs:
        return INSTANCES_SCHEMA.empty_table()
    image_ids = [image_id for image_id, _ in pairs]
    per_image = [instances for _, instances in pairs]
    sizes = [len(instances) for instances in per_image]
    category_ids = np.concatenate([instances.category_ids for instances in per_image])
    boxes = np.concatenate([instances.boxes for instances in per_image]).astype(np.float32)
    scores = np.concatenate([instances.scores for instances in per_image])
    areas = np.concatenate([instances.areas for instances in per_image])
    heights = np.repeat([instances.height for instances in per_image], sizes)
    widths = np.repeat([instances.width for instances in per_image], sizes)
    counts = [text for instances in per_image for text in instances.counts]
    columns = {
        "image_id": pa.array(_escape_undecodable(image_ids), pa.string()).take(
            np.repeat(np.arange(len(pairs)), sizes)
        ),
        "instance_index": np.concatenate([np.arange(size) for size in sizes]).astype(np.int32),
        "category_id": category_ids.astype(np.int32),
        "category": [categories[int(category_id)] for category_id in category_ids],
        "score": scores.astype(np.float32),
        "area": areas.astype(np.int64),
        "height": heights.astype(np.int32),
        "width": widths.astype(np.int32),
        "counts": pa.array(counts, pa.binary()).cast(pa.string()),
        "window_x": np.zeros(len(counts), np.int32),
        "window_y": np.zeros(len(counts), np.int32),
        "geometry": pa.nulls(len(counts), pa.binary()),
    }
    for axis, name in enumerate(("bbox_x", "bbox_y", "bbox_w", "bbox_h")):
        columns[name] = np.ascontiguousarray(boxes[:, axis])
    return pa.table(
        {name: columns[name] for name in INSTANCES_SCHEMA.names}, schema=INSTANCES_SCHEMA
    )


def results_from_tables(images: pa.Table, instances: pa.Table) -> list[ImageResult]:
    """Inverse of `images_table` and `instances_table`, for the images that are ok."""
    first_rows = dict(_first_rows(instances["image_id"]))
    results = []
    for image in images.to_pylist():
        if image["status"] != "ok":
            continue
        start = first_rows.get(image["image_id"], 0)
        rows = instances.slice(start, image["n_instances"])
        boxes = [rows[name].to_numpy() for name in ("bbox_x", "bbox_y", "bbox_w", "bbox_h")]
        image_instances = Instances(
            height=image["height"],
            width=image["width"],
            boxes=np.stack(boxes, axis=1).astype(np.float32).reshape(-1, 4),
            scores=rows["score"].to_numpy(),
            category_ids=rows["category_id"].to_numpy(),
            areas=rows["area"].to_numpy(),
            counts=[text.encode() for text in rows["counts"].to_pylist()],
        )
        names = ("image_id", "uri", "etag", "width", "height", "page")
        warnings = tuple(ImageWarning.parse(text) for text in image["warnings"])
        columns = {name: image[name] for name in names}
        results.append(ImageResult(**columns, instances=image_instances, warnings=warnings))
    return results


def encode_part(table: pa.Table, metadata: Mapping[str, str]) -> bytes:
    """Parquet bytes; always the same for the same table: they hold no time and no writer state."""
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), sink, **parquet_options(table.schema))
    return sink.getvalue()


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """How the result tables are written as Parquet."""
    other_columns = [
        f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
        for field in schema
        if field.name != "counts"
    ]
    return {
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": other_columns,  # RLE strings hardly repeat: a dictionary would only cost
        "write_statistics": other_columns,
        "write_page_checksum": True,  # zstd alone lets a flipped bit pass as another number
    }


def _first_rows(column: pa.ChunkedArray) -> Iterator[tuple[str, int]]:
    """(value, index of its first row) of a column whose equal values are adjacent."""
    previous = None
    for row, value in enumerate(column.to_pylist()):
        if value != previous:
            yield value, row
            previous = value


def _escape_undecodable(values: list) -> list:
    """Make texts fit for UTF-8: names of files on disk may hold bytes that are not."""
    return [
        value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
        for value in values
    ]
