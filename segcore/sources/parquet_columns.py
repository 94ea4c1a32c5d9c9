"""Which columns of a Parquet shard hold the images and their names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from segcore.errors import UsageError
from segcore.sources.arrow_types import (
    check_readable,
    is_bytes_type,
    is_list_type,
    is_text_type,
    value_type,
)
from segcore.sources.base import SourceOptions
from segcore.text import parse_json

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "content")
_LIST_COLUMNS = ("images", *_IMAGE_COLUMNS)
_MIN_IMAGE_BYTES = 32  # a column whose values all have fewer bytes holds hashes or ids
_KEY_COLUMNS = ("__key__", "key", "image_id", "id", "file_name", "filename", "path", "uri", "url")


@dataclass(frozen=True)
class ParquetColumns:
    """Paths of the columns to read, and which rows.

    Attributes:
        image: Column with the bytes: "name" or, inside a struct, "name.bytes".
        key: Column with the name of each image: "name" or "name.path"; "" if there is none and
            images are named by their row number.
        is_list: Whether each row of `image` holds a list of images.
        rows: (first, end) of the rows to read if the unit is a piece of one huge row group,
            counted inside the group.
    """

    image: str
    key: str
    is_list: bool = False
    rows: tuple[int, int] | None = None

    @property
    def list_column(self) -> str:
        """Name of the column, if it holds lists."""
        return self.image.removesuffix(".bytes")

    def to_reader(self) -> str:
        """The columns as stored in `Unit.reader`."""
        reader: dict[str, Any] = {"image": self.image, "key": self.key}
        if self.is_list:
            reader["list"] = True
        if self.rows is not None:
            reader["rows"] = self.rows
        return json.dumps(reader)

    @classmethod
    def from_reader(cls, reader: str) -> ParquetColumns:
        """Inverse of `to_reader`."""
        value = parse_json(reader)
        rows = value.get("rows")
        return cls(
            value["image"], value["key"], value.get("list", False), tuple(rows) if rows else None
        )


def find_image_column(schema: pa.Schema) -> str | None:
    """The column that holds image bytes; None if there is none or the choice is ambiguous.

    A column of lists is taken only if no column holds one image in each row.
    """
    candidates = [column.name for column in schema if may_hold_images(column)]
    for names, preferred in (
        ([name for name in candidates if not _is_list(schema, name)], _IMAGE_COLUMNS),
        ([name for name in candidates if _is_list(schema, name)], _LIST_COLUMNS),
    ):
        known = [name for name in preferred if name in names]
        if known:
            return known[0]
        if names:
            return names[0] if len(names) == 1 else None
    return None


def has_image_name(name: str) -> bool:
    """Whether the name of a column alone says that it holds images."""
    return name in _LIST_COLUMNS


def _is_list(schema: pa.Schema, name: str) -> bool:
    return is_list_type(schema.field(name).type)


def may_hold_images(column: pa.Field) -> bool:
    """Whether the column holds bytes, and more of them than a hash or an id has."""
    if _bytes_path(column) is None:
        return False
    data_type = value_type(column.type)
    if is_list_type(data_type):
        data_type = value_type(data_type.value_type)
    if pa.types.is_fixed_size_binary(data_type):
        return bool(data_type.byte_width >= _MIN_IMAGE_BYTES)
    return True


def find_columns(schema: pa.Schema, options: SourceOptions, shard: str) -> ParquetColumns:
    """The columns to read from a shard with this schema.

    Raises:
        UsageError: There is no column with image bytes, the choice is ambiguous, a column that the
            options name is missing or of another type, or pyarrow cannot read one.
    """
    columns = _choose_columns(schema, options, shard)
    for path in (columns.image, columns.key):
        name = path if path in schema.names else path.rpartition(".")[0]
        if name:
            check_readable(schema.field(name).type, name, shard)
    return columns


def _choose_columns(schema: pa.Schema, options: SourceOptions, shard: str) -> ParquetColumns:
    """See `find_columns`."""
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
    is_list = _is_list(schema, name)
    if options.key_column is not None:
        if options.key_column not in schema.names:
            raise UsageError(
                f"{shard} has no column {options.key_column!r}; its columns are {columns}."
            )
        key_type = schema.field(options.key_column).type
        if not (_is_key_type(key_type) or is_bytes_type(key_type)):
            raise UsageError(
                f"{shard}: key column {options.key_column!r} does not hold text or integers."
            )
        return ParquetColumns(image_path, options.key_column, is_list)
    for candidate in _KEY_COLUMNS:
        if candidate in schema.names and _is_key_type(schema.field(candidate).type):
            return ParquetColumns(image_path, candidate, is_list)
    if image_path != name and not is_list:
        struct = value_type(schema.field(name).type)
        index = struct.get_field_index("path")
        if index >= 0 and _is_key_type(struct.field(index).type):
            return ParquetColumns(image_path, f"{name}.path")
    return ParquetColumns(image_path, "", is_list)


def _bytes_path(column: pa.Field) -> str | None:
    """Path of the bytes in a column, as in `ParquetColumns.image`; None if it has no bytes."""
    data_type = value_type(column.type)
    if is_list_type(data_type):
        data_type = value_type(data_type.value_type)
    if is_bytes_type(data_type):
        return str(column.name)
    if pa.types.is_struct(data_type):
        index = data_type.get_field_index("bytes")
        if index >= 0 and is_bytes_type(data_type.field(index).type):
            return f"{column.name}.bytes"
    return None


def _is_key_type(data_type: pa.DataType) -> bool:
    return is_text_type(data_type) or bool(pa.types.is_integer(value_type(data_type)))
