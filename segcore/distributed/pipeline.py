"""The Ray Data graph: units in, one row about each committed part out.

In the layout `fused`, the default, everything of a unit happens inside one actor (read, decode,
model, commit), so nothing large passes the object store. In `split` a stage of its own reads and
decodes, on CPUs that may be those of other machines, and prepared images pass through the object
store. What a row says is a message to the driver; what is done stands in storage alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from segcore.distributed.actors import (
    ActorSpec,
    ProgressActor,
    ReadActor,
    SegmentActor,
    UnitActor,
    UnitOutcome,
)
from segcore.distributed.cluster import PoolSize
from segcore.distributed.isolation import Isolator
from segcore.distributed.progress import ProgressSnapshot
from segcore.errors import ClusterError, StorageError
from segcore.sources.unit_tables import units_to_table
from segcore.sources.units import Unit

# A dead actor is always replaced. Its unit is tried once more; then its images one by one.
RESTARTS: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 1}
MAX_FAILURES_IN_A_ROW = 20  # units that fail without one success between: storage is gone


@dataclass(frozen=True)
class _Stage:
    """One kind of actor of the graph.

    Attributes:
        size: How many, and what each takes; see `_size`.
        takes: Form of its batches.
    """

    actor: type
    size: dict[str, Any]
    takes: str = "pyarrow"


class Pipeline:
    """Runs units through a pool of actors on the connected Ray.

    Args:
        redo: The units are committed; segment their failed images again.
    """

    def __init__(
        self, spec: ActorSpec, pool: PoolSize, units_per_wave: int, *, retry_failed: bool = False
    ) -> None:
        import ray

        self._spec = spec
        self._pool = pool
        self._wave = units_per_wave
        self._retry_failed = retry_failed
        self._progress: Any = ray.remote(num_cpus=0, max_restarts=-1)(ProgressActor).remote()

    def snapshot(self) -> ProgressSnapshot | None:
        """Progress so far; None when the counter does not answer just now."""
        import ray

        try:
            return ray.get(self._progress.snapshot.remote(), timeout=5)
        except Exception:  # progress is a comfort; it never ends a run
            return None

    def run(self, units: Sequence[Unit]) -> Iterator[UnitOutcome]:
        """Segment `units`, yielding outcomes as they come; one whose process died yields nothing.

        Raises:
            ClusterError: The pool as a whole cannot work.
            StorageError: Unit after unit failed, and none succeeded.
        """
        pool = self._pool
        least = min(pool.min_actors, len(units))  # a second pass may have few
        size = _size(least, pool.max_actors, pool)
        if not pool.readers:
            yield from self._waves(units, [_Stage(UnitActor, size)])
            return
        readers = _size(pool.readers, pool.readers, pool.of_readers())
        stages = [_Stage(ReadActor, readers), _Stage(SegmentActor, size, "numpy")]
        yield from self._waves(units, stages)

    def isolate(self, units: Sequence[Unit]) -> Iterator[UnitOutcome]:
        """The same image by image, for units whose process died; see `segcore.distributed.isolation`.

        Raises:
            ClusterError, StorageError: See `run`.
        """
        pool = self._pool
        # What leads needs nothing itself; the processes that it starts are of the pool's size.
        size = _size(1, min(pool.max_actors, len(units)), None)
        yield from self._waves(units, [_Stage(Isolator, size)], pool=pool)

    def _waves(
        self, units: Sequence[Unit], stages: Sequence[_Stage], **extra: Any
    ) -> Iterator[UnitOutcome]:
        in_a_row = 0
        for start in range(0, len(units), self._wave):
            for outcome in self._wave_of(units[start : start + self._wave], stages, extra):
                in_a_row = in_a_row + 1 if outcome.error else 0
                if in_a_row >= MAX_FAILURES_IN_A_ROW:
                    raise StorageError(
                        f"Stopped after {in_a_row} units failed in a row: {outcome.error}",
                        hint="Mend the cause and run the same command again; "
                        "finished units are not redone.",
                    )
                yield outcome

    def _wave_of(
        self, units: Sequence[Unit], stages: Sequence[_Stage], extra: dict[str, Any]
    ) -> Iterator[UnitOutcome]:
        import ray
        import ray.data

        told = {
            "spec": self._spec,
            "progress": self._progress,
            "retry_failed": self._retry_failed,
            **extra,
        }
        with ray.data.DataContext.current(_context()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*ray_remote_args.*")  # no other way yet
            blocks = [units_to_table([unit]) for unit in units]
            dataset: ray.data.Dataset = ray.data.from_arrow(blocks)
            for stage in stages:
                dataset = dataset.map_batches(
                    stage.actor,
                    batch_size=1,
                    batch_format=stage.takes,
                    fn_constructor_kwargs=told,
                    **stage.size,
                    **RESTARTS,
                )
        try:
            for row in dataset.iter_rows():
                yield UnitOutcome(**row)
        except ray.exceptions.RayError as error:
            raise ClusterError(f"The actor pool failed: {_cause(error)}") from error
        finally:
            self._dismiss()

    def _dismiss(self) -> None:
        """End the actors of a wave. Ray forgets one that is just being restarted, and that one
        would hold its CPUs or GPU until the driver ends: the next wave could not start.
        """
        import ray

        try:
            for actor in ray.get(self._progress.drain.remote(), timeout=10):
                ray.kill(actor, no_restart=True)
        except ray.exceptions.RayError:  # the cluster itself is going: nothing left to free
            return


def _size(least: int, most: int, pool: PoolSize | None) -> dict[str, Any]:
    """How many actors, and what each takes of the cluster."""
    from ray.data import ActorPoolStrategy

    at_once = pool.units_in_flight if pool else 1
    return {
        # None is queued at an actor: it would wait behind a slow one, and share its death.
        "compute": ActorPoolStrategy(
            min_size=least,
            max_size=most,
            max_tasks_in_flight_per_actor=at_once,
            max_concurrent_calls_per_actor=at_once,
            enable_true_multi_threading=at_once > 1,
        ),
        "num_cpus": pool.cpus if pool else 0,
        "num_gpus": (pool.gpus or None) if pool else None,
    }


def _context() -> Any:
    """Ray Data's settings for this graph: one unit is one block, and no noise."""
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.target_max_block_size = None  # never split or merge units
    context.max_errored_blocks = -1  # a lost unit shows when output is compared with the plan
    context.max_consecutive_actor_init_deaths = 2  # a lost machine is not a broken model
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    return context


def _cause(error: BaseException) -> str:
    """What went wrong inside Ray, in one line: the last of the worker's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:500]
