"""The columns of the two result tables.

Version 1 lacked the columns of `ADDED_IN_2`; its outputs are read as if it had them.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from segcore.output.layout import Table

SCHEMA_VERSION = 2

_TEXTS = pa.list_(pa.field("element", pa.string(), nullable=False))

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
        pa.field("warnings", _TEXTS, nullable=False),  # "<code>: <text>"; [] if there are none
        pa.field("page", pa.int32()),  # from 1, of a file of several pages that was read as such
    ]
)

INSTANCES_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("instance_index", pa.int32(), nullable=False),  # from 0, by descending score
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
        pa.field("window_x", pa.int32(), nullable=False),  # place of the canvas in the image:
        pa.field("window_y", pa.int32(), nullable=False),  # 0, 0 where it is the whole image
        pa.field("geometry", pa.binary()),  # null unless the image is georeferenced
    ]
)

# Each new column, and what it holds for a row of version 1.
ADDED_IN_2: Mapping[str, object] = {
    "warnings": [],
    "page": None,
    "window_x": 0,
    "window_y": 0,
    "geometry": None,
}
_CURRENT: Mapping[Table, pa.Schema] = {"images": IMAGES_SCHEMA, "instances": INSTANCES_SCHEMA}


def schema_of(table: Table, version: int) -> pa.Schema:
    """The columns of a table in a version of the schema: 1 or 2."""
    fields = [field for field in _CURRENT[table] if version > 1 or field.name not in ADDED_IN_2]
    return pa.schema(fields)


def stated_version(metadata: Mapping[bytes, bytes] | None) -> int | None:
    """The schema version that a part's metadata gives; None if it is not one that is known."""
    text = (metadata or {}).get(b"segcore.schema_version", b"")
    return int(text) if text in (b"1", b"2") else None


def add_new_columns(rows: pa.Table, table: Table, columns: list[str]) -> pa.Table:
    """`columns` of a table of version 1, those that it lacks with their defaults."""
    for name in columns:
        if name not in rows.column_names and name in ADDED_IN_2:
            field = _CURRENT[table].field(name)
            values = pa.array([ADDED_IN_2[name]] * rows.num_rows, field.type)
            rows = rows.append_column(field, values)
    return rows.select(columns)
