"""The Ray Data graph: units in, one row about each committed part out.

In the layout `fused`, the default, everything about a unit happens inside one actor (read, decode,
model, commit), so nothing large passes through the object store. In `split` a stage of its own
reads and decodes, on CPUs that may be those of other machines, and prepared images pass through the
object store. The rows are messages to the driver; only storage records what is done.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from segcore.distributed.actors import (
    ActorSpec,
    ReadActor,
    SegmentActor,
    UnitActor,
    UnitOutcome,
)
from segcore.distributed.isolation import Isolator
from segcore.distributed.pool import PoolSize
from segcore.distributed.progress import ProgressActor, ProgressSnapshot
from segcore.errors import ClusterError, StorageError, StorageFull
from segcore.sources.unit_tables import units_to_table
from segcore.sources.units import Unit

# A dead actor is always replaced. Its unit is tried once more; then its images one by one.
_RESTART_OPTIONS: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 1}
MAX_CONSECUTIVE_FAILURES = 20  # units that fail without one success between: storage is gone
_SNAPSHOT_TIMEOUT_S = 5
_DRAIN_TIMEOUT_S = 10


@dataclass(frozen=True)
class _Stage:
    """One kind of actor in the graph.

    Attributes:
        pool_options: How many actors, and what each takes; see `_pool_options`.
        batch_format: Form of the batches that the actor gets.
    """

    actor: type
    pool_options: dict[str, Any]
    batch_format: str = "pyarrow"


class Pipeline:
    """Runs units through a pool of actors on the connected Ray.

    Args:
        units_per_wave: Units of one Ray Data graph; more units are run as several, in turn.
        retry_failed: The units are committed; segment their failed images again.
    """

    def __init__(
        self, spec: ActorSpec, pool: PoolSize, units_per_wave: int, *, retry_failed: bool = False
    ) -> None:
        import ray

        self._spec = spec
        self._pool = pool
        self._units_per_wave = units_per_wave
        self._retry_failed = retry_failed
        self._progress: Any = ray.remote(num_cpus=0, max_restarts=-1)(ProgressActor).remote()

    def snapshot(self) -> ProgressSnapshot | None:
        """Progress so far; None when the `ProgressActor` does not answer in time."""
        import ray

        try:
            return ray.get(self._progress.snapshot.remote(), timeout=_SNAPSHOT_TIMEOUT_S)
        except Exception:  # progress is a convenience; it never ends a run
            return None

    def run(self, units: Sequence[Unit]) -> Iterator[UnitOutcome]:
        """Segment `units`, yielding outcomes as they come; one whose process died yields nothing.

        Raises:
            ClusterError: The pool as a whole cannot work.
            StorageError: Unit after unit failed, and none succeeded.
            StorageFull: There is no room for the part of a unit.
        """
        pool = self._pool
        min_actors = min(pool.min_actors, len(units))  # a second pass may have few
        options = _pool_options(min_actors, pool.max_actors, pool)
        if not pool.readers:
            yield from self._run_waves(units, [_Stage(UnitActor, options)])
            return
        reader_options = _pool_options(pool.readers, pool.readers, pool.reader_pool())
        stages = [_Stage(ReadActor, reader_options), _Stage(SegmentActor, options, "numpy")]
        yield from self._run_waves(units, stages)

    def isolate(self, units: Sequence[Unit]) -> Iterator[UnitOutcome]:
        """As `run`, but image by image, for units that lost their process.

        See `segcore.distributed.isolation`.

        Raises:
            ClusterError, StorageError: See `run`.
        """
        # An isolator itself takes nothing; the processes that it starts have the pool's size.
        options = _pool_options(1, min(self._pool.max_actors, len(units)), None)
        yield from self._run_waves(units, [_Stage(Isolator, options)], pool=self._pool)

    def _run_waves(
        self, units: Sequence[Unit], stages: Sequence[_Stage], **extra_arguments: Any
    ) -> Iterator[UnitOutcome]:
        consecutive_failures = 0
        for start in range(0, len(units), self._units_per_wave):
            wave = units[start : start + self._units_per_wave]
            for outcome in self._run_wave(wave, stages, extra_arguments):
                if outcome.storage_full:  # all others would be computed in vain
                    raise StorageFull(
                        f"Stopped because there is no room for the results: {outcome.error}",
                        hint="Make room, then rerun the same command to resume; finished units are "
                        "not redone.",
                    )
                consecutive_failures = consecutive_failures + 1 if outcome.error else 0
                if consecutive_failures >= MAX_CONSECUTIVE_FAILURES:
                    raise StorageError(
                        f"Stopped after {consecutive_failures} consecutive units failed: "
                        f"{outcome.error}",
                        hint="Fix the cause and rerun the same command to resume; "
                        "finished units are not redone.",
                    )
                yield outcome

    def _run_wave(
        self, units: Sequence[Unit], stages: Sequence[_Stage], extra_arguments: dict[str, Any]
    ) -> Iterator[UnitOutcome]:
        import ray
        import ray.data

        constructor_arguments = {
            "spec": self._spec,
            "progress": self._progress,
            "retry_failed": self._retry_failed,
            **extra_arguments,
        }
        with ray.data.DataContext.current(_data_context()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*ray_remote_args.*")  # no other way yet
            blocks = [units_to_table([unit]) for unit in units]
            dataset: ray.data.Dataset = ray.data.from_arrow(blocks)
            for stage in stages:
                dataset = dataset.map_batches(
                    stage.actor,
                    batch_size=1,
                    batch_format=stage.batch_format,
                    fn_constructor_kwargs=constructor_arguments,
                    **stage.pool_options,
                    **_RESTART_OPTIONS,
                )
        try:
            for row in dataset.iter_rows():
                yield UnitOutcome(**row)
        except ray.exceptions.RayError as error:
            raise ClusterError(f"The actor pool failed: {_last_line(error)}") from error
        finally:
            self._kill_actors()

    def _kill_actors(self) -> None:
        """End the actors of a wave.

        Ray forgets an actor that is being restarted at that moment. It would hold its CPUs or GPU
        until the driver ends, and the next wave could not start.
        """
        import ray

        try:
            for actor in ray.get(self._progress.drain.remote(), timeout=_DRAIN_TIMEOUT_S):
                ray.kill(actor, no_restart=True)
        except ray.exceptions.RayError:  # the cluster itself is going: nothing left to free
            return


def _pool_options(min_actors: int, max_actors: int, pool: PoolSize | None) -> dict[str, Any]:
    """Arguments of `map_batches`: how many actors, and what each takes of the cluster.

    Args:
        pool: Size of one actor; None for actors that take no CPU.
    """
    from ray.data import ActorPoolStrategy

    units_in_flight = pool.units_in_flight if pool else 1
    return {
        # No unit is queued at an actor: it would wait behind a slow one, and share its death.
        "compute": ActorPoolStrategy(
            min_size=min_actors,
            max_size=max_actors,
            max_tasks_in_flight_per_actor=units_in_flight,
            max_concurrent_calls_per_actor=units_in_flight,
            enable_true_multi_threading=units_in_flight > 1,
        ),
        "num_cpus": pool.cpus if pool else 0,
        "num_gpus": (pool.gpus or None) if pool else None,
    }


def _data_context() -> Any:
    """Ray Data's settings for this graph: one unit is one block, and no output."""
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.target_max_block_size = None  # never split or merge units
    context.max_errored_blocks = -1  # a lost unit shows when the output is compared with the plan
    context.max_consecutive_actor_init_deaths = 2  # a lost machine is not a broken model
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    return context


def _last_line(error: BaseException) -> str:
    """What went wrong inside Ray, in one line: the last of the worker's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:500]
