"""The check of many units at once, as tasks on the connected Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from segcore.errors import ClusterError, SegcoreError
from segcore.inspection.unit_checks import CommittedUnit, UnitCheck, UnitChecker
from segcore.inspection.verify import CheckBatches

_MAX_RETRIES = 3  # of a task whose process died
_TASKS_PER_CPU = 2  # one runs, one waits
_MIN_TASKS = 4


def check_on_ray(threads: int) -> CheckBatches:
    """Checks units in tasks of one CPU each, each task this many units at once.

    Raises:
        ClusterError: A task cannot be done.
    """
    return partial(_check_batches, threads)


def _check_batches(
    threads: int, checker: UnitChecker, batches: Iterable[Sequence[CommittedUnit]]
) -> Iterator[list[UnitCheck]]:
    import ray

    task = ray.remote(num_cpus=1, max_retries=_MAX_RETRIES)(_check_batch)
    shared_checker = ray.put(checker)
    running: list[Any] = []
    for batch in batches:
        running.append(task.remote(shared_checker, batch, threads))
        while len(running) >= _max_tasks():
            yield _take_next(running)
    while running:
        yield _take_next(running)


def _max_tasks() -> int:
    """Tasks in flight: results wait in memory, and the cluster may grow and shrink."""
    import ray

    return max(_MIN_TASKS, _TASKS_PER_CPU * int(ray.cluster_resources().get("CPU", 1)))


def _take_next(running: list[Any]) -> list[UnitCheck]:
    """The result of the task that ends first, which leaves `running`."""
    import ray

    (done,), running[:] = ray.wait(running, num_returns=1)
    try:
        checks: list[UnitCheck] = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        cause = error.as_instanceof_cause()
        if isinstance(cause, SegcoreError):
            raise cause from None
        raise
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"Units could not be checked on the cluster: {' '.join(str(error).split())[:300]}",
            "Run the same command again; with fewer --threads each task needs less memory.",
        ) from None
    return checks


def _check_batch(
    checker: UnitChecker, batch: Sequence[CommittedUnit], threads: int
) -> list[UnitCheck]:
    return checker.check_all(batch, threads)
