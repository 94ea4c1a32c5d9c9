"""The columns of the two result tables."""

from __future__ import annotations

import pyarrow as pa

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
    ]
)
