"""What an edition's folder says about its runs: records and plans, without a model or Ray."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import DamagedOutput, SegcoreError, StorageError, describe_error
from segcore.output.documents import MAX_DOCUMENT_BYTES
from segcore.output.layout import EditionLayout
from segcore.output.plan_columns import read_plan_columns
from segcore.planning.plan import Plan, run_name
from segcore.planning.plan_files import decode_plan
from segcore.storage import ObjectTooLarge, Storage
from segcore.text import parse_json

_REQUEST_THREADS = 16
_MAX_PLAN_IN_MEMORY_BYTES = 32 << 20


@dataclass(frozen=True)
class RunRecord:
    """One file of ``runs/``.

    Attributes:
        uri: The file.
        changed: When it was last written, seconds since 1970 by the clock of the storage. While
            the run is in progress, that is when it began.
        run: Name of its plan.
        sequence: Orders the runs of an edition.
        status: ``running``, or how the run ended.
        input: URI of the archive.
        failed: Failed images.
        values: All that the file says; see `segcore.output.report.RunReport`.
    """

    uri: str
    changed: float
    run: str
    sequence: int
    status: str
    input: str
    failed: int
    values: dict[str, Any]

    @classmethod
    def parse(cls, uri: str, changed: float, data: bytes) -> RunRecord:
        """The record that a file holds.

        Raises:
            DamagedOutput: It is not a run record.
        """
        try:
            values = parse_json(data)
            return cls(
                uri=uri,
                changed=changed,
                run=str(values["run"]),
                sequence=int(values["sequence"]),
                status=str(values["status"]),
                input=str(values["input"]),
                failed=int(values["failed"]),
                values=values,
            )
        except (ValueError, KeyError, TypeError, OverflowError):
            raise DamagedOutput(
                f"{uri} is not a run record of segcore.", hint="Delete it and run again."
            ) from None


def read_run_records(storage: Storage, layout: EditionLayout) -> list[RunRecord]:
    """All runs of an edition, oldest first.

    Raises:
        DamagedOutput: A file in ``runs/`` is not a run record; names it.
    """
    files = [
        (info.uri, changed)
        for info, changed in storage.list_folder(layout.runs_folder)
        if info.uri.endswith(".json")
    ]

    def read(file: tuple[str, float]) -> RunRecord:
        uri, changed = file
        return RunRecord.parse(uri, changed, storage.read(uri, MAX_DOCUMENT_BYTES))

    with ThreadPoolExecutor(_REQUEST_THREADS) as pool:
        return sorted(pool.map(read, files), key=lambda record: record.sequence)


def read_newest_run(storage: Storage, layout: EditionLayout) -> RunRecord | None:
    """The newest run of an edition; None when there is none.

    Raises:
        DamagedOutput: See `read_run_records`.
    """
    records = read_run_records(storage, layout)
    return records[-1] if records else None


def read_run_record(storage: Storage, layout: EditionLayout, run: str) -> RunRecord:
    """The record of one run, by its name; `changed` is 0.

    Raises:
        ObjectNotFound: There is none.
        DamagedOutput: It is not a run record.
    """
    uri = layout.run_record(run)
    return RunRecord.parse(uri, 0.0, storage.read(uri, MAX_DOCUMENT_BYTES))


def read_plan(storage: Storage, layout: EditionLayout, run: str) -> Plan:
    """The stored plan of a run.

    Raises:
        ObjectNotFound: It does not exist.
        SegcoreError: It is damaged.
    """
    uri = layout.plan(run)
    try:
        plan = decode_plan(storage.read(uri, _MAX_PLAN_IN_MEMORY_BYTES), uri)
    except ObjectTooLarge:  # of millions of images
        with storage.open(uri) as file:
            plan = decode_plan(file, uri)
    if plan.run != run:
        raise SegcoreError(f"{uri} is the plan of another run, {plan.run}.")
    return plan


def read_planned_ids(storage: Storage, layout: EditionLayout, run: str) -> set[str]:
    """The ids of the units of a run, without the rest of its plan.

    Raises:
        ObjectNotFound: The plan does not exist.
        StorageError: It is damaged.
    """
    uri = layout.plan(run)
    try:
        with storage.open(uri) as file:
            return set(pq.ParquetFile(file).read(["unit"])["unit"].to_pylist())
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise StorageError(f"{uri} cannot be read: {describe_error(error, 200)}") from None


def read_planned_sizes(storage: Storage, layout: EditionLayout, run: str) -> pa.Table:
    """Columns ``unit``, ``n_images`` and ``n_bytes`` of a plan, without its images.

    Raises:
        ObjectNotFound: The plan does not exist.
        SegcoreError: It is damaged.
    """
    uri = layout.plan(run)
    try:
        units = read_plan_columns(storage, uri, ["unit", "n_images", "n_bytes"])
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise StorageError(f"{uri} cannot be read: {describe_error(error, 200)}") from None
    if run_name(units) != run:
        raise SegcoreError(f"{uri} is damaged: its units do not match its name.")
    return units.replace_schema_metadata(None)
