"""The real `segcore.run.segment.segment` with its units segmented in this process, without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

import segcore.run.segment
from segcore.errors import SegcoreError
from segcore.models.registry import load_model
from segcore.run.job import Job
from segcore.run.passes import Notify, Pass, RunState
from segcore.storage import Storage
from segcore.worker.read_options import ReadOptions
from segcore.worker.unit_worker import UnitWorker

MAX_DECODED_BYTES = 1 << 24


@contextmanager
def without_ray() -> Iterator[None]:
    """Within the block, runs need no Ray."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segcore.run.segment, "run_passes", _run_passes)
        yield


def _run_passes(job: Job, passes: Sequence[Pass], state: RunState, notify: Notify) -> None:
    config = job.config
    model = load_model(config.model.name, config.model.options())
    options = ReadOptions(job.storage, config.source, config.decode, 1, MAX_DECODED_BYTES)
    worker = UnitWorker(model, options, job.parts)
    for current in passes:
        for unit in current.units_left(job, state):
            try:
                worker.segment(unit, retry_failed=current.retry_failed)
            except SegcoreError as error:
                state.errors[unit.unit] = error.message
            else:
                state.done.add(unit.unit)


class ProcessKilled(BaseException):
    """Stands for the end of a process at this point."""


@contextmanager
def killed_after(n_changes: int) -> Iterator[list[str]]:
    """Within the block, a process dies once it has changed storage this often.

    From then on nothing is written or deleted; leases, which name a process, are left out.

    Yields:
        What was written or deleted; longer than `n_changes` never.
    """
    changes: list[str] = []

    def counted(method):
        def change(self: Storage, uri: str, *args):
            if "/lease/" not in uri:
                if len(changes) == n_changes:
                    raise ProcessKilled(uri)
                changes.append(uri)
            return method(self, uri, *args)

        return change

    with pytest.MonkeyPatch.context() as patch:
        for name in ("write", "write_if_absent", "delete"):
            patch.setattr(Storage, name, counted(getattr(Storage, name)))
        yield changes
