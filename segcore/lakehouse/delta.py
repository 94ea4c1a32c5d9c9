"""Delta tables, by deltalake: each in a folder of its own, with one commit for a publication.

Readers disagree about files outside of the folder of a table, so its files lie in it: on a disk
they are hard links to those of the output, on S3 copies that the server makes. A file is named by
where it came from and its version, so a name has the same bytes for ever, whatever becomes of the
output. Delta has no branches: the candidate is the set of files, checked before it is committed.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import AccessDenied, ObjectNotFound, SegcoreError, StorageError, UsageError
from segcore.lakehouse.files import SCHEMAS, TableFiles
from segcore.lakehouse.target import TableError, import_library, translate_errors
from segcore.output.layout import OutputLayout, Table
from segcore.storage import Storage
from segcore.storage.s3_session import open_session
from segcore.storage.storage import ObjectInfo
from segcore.storage.uris import basename, is_remote, parent, split
from segcore.text import printable

_APP = "segcore"  # of the transactions by which a table knows what was published to it
_THREADS = 16
_MAX_BOUND_CHARS = 256  # longer smallest and largest ids are left out of the statistics
_DENIED = ("AccessDenied", "Access Denied", "403", "Permission denied", "Unauthorized", "Forbidden")
# The library decodes the first, and takes the second for a slash.
_NOT_FOR_DELTA = re.compile(r"%[0-9A-Fa-f]{2}|\\|[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class _Candidate:
    """What the next commit is to bring.

    Attributes:
        added: Path in the table -> (size in bytes, statistics).
        removed: Path in the table -> size in bytes.
        n_rows: Of all files that the table has then.
    """

    added: Mapping[str, tuple[int, dict[str, Any]]]
    removed: Mapping[str, int]
    n_rows: int
    marks: Mapping[str, str]


class DeltaLakeTable:
    """One of the two tables of an output, see `segcore.lakehouse.table.LakeTable`.

    Attributes:
        name: URI of its folder.

    Raises:
        UsageError: It was changed so that it cannot take the files of results, or its rows are not
            of segcore, or deltalake cannot name its folder.
        TableError: It cannot be read.
        AccessDenied: It may not be read.
    """

    def __init__(self, storage: Storage, table: Table, output: OutputLayout) -> None:
        self.name, self._table, self._storage = output.delta_table(table), table, storage
        self._output = output.uri
        self._candidate: _Candidate | None = None
        if not is_remote(self.name) and _NOT_FOR_DELTA.search(self.name):
            raise UsageError(
                f"{printable(self.name)}: the library for Delta tables cannot use a folder with a "
                "percent sign, a backslash or a control character in its path.",
                "Give the output another name.",
            )
        self._library = import_library("deltalake")
        with self._translated("opened"):
            self._opened = self._open()
        if self._opened is not None:
            self._check()

    def holds(self, marks: Mapping[str, str]) -> bool:
        """Whether the newest publication had these marks."""
        if self._opened is None:
            return False
        with self._translated("read"):
            newest = self._opened.transaction_version(_APP)
            versions = {self._opened.transaction_version(_app(*mark)) for mark in marks.items()}
        return newest is not None and versions == {newest}

    def pins(self, files: TableFiles) -> set[str]:
        """None: it has names of its own for what it refers to."""
        return set()

    def stage(self, files: TableFiles, marks: Mapping[str, str]) -> None:
        """Bring these files into the folder of the table, and see what is in them."""
        known = self._known_files()
        sources = {self._path_in_table(info): info for info in self._infos(files)}
        new = sorted(sources.keys() - known.keys())
        with ThreadPoolExecutor(_THREADS) as pool:
            statistics = list(pool.map(self._bring, new, (sources[path] for path in new)))
        added = {
            path: (sources[path].size, found) for path, found in zip(new, statistics, strict=True)
        }
        removed = {path: size for path, (size, _) in known.items() if path not in sources}
        n_rows = sum(found["numRecords"] for found in statistics)
        n_rows += sum(known[path][1] for path in sources.keys() & known.keys())
        self._candidate = _Candidate(added, removed, n_rows, marks)

    def staged_rows(self) -> int:
        """Rows of the candidate."""
        assert self._candidate is not None, "staged before"
        return self._candidate.n_rows

    def discard(self) -> None:
        """Forget the candidate; its files are of no version of the table."""
        self._candidate = None

    def forward(self) -> None:
        """Commit the candidate."""
        assert self._candidate is not None, "staged before"
        candidate, transaction = self._candidate, self._library.transaction
        now_ms = int(time.time() * 1000)
        actions = [
            transaction.AddAction(path, size, {}, now_ms, True, json.dumps(stats))
            for path, (size, stats) in candidate.added.items()
        ]
        schema = self._library.Schema.from_arrow(SCHEMAS[self._table])
        with self._translated("written"):
            properties = self._properties(candidate.marks)
            if self._opened is None:
                transaction.create_table_with_add_actions(
                    self.name, schema, actions, mode="error", name=self._table,
                    storage_options=self._options(), commit_properties=properties,
                )  # fmt: skip
            else:
                actions += [
                    transaction.RemoveAction(path, True, now_ms, size, {})
                    for path, size in candidate.removed.items()
                ]
                self._opened.create_write_transaction(
                    actions, "append", schema, commit_properties=properties
                )
            self._opened, self._candidate = self._open(), None

    def _properties(self, marks: Mapping[str, str]) -> Any:
        """The marks as transactions, by which `holds` knows them, and for people."""
        before = None if self._opened is None else self._opened.transaction_version(_APP)
        number = (before or 0) + 1
        apps = [_APP, *(_app(*mark) for mark in marks.items())]
        return self._library.CommitProperties(
            custom_metadata=dict(marks),
            app_transactions=[self._library.Transaction(app, number) for app in apps],
        )

    def _known_files(self) -> dict[str, tuple[int, int]]:
        """Path in the table -> (size in bytes, rows) of the files that readers find now."""
        if self._opened is None:
            return {}
        with self._translated("read"):
            columns = pa.table(self._opened.get_add_actions(flatten=True)).to_pydict()
        counts = columns.get("num_records") or [None] * len(columns["path"])
        rows = zip(columns["path"], columns["size_bytes"], counts, strict=True)
        return {path: (size, count or 0) for path, size, count in rows}

    def _infos(self, files: TableFiles) -> Iterator[ObjectInfo]:
        """Sizes and versions of files; parts are listed rather than looked at one by one."""
        listed: dict[str, dict[str, ObjectInfo]] = {}
        for uri in files.uris:
            folder = parent(uri)
            if folder not in listed:
                listed[folder] = {info.uri: info for info in self._storage.list(folder)}
            info = listed[folder].get(uri)
            if info is None:
                raise ObjectNotFound(
                    f"{uri} does not exist any more.", "Run the same command again."
                )
            yield info

    def _path_in_table(self, info: ObjectInfo) -> str:
        """The name of a file in the table: its edition, its own name, and one of its version."""
        path = info.uri.removeprefix(f"{self._output}/")
        version = hashlib.sha256(f"{path}\n{info.etag}\n{info.size}".encode()).hexdigest()[:16]
        stem = basename(path).removesuffix(".parquet")
        return f"{path.partition('/')[0]}/{stem}-{version}.parquet"

    def _bring(self, path: str, source: ObjectInfo) -> dict[str, Any]:
        """Let the table have a file under this path; its statistics."""
        self._storage.link_or_copy(source.uri, f"{self.name}/{path}")
        try:
            with self._storage.open(f"{self.name}/{path}") as file:
                return _statistics(pq.read_metadata(file))
        except (pa.ArrowException, ValueError, OSError) as error:
            raise StorageError(
                f"{source.uri} is not a readable part: {error}.",
                "See what `segcore verify` says of the edition.",
            ) from error

    def _options(self) -> dict[str, str]:
        """How the library comes to the storage that we use."""
        if not is_remote(self.name):
            return {}
        session = open_session(split(self.name)[1], self._storage.options)
        options = {"AWS_REGION": session.region}
        if session.endpoint:
            options["AWS_ENDPOINT_URL"] = session.endpoint
            options["AWS_ALLOW_HTTP"] = str(session.endpoint.startswith("http://")).lower()
        if session.anonymous:
            return {**options, "AWS_SKIP_SIGNATURE": "true"}
        credentials = session.session.get_credentials().get_frozen_credentials()
        options["AWS_ACCESS_KEY_ID"] = credentials.access_key
        options["AWS_SECRET_ACCESS_KEY"] = credentials.secret_key
        if credentials.token:
            options["AWS_SESSION_TOKEN"] = credentials.token
        return options

    def _open(self) -> Any:
        """The table as it is now; None if there is none."""
        options = self._options()
        if not self._library.DeltaTable.is_deltatable(self.name, options):
            return None
        return self._library.DeltaTable(self.name, storage_options=options)

    def _check(self) -> None:
        """Refuse a table that was changed so that files of results do not fit it any more."""
        schema = self._library.Schema.from_arrow(SCHEMAS[self._table])
        columns = {field.name: field for field in self._opened.schema().fields}
        for field in schema.fields:
            known = columns.pop(field.name, None)
            if known is None or str(known.type) != str(field.type):
                kind = "there is no such column" if known is None else f"it is {known.type} there"
                self._refuse(f"has another schema: {field.name} is {field.type}, and {kind}")
        if required := [field.name for field in columns.values() if not field.nullable]:
            self._refuse(f"asks for the column {required[0]}, which results lack")
        metadata = self._opened.metadata()
        if metadata.partition_columns:
            self._refuse("is partitioned, which results are not")
        if metadata.configuration.get("delta.appendOnly", "").lower() == "true":
            self._refuse("has the property delta.appendOnly, but an edition replaces another")
        if (version := self._opened.protocol().min_reader_version) > 1:
            self._refuse(f"asks for readers of version {version}, which results are not made for")
        if self._opened.transaction_version(_APP) is None:
            self._refuse("was not made by segcore")

    def _refuse(self, what: str) -> None:
        raise UsageError(
            f"The table {self.name} {what}.", "Move or delete its folder; segcore makes it anew."
        )

    def _translated(self, verb: str) -> AbstractContextManager[None]:
        def describe(kind: str, reason: str) -> SegcoreError:
            what = f"The table {self.name} could not be {verb}: {reason}"
            if any(word in reason for word in _DENIED):
                return AccessDenied(what, "Ask for the right to write it.")
            return TableError(what, "Run the same command again.")

        return translate_errors(describe)


def _app(name: str, value: str) -> str:
    """The application id of a mark."""
    return f"{name}={value}"


def _statistics(metadata: pq.FileMetaData) -> dict[str, Any]:
    """What a commit says of a file: how many rows, and the smallest and largest id."""
    found: dict[str, Any] = {"numRecords": metadata.num_rows}
    column = metadata.schema.names.index("image_id") if metadata.num_rows else None
    if column is None:
        return found
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    bounds = [group.column(column).statistics for group in groups if group.num_rows]
    if all(bound is not None and bound.has_min_max for bound in bounds):
        low, high = min(bound.min for bound in bounds), max(bound.max for bound in bounds)
        if max(len(low), len(high)) <= _MAX_BOUND_CHARS:
            found["minValues"], found["maxValues"] = {"image_id": low}, {"image_id": high}
            found["nullCount"] = {"image_id": 0}
    return found
