"""Which columns of a Parquet shard hold the images and their names."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pyarrow as pa

from segcore.errors import UsageError
from segcore.sources.base import SourceOptions

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "content")
_KEY_COLUMNS = ("__key__", "key", "image_id", "id", "file_name", "filename", "path", "uri", "url")


@dataclass(frozen=True)
class ParquetColumns:
    """Paths of the columns to read.

    Attributes:
        image: Column with the bytes: "name" or, inside a struct, "name.bytes".
        key: Column with the name of each image: "name" or "name.path"; "" if there is none and
            images are named by their row number.
    """

    image: str
    key: str

    def to_reader(self) -> str:
        """The columns as stored in `Unit.reader`."""
        return json.dumps({"image": self.image, "key": self.key})

    @classmethod
    def from_reader(cls, reader: str) -> ParquetColumns:
        """Inverse of `to_reader`."""
        return cls(**json.loads(reader))


def find_image_column(schema: pa.Schema) -> str | None:
    """The column that holds image bytes; None if there is none or the choice is ambiguous."""
    candidates = [column.name for column in schema if _bytes_path(column) is not None]
    preferred = [name for name in _IMAGE_COLUMNS if name in candidates]
    if preferred:
        return preferred[0]
    return candidates[0] if len(candidates) == 1 else None


def find_columns(schema: pa.Schema, options: SourceOptions, shard: str) -> ParquetColumns:
    """The columns to read from a shard with this schema.

    Raises:
        UsageError: There is no column with image bytes, the choice is ambiguous, or a column that
            the options name is missing or of another type.
    """
    columns = ", ".join(f"{column.name} ({column.type})" for column in schema)[:500]
    name = options.image_column or find_image_column(schema)
    if name is None:
        raise UsageError(
            f"{shard}: no column is clearly the one with image bytes; its columns are {columns}.",
            "Name it with --set source.image_column=NAME; for a list of URIs use "
            "--set source.kind=manifest.",
        )
    if name not in schema.names:
        raise UsageError(f"{shard} has no column {name!r}; its columns are {columns}.")
    image_path = _bytes_path(schema.field(name))
    if image_path is None:
        raise UsageError(
            f"{shard}: column {name!r} does not hold image bytes; its columns are {columns}."
        )
    if options.key_column is not None:
        if options.key_column not in schema.names:
            raise UsageError(
                f"{shard} has no column {options.key_column!r}; its columns are {columns}."
            )
        if not _is_key_type(schema.field(options.key_column).type):
            raise UsageError(
                f"{shard}: key column {options.key_column!r} does not hold strings or integers."
            )
        return ParquetColumns(image_path, options.key_column)
    for candidate in _KEY_COLUMNS:
        if candidate in schema.names and _is_key_type(schema.field(candidate).type):
            return ParquetColumns(image_path, candidate)
    if image_path != name:
        struct = schema.field(name).type
        index = struct.get_field_index("path")
        if index >= 0 and _is_key_type(struct.field(index).type):
            return ParquetColumns(image_path, f"{name}.path")
    return ParquetColumns(image_path, "")


def _bytes_path(column: pa.Field) -> str | None:
    """Path of the bytes in a column: its name, or "name.bytes"; None if it has no bytes."""
    if _is_bytes_type(column.type):
        return str(column.name)
    if pa.types.is_struct(column.type):
        index = column.type.get_field_index("bytes")
        if index >= 0 and _is_bytes_type(column.type.field(index).type):
            return f"{column.name}.bytes"
    return None


def _is_bytes_type(data_type: pa.DataType) -> bool:
    data_type = _value_type(data_type)
    return bool(
        pa.types.is_binary(data_type)
        or pa.types.is_large_binary(data_type)
        or pa.types.is_fixed_size_binary(data_type)
    )


def _is_key_type(data_type: pa.DataType) -> bool:
    data_type = _value_type(data_type)
    return bool(
        pa.types.is_string(data_type)
        or pa.types.is_large_string(data_type)
        or pa.types.is_integer(data_type)
    )


def _value_type(data_type: pa.DataType) -> pa.DataType:
    return data_type.value_type if pa.types.is_dictionary(data_type) else data_type
