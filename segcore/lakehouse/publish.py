"""Publishing an edition to its two tables, in an order that a death cannot harm.

First it is written down which files are registered, so that nothing deletes them; then each table
gets a candidate that readers do not see; the rows of both are counted; then readers find the new
instances, and last the new images. The next call finds what is done by marks in the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from segcore.lakehouse.delta import DeltaLakeTable
from segcore.lakehouse.files import TABLES, TableFiles, list_table_files
from segcore.lakehouse.iceberg import IcebergTable
from segcore.lakehouse.table import LakeTable
from segcore.lakehouse.target import DELTA, TableError, TableTarget
from segcore.output.layout import EditionLayout, OutputLayout, Table
from segcore.output.registered import pin_files, registering_tables
from segcore.output.run_records import RunRecord
from segcore.storage import Storage
from segcore.storage.uris import basename
from segcore.text import one_line


@dataclass(frozen=True)
class TablesReport:
    """What became of the tables.

    Attributes:
        url: Of both; the folder that has both Delta tables.
        changed: False if they held this execution of this edition already.
        images, instances: Rows.
        files: Files that they refer to.
    """

    url: str
    changed: bool
    images: int
    instances: int
    files: int

    def summary(self) -> str:
        """For people, one sentence."""
        verb = "hold" if self.changed else "held already"
        return (
            f"The tables {self.url} {verb} {self.images:,} images and {self.instances:,} "
            f"instances, in {self.files:,} files."
        )


def open_tables(
    storage: Storage, target: TableTarget, output: OutputLayout
) -> dict[Table, LakeTable]:
    """Both tables, checked; those that do not exist are created by the first commit.

    Raises:
        UsageError: One of them cannot hold the rows of this output.
        TableError: They cannot be reached.
        AccessDenied: They may not be read.
    """
    if target.is_delta:
        return {table: DeltaLakeTable(storage, table, output) for table in TABLES}
    return {table: IcebergTable(target, table, output.uri) for table in TABLES}


def describe_other_tables(
    storage: Storage, target: TableTarget | None, output: OutputLayout
) -> str:
    """Which tables hold rows of this output, and are not those that are published to; "" if none.

    Raises:
        StorageError: That cannot be found out.
    """
    others = set(registering_tables(storage, output))
    if any(True for _ in storage.list_folder(output.delta_log("images"))):
        others.add(DELTA)
    others -= {target.url if target else ""}
    if not others:
        return ""
    names = one_line(", ".join(sorted(others)), 300)
    return (
        f"Other tables of this output were left as they are: {names}. `segcore publish` "
        "with --to brings them up to date."
    )


def hold_execution(
    storage: Storage, target: TableTarget, layout: EditionLayout, record: RunRecord
) -> bool:
    """Whether readers of both tables find this execution of this edition; nothing is listed."""
    wanted = _marks(layout, record)
    tables = open_tables(storage, target, layout.output).values()
    return all(table.holds(wanted) for table in tables)


def publish_tables(
    storage: Storage,
    layout: EditionLayout,
    record: RunRecord,
    target: TableTarget,
    check_lease: Callable[[], None],
) -> TablesReport:
    """Let both tables hold the rows of a complete run; doing it twice changes nothing.

    The leases of the output and of the edition must be held.

    Raises:
        SegcoreError: It did not come so far; the next call goes on.
    """
    tables = open_tables(storage, target, layout.output)
    files = list_table_files(storage, layout, record)
    marks = {
        table: {**_marks(layout, record), "segcore.files": files[table].digest} for table in TABLES
    }
    stale = [table for table in TABLES if not tables[table].holds(marks[table])]
    check_lease()
    _pin(storage, layout, target, tables, files)
    if stale:
        for table in stale:
            check_lease()
            tables[table].stage(files[table], marks[table])
        _check_rows({table: tables[table] for table in stale}, files)
        for table in stale:
            check_lease()
            tables[table].forward()
    n_files = sum(len(files[table].uris) for table in TABLES)
    n_rows = {table: files[table].n_rows for table in TABLES}
    url = layout.output.delta_folder if target.is_delta else target.url
    return TablesReport(url, bool(stale), n_rows["images"], n_rows["instances"], n_files)


def _marks(layout: EditionLayout, record: RunRecord) -> dict[str, str]:
    return {
        "segcore.edition": layout.name,
        "segcore.run": record.run,
        "segcore.execution": str(record.values.get("execution", "")),
    }


def _pin(
    storage: Storage,
    layout: EditionLayout,
    target: TableTarget,
    tables: Mapping[Table, LakeTable],
    files: Mapping[Table, TableFiles],
) -> None:
    """Write down which files the tables refer to, or will; those that no version has are free."""
    uris = {uri for table in TABLES for uri in tables[table].pins(files[table])}
    if not uris:  # as of tables whose files have names of their own
        return
    output = layout.output
    by_edition: dict[str, list[str]] = {
        basename(folder): [] for folder in storage.folders(output.uri)
    }
    prefix = f"{output.uri}/"
    for uri in uris:
        if uri.startswith(prefix):
            by_edition.setdefault(uri.removeprefix(prefix).partition("/")[0], []).append(uri)
    for edition, pinned in by_edition.items():
        pin_files(storage, output.edition(edition), target.url, pinned)


def _check_rows(tables: Mapping[Table, LakeTable], files: Mapping[Table, TableFiles]) -> None:
    for table, staged in tables.items():
        if staged.staged_rows() != files[table].n_rows:
            found = staged.staged_rows()
            for candidate in tables.values():
                candidate.discard()
            raise TableError(
                f"The candidate of {staged.name} has {found:,} rows, but the run counted "
                f"{files[table].n_rows:,} {table}. Nothing was published.",
                "See what `segcore verify` says of the edition.",
            )
