"""The real `segcore.run.segment.segment` with its units segmented in this process, without Ray."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from segcore.errors import SegcoreError
from segcore.models.registry import load_model
from segcore.run.job import Job
from segcore.run.passes import Notify, Pass, RunState
from segcore.storage import Storage
from segcore.worker.read_options import ReadOptions
from segcore.worker.unit_worker import UnitWorker
from tests.support import serial_run

MAX_DECODED_BYTES = 1 << 24


@contextmanager
def without_ray() -> Iterator[None]:
    """Within the block, runs need no Ray."""
    with pytest.MonkeyPatch.context() as patch:
        serial_run.without_ray(patch, _run_passes)
        yield


def _run_passes(job: Job, passes: Sequence[Pass], state: RunState, notify: Notify) -> None:
    config = job.config
    model = load_model(config.model.name, config.model.options())
    options = ReadOptions(job.storage, config.source, config.decode, 1, MAX_DECODED_BYTES)
    worker = UnitWorker(model, options, job.parts)
    for current in passes:
        for unit in current.units_left(job, state):
            try:
                counts = worker.segment(unit, retry_failed=current.retry_failed)
            except SegcoreError as error:
                state.errors[unit.unit] = error.message
            else:
                state.done.add(unit.unit)
                job.counts.add_written(counts)


class ProcessKilled(BaseException):
    """Stands for the end of a process at this point."""


def _delete_one_by_one(storage: Storage, uris: Iterable[str]) -> None:
    for uri in list(uris):
        storage.delete(uri)


@contextmanager
def changes_made_by(make: Callable[[Callable[[], Any], str, str], Any]) -> Iterator[None]:
    """Within the block, each change of storage is left to `make`.

    Leases, which name a process, and logs, which a thread writes, are left out.

    Args:
        make: Called with what makes the change, the method's name, such as ``write`` or ``delete``,
            and the URI.
    """

    def watched(name: str) -> Callable[..., Any]:
        method = getattr(Storage, name)

        def change(storage: Storage, uri: str, *args: Any) -> Any:
            if "/lease/" in uri or threading.current_thread().name == "log":
                return method(storage, uri, *args)
            return make(partial(method, storage, uri, *args), name, uri)

        return change

    with pytest.MonkeyPatch.context() as patch:
        for name in ("write", "write_with", "write_if_absent", "delete"):
            patch.setattr(Storage, name, watched(name))
        patch.setattr(Storage, "delete_all", _delete_one_by_one)
        yield


@contextmanager
def killed_when(is_last: Callable[[int, str, str], bool]) -> Iterator[None]:
    """Within the block, a process dies before some change of storage; nothing changes after that.

    Args:
        is_last: Called with the number of changes so far, ``write`` or ``delete``, and the URI.
    """
    n_changes, is_dead = 0, False
    lock = threading.Lock()

    def make(change: Callable[[], Any], name: str, uri: str) -> Any:
        nonlocal n_changes, is_dead
        with lock:
            is_dead = is_dead or is_last(n_changes, name, uri)
            n_changes += 1
            if is_dead:
                raise ProcessKilled(uri)
            return change()

    with changes_made_by(make):
        yield
