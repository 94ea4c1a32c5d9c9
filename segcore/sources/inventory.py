"""S3 Inventory: the list of a bucket that AWS writes every day, in place of a listing.

Format: https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory.html. A hundred
million keys are 100,000 requests to list, and some hundred files to read here.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from segcore.errors import UsageError
from segcore.storage import Storage
from segcore.storage.listing import SCHEMA, Listing
from segcore.storage.uris import scheme_of, split
from segcore.text import parse_json, redact

_MAX_MANIFEST_BYTES = 64 << 20
_MAX_FILE_BYTES = 4 << 30
_BATCH_ROWS = 1 << 16
# What each column is called in manifests of CSV files and in Parquet files.
_PARQUET_NAMES = {
    "Key": "key",
    "Size": "size",
    "ETag": "e_tag",
    "IsLatest": "is_latest",
    "IsDeleteMarker": "is_delete_marker",
}
_REQUIRED = ("Key", "Size", "ETag")


@dataclass(frozen=True)
class _Inventory:
    """A manifest that was understood.

    Attributes:
        uri: Of the manifest.
        file_format: "CSV" or "Parquet".
        columns: Names of the columns, in the order of CSV files.
        files: (URI, MD5 in hex or "") of each file.
    """

    uri: str
    file_format: str
    columns: list[str]
    files: list[tuple[str, str]]


def read_inventory(manifest_uri: str, input_uri: str, storage: Storage) -> Listing:
    """The objects below a prefix as an inventory has them; otherwise as `Storage.listing` gives.

    Of a bucket with versions the current ones are taken.

    Args:
        manifest_uri: The `manifest.json` of one day's inventory, in an object store.
        input_uri: Canonical URI of the prefix; in the bucket that the inventory is about.

    Raises:
        UsageError: It is no inventory, one of another bucket, in the format ORC, lacks a column, or
            one of its files is damaged.
        ObjectNotFound, AccessDenied, StorageError: It cannot be read.
    """
    inventory = _read_manifest(manifest_uri, input_uri, storage)
    bucket = f"s3://{split(input_uri)[1]}/"
    prefix = input_uri.rstrip("/") + "/"
    return Listing.from_tables(
        _select(columns, bucket, prefix)
        for file_uri, md5 in inventory.files
        for columns in _read_file(inventory, file_uri, md5, storage)
    )


def _read_manifest(uri: str, input_uri: str, storage: Storage) -> _Inventory:
    if scheme_of(uri) != "s3" or scheme_of(input_uri) != "s3":
        raise UsageError(
            f"source.inventory is {redact(uri)} and the input {redact(input_uri)}.",
            "Both must be in S3: the manifest.json of an S3 Inventory, and a prefix of the bucket "
            "that it lists.",
        )
    try:
        document = parse_json(storage.read(uri, _MAX_MANIFEST_BYTES))
        source_bucket = str(document["sourceBucket"])
        file_format = str(document["fileFormat"])
        columns = [name.strip() for name in str(document["fileSchema"]).split(",")]
        bucket = f"s3://{split(uri)[1]}"  # whatever else the manifest may name
        files = [
            (f"{bucket}/{file['key']}", str(file.get("MD5checksum") or ""))
            for file in document["files"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(
            f"{redact(uri)} is not the manifest.json of an S3 Inventory.",
            "Its path ends with a date and /manifest.json.",
        ) from None
    if source_bucket != split(input_uri)[1]:
        raise UsageError(
            f"{redact(uri)} is an inventory of the bucket {source_bucket!r}; the input is "
            f"{redact(input_uri)}."
        )
    if file_format not in ("CSV", "Parquet"):
        raise UsageError(
            f"{redact(uri)}: inventories in the format {file_format[:20]!r} are not read.",
            "Configure the inventory to write Parquet or CSV.",
        )
    inventory = _Inventory(uri, file_format, columns, files)
    if file_format == "CSV":
        _check_columns(inventory, columns)
    return inventory


def _check_columns(inventory: _Inventory, present: list[str]) -> None:
    missing = [name for name in _REQUIRED if name not in present]
    if missing:
        raise UsageError(
            f"{redact(inventory.uri)}: the inventory has no {' and no '.join(missing)}.",
            "Add the fields Size and ETag to the configuration of the inventory.",
        )


def _read_file(
    inventory: _Inventory, uri: str, md5: str, storage: Storage
) -> Iterator[dict[str, Any]]:
    """The columns of one file, some rows at a time.

    Raises:
        UsageError: It is damaged.
    """
    data = storage.read(uri, _MAX_FILE_BYTES)
    if md5 and hashlib.md5(data, usedforsecurity=False).hexdigest() != md5.lower():
        raise UsageError(
            f"{redact(uri)} is not the file that the inventory names: its MD5 differs."
        )
    read = _read_csv if inventory.file_format == "CSV" else _read_parquet
    try:
        yield from read(inventory, data)
    except (pa.ArrowException, OSError, ValueError, EOFError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise UsageError(f"{redact(uri)} cannot be read: {reason}") from error


def _select(columns: dict[str, Any], bucket: str, prefix: str) -> pa.Table:
    """Rows of the listing below `prefix`: current versions, and no marks of empty folders."""
    text = pa.large_string()
    uris = pc.binary_join_element_wise(pa.scalar(bucket, text), columns["Key"], pa.scalar("", text))
    sizes = pc.fill_null(columns["Size"], 0)
    is_mark = pc.and_(pc.equal(sizes, 0), pc.ends_with(uris, "/"))
    mask = pc.and_(pc.starts_with(uris, prefix), pc.invert(is_mark))
    for name, wanted in (("IsLatest", True), ("IsDeleteMarker", False)):
        if name in columns:
            mask = pc.and_(mask, pc.equal(pc.fill_null(columns[name], wanted), wanted))
    etags = pc.utf8_trim(pc.fill_null(columns["ETag"], ""), '"')
    table = pa.table({"uri": uris, "size": sizes, "etag": etags}).cast(SCHEMA)
    return table.filter(mask)


def _read_parquet(inventory: _Inventory, data: bytes) -> Iterator[dict[str, Any]]:
    file = pq.ParquetFile(io.BytesIO(data))
    present = {name: column for name, column in _PARQUET_NAMES.items()
               if column in file.schema_arrow.names}  # fmt: skip
    _check_columns(inventory, list(present))
    columns = list(present.values())
    for batch in file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
        table = pa.Table.from_batches([batch])
        yield {name: table[column].cast(_type_of(name)) for name, column in present.items()}


def _type_of(name: str) -> pa.DataType:
    if name == "Size":
        return pa.int64()
    return pa.bool_() if name.startswith("Is") else pa.large_string()


def _read_csv(inventory: _Inventory, data: bytes) -> Iterator[dict[str, Any]]:
    """Rows of a gzip-compressed CSV file without a header; its keys are URL-encoded."""
    wanted = [name for name in _PARQUET_NAMES if name in inventory.columns]
    with pa.CompressedInputStream(pa.BufferReader(data), "gzip") as stream:
        reader = pa_csv.open_csv(
            stream,
            pa_csv.ReadOptions(column_names=inventory.columns, use_threads=False),
            convert_options=pa_csv.ConvertOptions(
                column_types={name: _type_of(name) for name in wanted}, include_columns=wanted
            ),
        )
        for batch in reader:
            table = pa.Table.from_batches([batch])
            yield {name: table[name] for name in wanted} | {"Key": _decode_keys(table["Key"])}


def _decode_keys(keys: pa.ChunkedArray) -> pa.Array:
    is_encoded = pc.match_substring_regex(keys, "[%+]")
    if not pc.any(is_encoded).as_py():
        return keys
    decoded = [unquote_plus(key, errors="strict") for key in keys.to_pylist()]
    return pa.array(decoded, pa.large_string())
