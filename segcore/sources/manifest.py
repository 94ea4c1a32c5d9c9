"""Manifests: a file that lists the images, as text lines, CSV, JSON lines or Parquet."""

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
from segcore.sources.references import Resolver
from segcore.storage import Storage
from segcore.storage.listing import Listing
from segcore.storage.uris import parent

EXTENSIONS = ("txt", "lst", "csv", "tsv", "jsonl", "ndjson", "parquet")
_URI_NAMES = ("uri", "url", "image_uri", "image_url", "image_path", "path", "file_name",
              "filename", "file", "image", "key")  # fmt: skip
_HINT = "Name it with --set source.uri_column=NAME."
_MAX_LINE = 1 << 20


def open_manifest(uri: str, options: SourceOptions, storage: Storage) -> ObjectsSource:
    """The images that a manifest names; relative entries start at the manifest's folder.

    txt/lst: one reference per line, empty lines and lines that begin with `#` are skipped.
    csv/tsv: with a header. jsonl/ndjson: objects, or plain strings. Entries with a scheme that
    is not allowed, or that leave the folder, become failed rows.

    Raises:
        UsageError: Unknown extension, unreadable content, or no such column.
        ObjectNotFound, AccessDenied, StorageError: The manifest itself cannot be read.
    """
    kind = uri.rpartition(".")[2].lower()
    resolver = Resolver.of(parent(uri), options)
    if kind == "parquet":
        references = _from_parquet(uri, options, storage)
    elif kind in EXTENSIONS:
        references = _from_text(uri, kind, options, storage)
    else:
        known = ", ".join(f".{name}" for name in EXTENSIONS)
        raise UsageError(f"{uri} is no manifest by its name; known are {known}.")
    table = Listing.from_rows(resolver.row(reference) for reference in references)
    if table.num_rows == 0:
        raise UsageError(f"{uri} names no images: it has no entries.")
    return ObjectsSource(input=uri, kind="manifest", table=table)


def _from_text(uri: str, kind: str, options: SourceOptions, storage: Storage) -> Iterator[str]:
    with storage.open(uri) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as file:
        try:
            if kind in ("csv", "tsv"):
                yield from _from_csv(uri, file, "\t" if kind == "tsv" else ",", options)
            elif kind in ("jsonl", "ndjson"):
                yield from _from_json_lines(uri, file, options)
            else:
                for _, line in _lines(uri, file):
                    if not line.startswith("#"):
                        yield line
        except UnicodeDecodeError as error:
            raise UsageError(f"{uri} is not UTF-8 text.") from error
        except csv.Error as error:
            raise UsageError(f"{uri} is not valid CSV: {error}.") from error


def _lines(uri: str, file: io.TextIOWrapper) -> Iterator[tuple[int, str]]:
    number = 0
    while line := file.readline(_MAX_LINE):
        number += 1
        if len(line) == _MAX_LINE:
            raise UsageError(f"{uri}, line {number}: longer than {_MAX_LINE:,} characters.")
        if stripped := line.strip():
            yield number, stripped


def _from_csv(
    uri: str, file: io.TextIOWrapper, delimiter: str, options: SourceOptions
) -> Iterator[str]:
    rows = csv.reader(file, delimiter=delimiter, strict=True)
    header = [name.strip() for name in next(rows, [])]
    index = header.index(_choose(uri, header, options))
    for row in rows:
        if not row:
            continue
        if index >= len(row):
            raise UsageError(
                f"{uri}, line {rows.line_num}: no column {header[index]!r}; "
                f"{len(row)} of {len(header)} columns."
            )
        if value := row[index].strip():
            yield value


def _from_json_lines(uri: str, file: io.TextIOWrapper, options: SourceOptions) -> Iterator[str]:
    name: str | None = None
    for number, line in _lines(uri, file):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{uri}, line {number}: not valid JSON.") from error
        if isinstance(value, dict):
            if name is None:
                name = _choose(uri, list(value), options)
            if name not in value:
                raise UsageError(f"{uri}, line {number}: no key {name!r}.", _HINT)
            value = value[name]
        if not isinstance(value, str) or not value:
            raise UsageError(f"{uri}, line {number}: the URI is not a text.", _HINT)
        yield value


def _from_parquet(uri: str, options: SourceOptions, storage: Storage) -> Iterator[str]:
    with storage.open(uri) as file:
        try:
            parquet = pq.ParquetFile(file)
            name = _choose(uri, parquet.schema_arrow.names, options)
            kind = parquet.schema_arrow.field(name).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise UsageError(f"{uri}: column {name!r} holds {kind}, not texts.", _HINT)
            for batch in parquet.iter_batches(10_000, columns=[name], use_threads=False):
                for value in batch.column(0).to_pylist():
                    if value:
                        yield value
        except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: names not UTF-8
            reason = str(error).partition("\n")[0][:200]
            raise UsageError(f"{uri} cannot be read as Parquet: {reason}") from error


def _choose(uri: str, names: list[str], options: SourceOptions) -> str:
    shown = ", ".join(repr(name) for name in names)[:500] or "none at all"
    wanted = options.uri_column
    if wanted is not None:
        if wanted not in names:
            raise UsageError(f"{uri} has no column {wanted!r}; columns are {shown}.", _HINT)
        return wanted
    by_lower = {name.lower(): name for name in reversed(names)}
    for name in _URI_NAMES:
        if name in by_lower:
            return by_lower[name]
    raise UsageError(f"{uri}: no column looks like a URI; columns are {shown}.", _HINT)
