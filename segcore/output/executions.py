"""Executions: each start of a run that wrote something, and how it ended.

The record of a run is that of its newest execution and is replaced by the next one. The history
has one record for each execution, which is written once, when it has ended. One that was killed
cannot write it: the next one does so in its place.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from segcore.errors import SegcoreError
from segcore.output.documents import read_document
from segcore.output.layout import EditionLayout
from segcore.output.report import RUNNING
from segcore.storage import Storage
from segcore.storage.uris import basename
from segcore.text import json_text, plural, printable

# How an execution ended that did not come to count the output; see also `RunReport.status`.
INTERRUPTED, FAILED, DIED = "interrupted", "failed", "died"

_DIED_MESSAGE = "The process of the run ended without a word: it was killed, or its machine died."

_REQUEST_THREADS = 8
_MAX_SHOWN_ERROR_CHARACTERS = 120
# What is known of an execution that ended early: it has not counted the output.
_EARLY_FIELDS = (
    "status", "execution", "log", "run", "edition", "input", "output", "prefix", "model",
    "sequence", "started", "finished", "timings", "units", "units_done_before", "pool", "errors",
)  # fmt: skip


@dataclass(frozen=True)
class Execution:
    """One execution, for people who look back.

    Attributes:
        status: How it ended: ``success`` and the others of a report, ``interrupted``, ``failed``
            or ``died``.
        images_this_time: Images that it segmented; None if it did not come to count them.
        error: Why it did not end well; "" if it did, or if that is not known.
    """

    execution: str
    run: str
    status: str
    started: str
    finished: str
    images_this_time: int | None
    error: str

    @classmethod
    def of_record(cls, execution: str, values: Mapping[str, Any]) -> Execution:
        """The execution that a record of the history describes."""
        errors = values.get("errors") or [""]
        images = values.get("images_this_time")
        return cls(
            execution=execution,
            run=str(values.get("run", "")),
            status=str(values.get("status", "unknown")),
            started=str(values.get("started", "")),
            finished=str(values.get("finished", "")),
            images_this_time=images if isinstance(images, int) else None,
            error=str(errors[0]) if isinstance(errors, list) else "",
        )

    def summary(self) -> str:
        """For people, one line."""
        n_images = self.images_this_time
        images = "" if n_images is None else f", {plural(n_images, 'image')}"
        error = printable(self.error)
        if len(error) > _MAX_SHOWN_ERROR_CHARACTERS:
            error = error[: _MAX_SHOWN_ERROR_CHARACTERS - 1] + "…"
        return f"{self.started}  {self.status}{images}{f': {error}' if error else ''}"


def new_execution_id() -> str:
    """``<UTC>-<8 hex digits>``: sorts by time, and never occurs twice."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def write_execution(storage: Storage, layout: EditionLayout, record: Mapping[str, Any]) -> None:
    """Write how an execution ended, unless its record exists already.

    Raises:
        StorageError: It cannot be written.
    """
    data = json_text(dict(record)).encode()
    storage.write_if_absent(layout.execution(str(record["execution"])), data)


def early_end(record: Mapping[str, Any], status: str, errors: Sequence[str] = ()) -> dict[str, Any]:
    """The record of an execution that ended before it counted the output.

    Args:
        record: What the execution wrote when it began; see `RunReport.to_dict`.
        errors: Why it ended, and what kept units from being committed.
    """
    known = {name: record[name] for name in _EARLY_FIELDS if name in record}
    return known | {"status": status, "errors": list(errors)}


def record_death(storage: Storage, layout: EditionLayout, record: Mapping[str, Any]) -> None:
    """Write the history of an execution that ended without doing so itself, if this is one.

    To be called by the next holder of the lease: then the execution is certainly over.

    Args:
        record: The newest record of a run in this edition.

    Raises:
        StorageError: It cannot be written.
    """
    if record.get("status") == RUNNING and record.get("execution"):
        write_execution(storage, layout, early_end(record, DIED, [_DIED_MESSAGE]))


def read_recent_executions(
    storage: Storage, layout: EditionLayout, count: int
) -> tuple[Execution, ...]:
    """The newest executions of an edition, newest first; records that cannot be read say so.

    Raises:
        StorageError: The history cannot be listed.
    """
    ids = [
        basename(info.uri).removesuffix(".json")
        for info, _ in storage.list_folder(layout.history_folder)
        if info.uri.endswith(".json")
    ]

    def read(execution: str) -> Execution:
        try:
            values = read_document(storage, layout.execution(execution))
        except SegcoreError as error:
            values = {"status": "unreadable", "errors": [error.message]}
        return Execution.of_record(execution, values)

    with ThreadPoolExecutor(_REQUEST_THREADS) as pool:
        return tuple(pool.map(read, sorted(ids, reverse=True)[:count]))
