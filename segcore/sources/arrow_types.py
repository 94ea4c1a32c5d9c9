"""Arrow types that hold text, bytes or lists, in all their encodings."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from segcore.errors import UsageError


def value_type(data_type: pa.DataType) -> pa.DataType:
    """The type of the values: without dictionary, run-end encoding or extension."""
    while True:
        if isinstance(data_type, pa.BaseExtensionType):
            data_type = data_type.storage_type
        elif pa.types.is_dictionary(data_type) or pa.types.is_run_end_encoded(data_type):
            data_type = data_type.value_type
        else:
            return data_type


def is_text_type(data_type: pa.DataType) -> bool:
    """Whether the values are strings."""
    data_type = value_type(data_type)
    return bool(
        pa.types.is_string(data_type)
        or pa.types.is_large_string(data_type)
        or pa.types.is_string_view(data_type)
    )


def is_bytes_type(data_type: pa.DataType) -> bool:
    """Whether the values are bytes."""
    data_type = value_type(data_type)
    return bool(
        pa.types.is_binary(data_type)
        or pa.types.is_large_binary(data_type)
        or pa.types.is_binary_view(data_type)
        or pa.types.is_fixed_size_binary(data_type)
    )


def is_list_type(data_type: pa.DataType) -> bool:
    """Whether the values are lists, of any length."""
    data_type = value_type(data_type)
    return bool(
        pa.types.is_list(data_type)
        or pa.types.is_large_list(data_type)
        or pa.types.is_fixed_size_list(data_type)
        or pa.types.is_list_view(data_type)
        or pa.types.is_large_list_view(data_type)
    )


def check_readable(data_type: pa.DataType, column: str, uri: str) -> None:
    """Refuse a type at which pyarrow 26 aborts the process, where its batches end in Parquet.

    Raises:
        UsageError: It is such a type.
    """
    is_extension = isinstance(data_type, pa.BaseExtensionType)
    while isinstance(data_type, pa.BaseExtensionType):
        data_type = data_type.storage_type
    if is_extension and pa.types.is_dictionary(data_type):
        raise UsageError(
            f"{uri}: pyarrow cannot read the column {column!r}: its type is an extension type "
            "over a dictionary.",
            "Write it again without the extension type or without the dictionary.",
        )


def to_plain(array: Any) -> Any:
    """The array without extension types and encodings; a dictionary is decoded."""
    while True:
        if isinstance(array.type, pa.BaseExtensionType):
            array = array.storage
        elif pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        elif pa.types.is_run_end_encoded(array.type):
            array = pa.compute.run_end_decode(array)
        else:
            return array
