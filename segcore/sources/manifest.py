"""Manifests: files that list images as lines of text, CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import UsageError
from segcore.sources.base import SourceOptions
from segcore.sources.objects import ObjectsSource
from segcore.sources.references import ReferenceResolver
from segcore.storage import Storage
from segcore.storage.listing import Listing
from segcore.storage.uris import parent
from segcore.text import plural

EXTENSIONS = ("txt", "lst", "csv", "tsv", "jsonl", "ndjson", "parquet")
_URI_COLUMNS = ("uri", "url", "image_uri", "image_url", "image_path", "path", "file_name",
                "filename", "file", "image", "key")  # fmt: skip
_URI_COLUMN_HINT = "Name it with --set source.uri_column=NAME."
_MAX_LINE_CHARS = 1 << 20
_BATCH_ROWS = 10_000


def open_manifest(uri: str, options: SourceOptions, storage: Storage) -> ObjectsSource:
    """The images that a manifest names; relative entries start at the manifest's folder.

    txt/lst: one reference per line; empty lines and lines that begin with `#` are skipped.
    csv/tsv: with a header. jsonl/ndjson: objects or plain strings. Entries that have a scheme that
    is not allowed or that lead outside the folder become failed rows.

    Raises:
        UsageError: The extension is unknown, the content is unreadable, or there is no column with
            URIs.
        ObjectNotFound, AccessDenied, StorageError: The manifest itself cannot be read.
    """
    extension = uri.rpartition(".")[2].lower()
    resolver = ReferenceResolver.for_root(parent(uri), options)
    if extension == "parquet":
        references = _read_parquet(uri, options, storage)
    elif extension in EXTENSIONS:
        references = _read_text(uri, extension, options, storage)
    else:
        known = ", ".join(f".{name}" for name in EXTENSIONS)
        raise UsageError(
            f"{uri} does not have the extension of a manifest; known extensions are {known}."
        )
    listing = Listing.from_rows(resolver.resolve(reference) for reference in references)
    if listing.num_rows == 0:
        raise UsageError(f"{uri} names no images: it has no entries.")
    return ObjectsSource(input=uri, kind="manifest", listing=listing, storage=storage)


def _read_text(uri: str, extension: str, options: SourceOptions, storage: Storage) -> Iterator[str]:
    with storage.open(uri) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as file:
        try:
            if extension in ("csv", "tsv"):
                delimiter = "\t" if extension == "tsv" else ","
                yield from _read_csv(uri, file, delimiter, options)
            elif extension in ("jsonl", "ndjson"):
                yield from _read_json_lines(uri, file, options)
            else:
                for _, line in _numbered_lines(uri, file):
                    if not line.startswith("#"):
                        yield line
        except UnicodeDecodeError as error:
            raise UsageError(f"{uri} is not UTF-8 text.") from error
        except csv.Error as error:
            raise UsageError(f"{uri} is not valid CSV: {error}.") from error


def _numbered_lines(uri: str, file: io.TextIOWrapper) -> Iterator[tuple[int, str]]:
    """(line number, stripped line) of the lines that are not empty."""
    number = 0
    while line := file.readline(_MAX_LINE_CHARS):
        number += 1
        if len(line) == _MAX_LINE_CHARS:
            raise UsageError(f"{uri}, line {number}: longer than {_MAX_LINE_CHARS:,} characters.")
        if stripped := line.strip():
            yield number, stripped


def _read_csv(
    uri: str, file: io.TextIOWrapper, delimiter: str, options: SourceOptions
) -> Iterator[str]:
    rows = csv.reader(file, delimiter=delimiter, strict=True)
    header = [name.strip() for name in next(rows, [])]
    index = header.index(_find_uri_column(uri, header, options))
    for row in rows:
        if not row:
            continue
        if index >= len(row):
            raise UsageError(
                f"{uri}, line {rows.line_num}: no column {header[index]!r}; it has "
                f"{len(row)} of {plural(len(header), 'column')}."
            )
        if value := row[index].strip():
            yield value


def _read_json_lines(uri: str, file: io.TextIOWrapper, options: SourceOptions) -> Iterator[str]:
    key: str | None = None
    for number, line in _numbered_lines(uri, file):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{uri}, line {number}: not valid JSON.") from error
        if isinstance(value, dict):
            if key is None:
                key = _find_uri_column(uri, list(value), options)
            if key not in value:
                raise UsageError(f"{uri}, line {number}: no key {key!r}.", _URI_COLUMN_HINT)
            value = value[key]
        if not isinstance(value, str) or not value:
            raise UsageError(f"{uri}, line {number}: the URI is not a string.", _URI_COLUMN_HINT)
        yield value


def _read_parquet(uri: str, options: SourceOptions, storage: Storage) -> Iterator[str]:
    with storage.open(uri) as file:
        try:
            parquet = pq.ParquetFile(file)
            name = _find_uri_column(uri, parquet.schema_arrow.names, options)
            data_type = parquet.schema_arrow.field(name).type
            if not (pa.types.is_string(data_type) or pa.types.is_large_string(data_type)):
                raise UsageError(
                    f"{uri}: column {name!r} holds {data_type}, not strings.", _URI_COLUMN_HINT
                )
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=[name], use_threads=False):
                for value in batch.column(0).to_pylist():
                    if value:
                        yield value
        except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: names not UTF-8
            reason = str(error).partition("\n")[0][:200]
            raise UsageError(f"{uri} cannot be read as Parquet: {reason}") from error


def _find_uri_column(uri: str, names: list[str], options: SourceOptions) -> str:
    if not names:
        raise UsageError(f"{uri} has no columns.", _URI_COLUMN_HINT)
    columns = ", ".join(repr(name) for name in names)[:500]
    if options.uri_column is not None:
        if options.uri_column not in names:
            raise UsageError(
                f"{uri} has no column {options.uri_column!r}; its columns are {columns}.",
                _URI_COLUMN_HINT,
            )
        return options.uri_column
    by_lower = {name.lower(): name for name in reversed(names)}
    for name in _URI_COLUMNS:
        if name in by_lower:
            return by_lower[name]
    raise UsageError(
        f"{uri}: no column is known to hold URIs; the columns are {columns}.", _URI_COLUMN_HINT
    )
