"""Iceberg tables, by pyiceberg: a candidate on a branch, then the main branch moves there."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

from segcore.errors import AccessDenied, SegcoreError, UsageError
from segcore.lakehouse.files import SCHEMAS, TableFiles
from segcore.lakehouse.target import TableError, TableTarget, import_library, translate_errors
from segcore.output.layout import Table
from segcore.storage.uris import is_remote
from segcore.text import redact

CANDIDATE = "segcore_candidate"
_OUTPUT, _MARKS = "segcore.output", "segcore."
_DENIED = ("Forbidden", "Unauthorized", "PermissionError", "PermissionDenied", "AccessDenied")


class IcebergTable:
    """One of the two tables, see `segcore.lakehouse.table.LakeTable`.

    Attributes:
        name: Its identifier in the catalog.

    Args:
        output: URI of the output whose rows it holds.

    Raises:
        UsageError: It has another schema, partitions, or rows that are not of this output.
        TableError: The catalog cannot be used.
        AccessDenied: It does not allow this.
    """

    def __init__(self, target: TableTarget, table: Table, output: str) -> None:
        self.name, self._table, self._output = target.name(table), table, output
        self._catalog_name = target.catalog
        import_library("pyiceberg.catalog")
        # It warns of each column of each file without rows.
        logging.getLogger("pyiceberg.io.pyarrow").setLevel(logging.ERROR)
        with self._translated("opened"):
            self._opened = self._load()
        if self._opened is not None:
            self._check()

    def holds(self, marks: Mapping[str, str]) -> bool:
        """Whether the snapshot that readers find now was published with these marks."""
        snapshot = None if self._opened is None else self._opened.current_snapshot()
        return marks.items() <= self._marks(snapshot).items()

    def pins(self, files: TableFiles) -> set[str]:
        """These files, and all that any snapshot refers to."""
        if self._opened is None:
            return set(files.uris)
        with self._translated("read"):
            return {*files.uris, *map(_to_uri, _data_files(self._opened, self._opened.snapshots()))}

    def stage(self, files: TableFiles, marks: Mapping[str, str]) -> None:
        """Commit these files, and no others, to the branch of the candidate."""
        with self._translated("written"):
            table = self._opened = self._opened or self._create()
            if table.current_snapshot() is None:  # Iceberg has no branch beside nothing
                with table.transaction() as begin, begin.update_snapshot().fast_append():
                    pass
            main = table.current_snapshot()
            candidate = table.snapshot_by_name(CANDIDATE)
            parent = main.snapshot_id if main else None
            is_fresh = candidate is not None and candidate.parent_snapshot_id == parent
            if is_fresh and self._marks(candidate) == marks:
                return  # a call that died came so far
            if candidate is not None:
                table.manage_snapshots().remove_branch(CANDIDATE).commit()
            if parent is not None:
                table.manage_snapshots().create_branch(parent, CANDIDATE).commit()
            self._commit(table, files, marks, main)
            table.refresh()

    def staged_rows(self) -> int:
        """Rows of the candidate."""
        assert self._opened is not None, "staged before"
        snapshot = self._opened.snapshot_by_name(CANDIDATE)
        return int(snapshot.summary["total-records"])

    def discard(self) -> None:
        """Drop the candidate; readers never saw it."""
        assert self._opened is not None, "staged before"
        with self._translated("written"):
            self._opened.manage_snapshots().remove_branch(CANDIDATE).commit()

    def forward(self) -> None:
        """Let readers find the candidate."""
        assert self._opened is not None, "staged before"
        with self._translated("written"):
            manage = self._opened.manage_snapshots()
            manage.set_current_snapshot(ref_name=CANDIDATE).remove_branch(CANDIDATE).commit()
            self._opened.refresh()

    @staticmethod
    def _commit(table: Any, files: TableFiles, marks: Mapping[str, str], main: Any) -> None:
        pyarrow_io = import_library("pyiceberg.io.pyarrow")
        known = _data_files(table, [main])
        wanted = {_to_location(uri) for uri in files.uris}
        new = sorted(wanted - known.keys())
        executor = import_library("pyiceberg.utils.concurrent").ExecutorFactory.get_or_create()
        read = pyarrow_io.parquet_file_to_data_file
        data_files = list(executor.map(lambda path: read(table.io, table.metadata, path), new))
        with table.transaction() as transaction:
            update = transaction.update_snapshot(snapshot_properties=dict(marks), branch=CANDIDATE)
            with update.overwrite() as producer:
                for data_file in data_files:
                    producer.append_data_file(data_file)
                for path in known.keys() - wanted:
                    producer.delete_data_file(known[path])

    @cached_property
    def _catalog(self) -> Any:
        return import_library("pyiceberg.catalog").load_catalog(self._catalog_name)

    def _load(self) -> Any:
        errors = import_library("pyiceberg.exceptions")
        try:
            return self._catalog.load_table(self.name)
        except (errors.NoSuchTableError, errors.NoSuchNamespaceError):
            return None

    def _create(self) -> Any:
        namespace = self.name.rpartition(".")[0]
        if not self._catalog.namespace_exists(namespace):
            self._catalog.create_namespace_if_not_exists(namespace)
        table = self._catalog.create_table(self.name, schema=SCHEMAS[self._table])
        mapping = table.schema().name_mapping.model_dump_json()
        with table.transaction() as transaction:  # parts have no ids of Iceberg in them
            transaction.set_properties(
                {_OUTPUT: self._output, "schema.name-mapping.default": mapping}
            )
        return table

    def _check(self) -> None:
        table, name = self._opened, self.name
        pyarrow_io = import_library("pyiceberg.io.pyarrow")
        wanted = pyarrow_io.visit_pyarrow(
            SCHEMAS[self._table], pyarrow_io._ConvertToIcebergWithoutIDs()
        )
        columns = {field.name: field for field in table.schema().fields}
        for field in wanted.fields:
            known = columns.pop(field.name, None)
            if known is None or str(known.field_type) != str(field.field_type):
                kind = "no such column" if known is None else str(known.field_type)
                raise UsageError(
                    f"The table {name} has another schema: {field.name} is {field.field_type} in "
                    f"results, and {kind} there.",
                    "Choose another name of tables; segcore creates them.",
                )
        if required := [field.name for field in columns.values() if field.required]:
            raise UsageError(f"The table {name} asks for the column {required[0]}, which results "
                             "lack.", "Choose another name of tables.")  # fmt: skip
        if not table.spec().is_unpartitioned():
            raise UsageError(f"The table {name} is partitioned, which results are not.",
                             "Choose another name of tables; segcore creates them.")  # fmt: skip
        owner = table.properties.get(_OUTPUT)
        if owner != self._output and (owner is not None or table.current_snapshot() is not None):
            rows = f"the rows of {redact(owner)}" if owner else "rows that segcore did not publish"
            raise UsageError(
                f"The table {name} holds {rows}.",
                "One pair of tables holds one output: choose another name.",
            )

    @staticmethod
    def _marks(snapshot: Any) -> Mapping[str, str]:
        summary = snapshot.summary.additional_properties if snapshot and snapshot.summary else {}
        return {name: value for name, value in summary.items() if name.startswith(_MARKS)}

    def _translated(self, verb: str) -> AbstractContextManager[None]:
        def describe(kind: str, reason: str) -> SegcoreError:
            what = f"The table {self.name} of the catalog {self._catalog_name} could not be {verb}"
            if any(word in kind for word in _DENIED):
                return AccessDenied(f"{what}: {reason}", "Ask for the right to write it.")
            return TableError(
                f"{what}: {kind}: {reason}",
                "See whether the catalog is there (pyiceberg --catalog NAME list), then run the "
                "same command again.",
            )

        return translate_errors(describe)


def _data_files(table: Any, snapshots: Iterable[Any]) -> dict[str, Any]:
    """Location -> DataFile of all that these snapshots refer to.

    From the manifests: a scan leaves out files without rows.
    """
    manifests = {
        manifest.manifest_path: manifest
        for snapshot in snapshots
        for manifest in snapshot.manifests(table.io)
    }
    return {
        entry.data_file.file_path: entry.data_file
        for manifest in manifests.values()
        for entry in manifest.fetch_manifest_entry(table.io)
    }


def _to_location(uri: str) -> str:
    return uri if is_remote(uri) else f"file://{uri}"


def _to_uri(location: str) -> str:
    return location.removeprefix("file://")
