"""The passes of a run over the units that are left: Ray, the pool, and what became of each unit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from segcore.distributed import cluster
from segcore.distributed.pool import PoolSize, size_pool
from segcore.distributed.progress import ProgressGoal, show_progress
from segcore.planning.plan import Units, remaining_units, select_units
from segcore.run.job import Job
from segcore.sources import SourceOptions
from segcore.worker.read_options import ReadOptions

if TYPE_CHECKING:
    from segcore.distributed.actors import ActorSpec, UnitOutcome
    from segcore.distributed.pipeline import Pipeline

Notify = Callable[[str], None]

# On a GPU one batch is in the network while another is in its masks; on a CPU each pass has one
# thread, so that there may be one for each core.
_LANES = {"cuda": 2, "mps": 1}
_GPU_READ_THREADS = 64


@dataclass
class RunState:
    """What happens while a run goes on.

    Attributes:
        errors: Unit -> why it was not committed.
        done: Units that an actor has committed.
        withdrawn: Units whose parts were deleted, as their input changed.
        carried: Units whose results were there already, in the parts of other units.
        retried: Unit -> its failed images before they were tried again.
        check: Raises once this run may not go on.
    """

    timings: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    units_deleted: int = 0
    carried: set[str] = field(default_factory=set)
    retried: dict[str, int] = field(default_factory=dict)
    pool: str = ""
    check: Callable[[], None] = lambda: None

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the seconds of the block to `timings`."""
        began = time.monotonic()
        try:
            yield
        finally:
            took = time.monotonic() - began
            self.timings[step] = round(self.timings.get(step, 0.0) + took, 3)

    def note(self, outcome: UnitOutcome) -> None:
        """Remember what became of a unit; a success forgets earlier errors."""
        if outcome.error:
            self.errors[outcome.unit] = outcome.error
        elif not outcome.needs_isolation:
            self.errors.pop(outcome.unit, None)
            self.done.add(outcome.unit)


@dataclass(frozen=True)
class Pass:
    """Units to work through.

    Attributes:
        redo: They are committed; only their failed images are segmented again.
    """

    units: Units
    retry_failed: bool = False

    def left(self, job: Job, course: RunState) -> Units:
        """Those that are still to be done: what counts is what lies in storage, not what the
        actors said; only of a redone unit storage does not tell.
        """
        if self.retry_failed:
            return select_units(self.units, set(self.units.ids()) - course.done)
        return remaining_units(job.plan, job.parts.committed())


def run_passes(job: Job, tasks: Sequence[Pass], course: RunState, notify: Notify) -> None:
    """Work through `tasks` until each unit is done or its attempts are used up.

    Raises:
        ClusterError: Ray cannot be had, or the pool as a whole cannot work.
        StorageError: Unit after unit failed.
    """
    from segcore.distributed.pipeline import Pipeline

    options = job.config.ray
    most = max(len(task.units) for task in tasks)
    with ExitStack() as stack:
        with course.timed("start_ray"):
            stack.enter_context(cluster.connected(options))
            pool = size_pool(options, job.config.model.device, most, cluster.live_nodes())
        course.pool = pool.summary()
        notify(f"Working with {course.pool}.")
        spec = _spec(job, pool)
        for task in tasks:
            pipeline = Pipeline(spec, pool, options.units_per_wave, retry_failed=task.retry_failed)
            with show_progress(pipeline.snapshot, _goal(task.units)), course.timed("segment"):
                _attempts(job, task, pipeline, course, notify)


def _attempts(job: Job, task: Pass, pipeline: Pipeline, course: RunState, notify: Notify) -> None:
    units = task.units
    for _ in range(job.config.run.attempts):
        said = set()
        for outcome in pipeline.run(units):
            course.note(outcome)
            if outcome.error:
                said.add(outcome.unit)
        course.check()
        units = task.left(job, course)
        lost = select_units(units, set(units.ids()) - said)
        if lost:
            notify(
                f"{len(lost):,} units lost their process; looking for the image that is to blame."
            )
            for outcome in pipeline.isolate(lost):
                course.note(outcome)
            course.check()
            units = task.left(job, course)
        if not units:
            break


def _spec(job: Job, pool: PoolSize) -> ActorSpec:
    """What every actor of `pool` is told."""
    from segcore.distributed.actors import ActorSpec

    config = job.config
    return ActorSpec(
        model=config.model.name,
        weights=job.weights,
        weights_sha256=job.info.weights_sha256,
        options=config.model.options().model_copy(update={"device": pool.device}),
        read_options=ReadOptions(
            storage=job.storage,
            source=source_for(config.source, pool),
            decode=config.decode,
            threads=config.ray.decode_threads or pool.decode_threads,
            max_decoded_bytes=config.ray.max_decoded_bytes,
            image_timeout_s=config.run.image_timeout_s,
        ),
        parts=job.parts,
        max_concurrent_batches=_LANES.get(pool.device, pool.threads),
        max_bytes=config.ray.max_actor_bytes if pool.device == "cpu" else None,
    )


def source_for(options: SourceOptions, pool: PoolSize) -> SourceOptions:
    """A GPU takes many more images a second than come by the requests that a CPU makes at once."""
    if options.read_threads or pool.device == "cpu":
        return options
    return options.model_copy(update={"read_threads": _GPU_READ_THREADS})


def _goal(units: Units) -> ProgressGoal:
    images = units.table["n_images"]
    return ProgressGoal(
        images=None if images.null_count else pc.sum(images).as_py(),
        units=len(units),
        bytes=pc.sum(units.table["n_bytes"]).as_py(),
    )
