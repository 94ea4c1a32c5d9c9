"""The end of an execution is on record, however it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime

from segcore.errors import SegcoreError, describe_error
from segcore.lease.hold import heartbeat_options
from segcore.lease.lease import Lease
from segcore.output.executions import FAILED, INTERRUPTED, early_end, write_execution
from segcore.run.job import Job
from segcore.run.passes import RunState
from segcore.storage import Storage


@contextmanager
def record_early_end(job: Job, state: RunState, lease: Lease) -> Iterator[None]:
    """Write the history of an execution that ends by an exception, once it has begun to write.

    The storage gets little time for it: it may be what failed, or somebody pressed Ctrl-C.
    """
    try:
        yield
    except BaseException as error:
        if state.started is not None:
            cause = lease.lost or error
            status = INTERRUPTED if isinstance(cause, KeyboardInterrupt) else FAILED
            message = cause.message if isinstance(cause, SegcoreError) else describe_error(cause)
            ended = replace(state.started, finished=utc_now(), timings=state.timings)
            options = heartbeat_options(job.config.storage, job.config.run.lease_ttl_s)
            record = early_end(ended.to_dict(), status, "" if status == INTERRUPTED else message)
            with suppress(SegcoreError):
                write_execution(Storage(options), job.layout, record)
        raise


def utc_now() -> str:
    """The time for people and records: UTC, ISO 8601, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")
