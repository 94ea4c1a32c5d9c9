"""Hugging Face datasets: Parquet with an image column, as `load_dataset` reads it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.exports.formats.base import Context, Encoded, ExportImage, Format, Tally

_ROWS_IN_A_GROUP = 100
_BYTES_IN_A_GROUP = 64 << 20


class HuggingFace(Format):
    """A row an image: the image, its size, and its objects with exact masks as COCO RLE."""

    name = "hf"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.needs_pictures = context.options.images == "copy"

    def encode_masks(self, image: ExportImage, tally: Tally) -> tuple[int, Any]:
        """The row."""
        numbers = range(image.first_annotation, image.first_annotation + len(image.counts))
        row = {
            "image_id": image.number,
            "segcore_image_id": image.image_id,
            "file_name": image.name,
            "width": image.width,
            "height": image.height,
            "objects": {
                "id": list(numbers),
                "bbox": [list(box) for box in image.boxes.tolist()] if len(image.counts) else [],
                "category": list(image.labels),
                "area": list(image.areas),
                "score": list(image.scores),
                "counts": list(image.counts),
            },
        }
        if self.needs_pictures:
            row["image"] = {"bytes": image.picture, "path": image.name}
        return len(image.counts), row

    def file_name(self, name: str) -> str:
        """The file of a chunk."""
        return f"data/train-{name}.parquet"

    def write(self, file: BinaryIO, pieces: Iterable[Encoded]) -> None:
        """Write one Parquet file."""
        schema = self._schema()
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            rows: list[dict[str, Any]] = []
            n_bytes = 0
            for piece in pieces:
                rows.append(piece.body)
                n_bytes += sum(map(len, piece.body["objects"]["counts"]))
                n_bytes += len((piece.body.get("image") or {}).get("bytes") or b"")
                if len(rows) >= _ROWS_IN_A_GROUP or n_bytes >= _BYTES_IN_A_GROUP:
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    rows, n_bytes = [], 0
            writer.write_table(pa.Table.from_pylist(rows, schema))

    def _schema(self) -> pa.Schema:
        objects = pa.struct(
            [
                ("id", pa.list_(pa.int64())),
                ("bbox", pa.list_(pa.list_(pa.float32(), 4))),
                ("category", pa.list_(pa.int64())),
                ("area", pa.list_(pa.int64())),
                ("score", pa.list_(pa.float32())),
                ("counts", pa.list_(pa.string())),
            ]
        )
        fields = [
            ("image_id", pa.int64()),
            ("segcore_image_id", pa.string()),
            ("file_name", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("objects", objects),
        ]
        if self.needs_pictures:
            picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            fields.insert(0, ("image", picture))
        metadata = {"huggingface": json.dumps({"info": {"features": self._features()}})}
        return pa.schema(fields).with_metadata(metadata)

    def _features(self) -> dict[str, Any]:
        def value(dtype: str) -> dict[str, Any]:
            return {"dtype": dtype, "_type": "Value"}

        def many(feature: dict[str, Any], length: int = -1) -> dict[str, Any]:
            return {"feature": feature, "length": length, "_type": "List"}

        names = [label.name for label in self.context.labels]
        objects = {
            "id": many(value("int64")),
            "bbox": many(many(value("float32"), 4)),
            "category": many({"names": names, "_type": "ClassLabel"}),
            "area": many(value("int64")),
            "score": many(value("float32")),
            "counts": many(value("string")),
        }
        features: dict[str, Any] = {"image": {"_type": "Image"}} if self.needs_pictures else {}
        return features | {
            "image_id": value("int64"),
            "segcore_image_id": value("string"),
            "file_name": value("string"),
            "width": value("int32"),
            "height": value("int32"),
            "objects": objects,
        }
