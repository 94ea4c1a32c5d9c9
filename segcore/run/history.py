"""The end of an execution is on record, however it ends, with its log beside the record."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime

from segcore.errors import SegcoreError, describe_error
from segcore.lease.hold import heartbeat_options
from segcore.lease.lease import Lease
from segcore.logs.records import KEPT_ONLY
from segcore.output.execution_log import ExecutionLog
from segcore.output.executions import FAILED, INTERRUPTED, early_end, write_execution
from segcore.output.metrics import to_document
from segcore.output.report import RunReport
from segcore.run.account import MAX_ERRORS_KEPT
from segcore.run.job import Job
from segcore.run.passes import Notify, RunState
from segcore.storage import Storage
from segcore.text import join_counts, plural

_INTERRUPTED_MESSAGE = "Stopped by Ctrl-C or SIGTERM."
_LOGGER = logging.getLogger("segcore.run")


def log_and_tell(notify: Notify, level: int = logging.INFO) -> Notify:
    """A function that logs a sentence, and gives it to `notify`."""

    def tell(sentence: str) -> None:
        _LOGGER.log(level, "%s", sentence)
        notify(sentence)

    return tell


def open_log(log: ExecutionLog, job: Job, started: RunReport) -> None:
    """From now on, write the log of this execution to storage.

    The storage gets little time for a piece: it may be what failed, or somebody pressed Ctrl-C.
    """
    storage, layout, form = _hasty_storage(job), job.layout, job.config.log.format

    def write(number: int, piece: bytes) -> None:
        storage.write(layout.log_piece(started.execution, number, form), piece)

    log.open(write)


def log_end(report: RunReport) -> None:
    """The last line of the log of a run that came to count its output."""
    failed = f"{report.failed:,} failed"
    if report.failures:
        failed += f" ({join_counts(report.failures)})"
    _LOGGER.info(
        "Ended: %s; %s, %s; %s of %s missing; %s segmented this time.",
        report.status,
        plural(report.images, "image"),
        failed,
        f"{report.units_missing:,}",
        plural(report.units, "unit"),
        f"{report.images_this_time:,}",
        extra=KEPT_ONLY,
    )


@contextmanager
def record_early_end(job: Job, state: RunState, lease: Lease) -> Iterator[None]:
    """Write the history of an execution that ends by an exception, once it has begun to write."""
    try:
        yield
    except BaseException as error:
        if state.started is not None:
            cause = lease.lost or error
            status = INTERRUPTED if isinstance(cause, KeyboardInterrupt) else FAILED
            ended = replace(
                state.started,
                finished=utc_now(),
                timings=state.timings,
                metrics=to_document(state.samples),
            )
            record = early_end(ended.to_dict(), status, _errors(cause, state))
            _log_early_end(cause, record["errors"][0])
            if isinstance(cause, SegcoreError):
                cause.details = tuple(record["errors"][1:])
            with suppress(SegcoreError):
                write_execution(_hasty_storage(job), job.layout, record)
        raise
    finally:
        state.relay.finish()


def utc_now() -> str:
    """The time for people and records: UTC, ISO 8601, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _errors(cause: BaseException, state: RunState) -> list[str]:
    """Why the execution ended, and then a few errors of units."""
    if isinstance(cause, KeyboardInterrupt):
        message = _INTERRUPTED_MESSAGE
    else:
        message = cause.message if isinstance(cause, SegcoreError) else describe_error(cause)
    return list(dict.fromkeys([message, *state.errors.values()]))[:MAX_ERRORS_KEPT]


def _log_early_end(cause: BaseException, message: str) -> None:
    """The last line of the log; whoever started the run sees the error itself."""
    is_expected = isinstance(cause, SegcoreError | KeyboardInterrupt)
    level = logging.WARNING if isinstance(cause, KeyboardInterrupt) else logging.ERROR
    _LOGGER.log(level, "%s", message, exc_info=None if is_expected else cause, extra=KEPT_ONLY)


def _hasty_storage(job: Job) -> Storage:
    return Storage(heartbeat_options(job.config.storage, job.config.run.lease_ttl_s))
