"""Manifests: files that list images as lines of text, CSV, JSON lines or Parquet."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import NothingFound, UsageError
from segcore.sources.arrow_types import check_readable, is_bytes_type, is_text_type, to_plain
from segcore.sources.base import SourceOptions
from segcore.sources.delimited import DelimitedTable
from segcore.sources.objects import ObjectsSource
from segcore.sources.references import ReferenceResolver
from segcore.storage import Storage
from segcore.storage.listing import Listing
from segcore.storage.uris import parent

EXTENSIONS = ("txt", "lst", "csv", "tsv", "jsonl", "ndjson", "parquet")
_URI_COLUMNS = ("uri", "url", "image_uri", "image_url", "image_path", "path", "file_name",
                "filename", "file", "image", "key")  # fmt: skip
_URI_COLUMN_HINT = "Name it with --set source.uri_column=NAME."
_MAX_LINE_CHARS = 1 << 20
_BATCH_ROWS = 10_000
_LINE_END = re.compile("\r\n|\r|\n")
_MAX_LOOKUPS = 1000  # of lines that begin with "#"


def open_manifest(uri: str, options: SourceOptions, storage: Storage) -> ObjectsSource:
    """The images that a manifest names; relative entries start at the manifest's folder.

    txt/lst: one reference per line; empty lines are skipped, and so are lines that begin with `#`
    and name no file. csv/tsv: with a header; other separators are recognised. jsonl/ndjson: objects
    or plain strings. Entries that have a scheme that is not allowed or that lead outside the folder
    or bucket become failed rows; what was skipped is said in `notes`.

    Raises:
        UsageError: The extension is unknown, the content is unreadable, or there is no column with
            URIs.
        ObjectNotFound, AccessDenied, StorageError: The manifest itself cannot be read.
    """
    extension = uri.rpartition(".")[2].lower()
    resolver = ReferenceResolver(parent(uri), uri, options, storage)
    skipped: Counter[str] = Counter()
    if extension == "parquet":
        references = _read_parquet(uri, options, storage, skipped)
    elif extension in ("csv", "tsv"):
        references = _read_csv(uri, "\t" if extension == "tsv" else ",", options, storage, skipped)
    elif extension in ("jsonl", "ndjson"):
        references = _read_json_lines(uri, options, storage)
    elif extension in EXTENSIONS:
        references = _read_lines(uri, resolver, skipped)
    else:
        known = ", ".join(f".{name}" for name in EXTENSIONS)
        raise UsageError(
            f"{uri} does not have the extension of a manifest; known extensions are {known}."
        )
    listing = Listing.from_rows(resolver.resolve_all(references))
    if listing.num_rows == 0 and not options.allow_empty:
        raise NothingFound(
            f"{uri} names no images: it has no entries.",
            "Set source.allow_empty=true if an input may be empty.",
        )
    notes = [f"{uri}: {count:,} x {what}." for what, count in skipped.items()] + resolver.notes()
    return ObjectsSource(input=uri, kind="manifest", listing=listing, storage=storage, notes=notes)


@contextmanager
def open_text(uri: str, storage: Storage) -> Iterator[io.TextIOWrapper]:
    """The file as UTF-8 text.

    Raises:
        UsageError: It is not UTF-8; names the first line that is not.
    """
    with storage.open(uri) as raw:
        start = raw.read(2)
        if start in (b"\xff\xfe", b"\xfe\xff") or 0 in start:
            raise UsageError(f"{uri}, line 1: UTF-16 or UTF-32, not UTF-8.", "Save it as UTF-8.")
        raw.seek(0)
        with io.TextIOWrapper(raw, "utf-8-sig", newline="") as file:
            try:
                yield file
            except UnicodeDecodeError as error:
                message = f"{uri}, line {_first_bad_line(raw)}: not UTF-8 text."
                raise UsageError(message, "Save it as UTF-8.") from error


def _first_bad_line(file: BinaryIO) -> int:
    """Number of the first line that is not UTF-8, with line ends of any kind."""
    file.seek(0)
    number, tail = 1, b""
    while piece := file.readline(_MAX_LINE_CHARS):
        try:
            text = (tail + piece).decode()
        except UnicodeDecodeError as error:
            is_cut = error.reason == "unexpected end of data" and not piece.endswith(b"\n")
            text, tail = (tail + piece)[: error.start].decode(), (tail + piece)[error.start :]
            number += len(_LINE_END.findall(text))
            if is_cut:  # the piece ends inside a character
                continue
            return number
        number, tail = number + len(_LINE_END.findall(text)), b""
    return number


def _read_lines(uri: str, resolver: ReferenceResolver, skipped: Counter[str]) -> Iterator[str]:
    """One reference per line; a line with "#" that names no file is a comment."""
    n_lookups = 0
    with open_text(uri, resolver.storage) as file:
        for _, line in _numbered_lines(uri, file):
            if line.startswith("#"):
                n_lookups += 1
                # Beyond the limit lines count as entries: as failed rows they are seen.
                is_name = resolver.options.is_image_name(line) and (
                    n_lookups > _MAX_LOOKUPS or resolver.exists(line)
                )
                if not is_name:
                    skipped["comment (a line that begins with '#' and names no file)"] += 1
                    continue
            yield line


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
    uri: str, separator: str, options: SourceOptions, storage: Storage, skipped: Counter[str]
) -> Iterator[str]:
    with open_text(uri, storage) as file:
        table = DelimitedTable.open(uri, file, separator, lambda names: _known(names, options))
        index = table.header.index(_find_uri_column(uri, table.header, options))
        for row in table.rows(index, options.is_image_name):
            if value := row.cells[index].strip():
                yield value
            else:
                skipped[f"row without a value in column {table.header[index]!r}"] += 1
        if table.n_multiline:
            skipped["row that spans several lines (a quoted field with line breaks)"] = (
                table.n_multiline
            )


def _read_json_lines(uri: str, options: SourceOptions, storage: Storage) -> Iterator[str]:
    key: str | None = None
    with open_text(uri, storage) as file:
        for number, line in _numbered_lines(uri, file):
            repeated: set[str] = set()
            try:
                value = json.loads(line, object_pairs_hook=partial(_as_dict, repeated))
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{uri}, line {number}: not valid JSON.") from error
            if isinstance(value, dict):
                if key is None:
                    key = _find_uri_column(uri, list(value), options)
                if key not in value:
                    raise UsageError(f"{uri}, line {number}: no key {key!r}.", _URI_COLUMN_HINT)
                if key in repeated:
                    raise UsageError(f"{uri}, line {number}: key {key!r} is there twice.")
                value = value[key]
            if not isinstance(value, str) or not value:
                raise UsageError(
                    f"{uri}, line {number}: the URI is not a string.", _URI_COLUMN_HINT
                )
            yield value


def _as_dict(repeated: set[str], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; adds the names that occur more than once to `repeated`."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = Counter(name for name, _ in pairs)
        repeated.update(name for name, count in names.items() if count > 1)
    return values


def _read_parquet(
    uri: str, options: SourceOptions, storage: Storage, skipped: Counter[str]
) -> Iterator[str]:
    with storage.open(uri) as file:
        try:
            parquet = pq.ParquetFile(file)
            name = _find_uri_column(uri, parquet.schema_arrow.names, options)
            data_type = parquet.schema_arrow.field(name).type
            if not (is_text_type(data_type) or is_bytes_type(data_type)):
                raise UsageError(
                    f"{uri}: column {name!r} holds {data_type}, not strings.", _URI_COLUMN_HINT
                )
            check_readable(data_type, name, uri)
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=[name], use_threads=False):
                values = to_plain(batch.column(0)).to_pylist()
                for value in values:
                    if value:
                        yield value if isinstance(value, str) else value.decode()
                    else:
                        skipped[f"row without a value in column {name!r}"] += 1
        except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: names not UTF-8
            reason = str(error).partition("\n")[0][:200]
            raise UsageError(f"{uri} cannot be read as Parquet: {reason}") from error


def _find_uri_column(uri: str, names: list[str], options: SourceOptions) -> str:
    if not names:
        raise UsageError(f"{uri} has no columns.", _URI_COLUMN_HINT)
    columns = ", ".join(repr(name) for name in names)[:500]
    name = _known(names, options)
    if name is not None:
        if names.count(name) > 1:
            raise UsageError(
                f"{uri} has {names.count(name)} columns {name!r}; its columns are {columns}.",
                "Give them different names.",
            )
        return name
    if options.uri_column is not None:
        raise UsageError(
            f"{uri} has no column {options.uri_column!r}; its columns are {columns}.",
            _URI_COLUMN_HINT,
        )
    raise UsageError(
        f"{uri}: no column is known to hold URIs; the columns are {columns}.", _URI_COLUMN_HINT
    )


def _known(names: Sequence[str], options: SourceOptions) -> str | None:
    """The column that the options name, or one whose name says that it holds URIs."""
    if options.uri_column is not None:
        return options.uri_column if options.uri_column in names else None
    by_lower = {name.lower(): name for name in reversed(names)}
    return next((by_lower[name] for name in _URI_COLUMNS if name in by_lower), None)
