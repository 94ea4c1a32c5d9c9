"""The passes of a run over the units that are left: Ray, the pool, and what became of each unit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from segcore.distributed import cluster
from segcore.distributed.pool import PoolSize, size_pool
from segcore.distributed.progress_line import ProgressGoal
from segcore.distributed.watch import watch
from segcore.errors import UsageError
from segcore.logs.relay import LogRelay
from segcore.output.metrics import Samples, merge
from segcore.output.report import RunReport
from segcore.output.unit_counts import UnitCounts
from segcore.planning.plan import Units, remaining_units, select_units
from segcore.run.budget import Budget
from segcore.run.job import Job
from segcore.sources import SourceOptions
from segcore.text import plural
from segcore.worker.read_options import ReadOptions

if TYPE_CHECKING:
    from segcore.distributed.actors import ActorSpec, UnitOutcome
    from segcore.distributed.pipeline import Pipeline

Notify = Callable[[str], None]

# On a GPU one batch is in the network while another is in its masks. On a CPU, where a forward
# pass uses one thread, there may be one batch for each core.
_CONCURRENT_BATCHES = {"cuda": 2, "mps": 1}
_GPU_READ_THREADS = 64


@dataclass
class RunState:
    """What has happened so far in a run.

    Attributes:
        timings: Seconds of each step.
        errors: Unit -> why it was not committed.
        done: Units that an actor has committed.
        retry_failed, remove_unlisted: What was asked for, see `segcore.run.segment.segment`.
        carried: Units whose results existed already, in the parts of other units.
        reread: Unit -> its images before its shard was read again.
        retried: Unit -> its failed images before they were tried again.
        ray: Which Ray is used, for people.
        pool: The workers, for people.
        runtimes: What they compute with, for people.
        started: The record with which the run began; None before it writes anything.
        nodes_taken_out: Node of the cluster -> why it got no more units, for people.
        check_lease: Raises once this run may not go on.
        warn: Says what is wrong, to people and to the log.
        relay: Logs what the workers log.
        samples: The metrics of the passes that have ended.
        budget: How much this run may do.
    """

    retry_failed: bool = False
    remove_unlisted: bool = False
    timings: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    carried: set[str] = field(default_factory=set)
    reread: dict[str, int] = field(default_factory=dict)
    retried: dict[str, int] = field(default_factory=dict)
    ray: str = ""
    pool: str = ""
    runtimes: set[str] = field(default_factory=set)
    started: RunReport | None = None
    nodes_taken_out: dict[str, str] = field(default_factory=dict)
    check_lease: Callable[[], None] = lambda: None
    warn: Notify = lambda text: None
    relay: LogRelay = field(default_factory=LogRelay)
    samples: Samples = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the seconds of the block to `timings`."""
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            self.timings[step] = round(self.timings.get(step, 0.0) + seconds, 3)

    def record(self, outcome: UnitOutcome) -> None:
        """Remember what became of a unit; a success forgets earlier errors."""
        if outcome.runtime:
            self.runtimes.add(outcome.runtime)
        if outcome.error:
            self.errors[outcome.unit] = outcome.error
        elif not outcome.needs_isolation:
            self.errors.pop(outcome.unit, None)
            self.done.add(outcome.unit)


@dataclass(frozen=True)
class Pass:
    """Units to work through: of the plan those that the budget of the run has room for.

    Attributes:
        retry_failed: They are committed; only their failed images are segmented again.
    """

    units: Units
    retry_failed: bool = False

    def units_left(self, job: Job, state: RunState) -> Units:
        """Those that are still to be done.

        What counts is what lies in storage, not what the actors reported. Only of a retried unit
        storage does not tell. Units of the plan that are not in this pass stay for other runs.
        """
        if self.retry_failed:
            return select_units(self.units, set(self.units.ids()) - state.done)
        return remaining_units(self.units, job.parts.committed_units())


@contextmanager
def connect_workers(job: Job, max_units: int, state: RunState) -> Iterator[PoolSize]:
    """A connection to Ray for the block, and the pool for this many units on its nodes.

    Raises:
        ClusterError: Ray cannot be reached, or has too few resources.
        UsageError: The options that size the pool contradict each other.
    """
    options = job.config.ray
    with ExitStack() as stack:
        with state.timed("start_ray"):
            target = stack.enter_context(cluster.connected(options))
            nodes = cluster.live_nodes()
            state.ray = state.ray or target.describe(nodes)  # the first connection knows
            pool = size_pool(options, job.config.model.device, max_units, nodes)
        _check_precision(job, pool)
        yield pool


def _check_precision(job: Job, pool: PoolSize) -> None:
    """Refuse float16 on CPUs before any worker is started.

    Raises:
        UsageError: The workers would compute in it, and have no GPU.
    """
    if job.model.options.precision != "float16" or pool.device == "cuda":
        return
    why = job.model.precision_reason or "model.precision is float16."
    raise UsageError(
        f"{why} But the workers have no GPU ({pool.summary()}), and on a CPU float16 is several "
        "times slower than float32.",
        hint="Use --device cuda where there are GPUs, or model.precision=float32, whose results "
        "are an edition of their own.",
    )


def run_passes(job: Job, passes: Sequence[Pass], state: RunState, notify: Notify) -> None:
    """Work through `passes` until each unit is done or its attempts are used up.

    Raises:
        ClusterError: Ray cannot be reached, or the pool as a whole cannot work.
        StorageError: Unit after unit failed.
    """
    from segcore.distributed.pipeline import Pipeline

    max_units = max(len(current.units) for current in passes)
    with connect_workers(job, max_units, state) as pool:
        notify(state.ray)
        state.pool = pool.summary()
        notify(f"Working with {state.pool}.")
        spec = _actor_spec(job, pool)
        state.budget.pay_workers(pool.max_actors)
        for current in passes:
            pipeline = Pipeline(
                spec,
                pool,
                retry_failed=current.retry_failed,
                taken_out=state.nodes_taken_out,
                notify=state.warn,
                export_metrics=job.config.metrics.export,
            )
            goal = _progress_goal(current.units)
            watched = watch(pipeline, goal, state.relay, job.config.log)
            try:
                with watched, state.timed("segment"):
                    _run_attempts(job, current, pipeline, state)
            finally:
                merge(state.samples, pipeline.samples())
            if state.budget.is_over():
                break
        state.budget.pay_workers(0)


def _run_attempts(job: Job, current: Pass, pipeline: Pipeline, state: RunState) -> None:
    units = current.units
    for _ in range(job.config.run.attempts):
        units_with_error = set()
        with closing(pipeline.run(units)) as outcomes:
            for outcome in outcomes:
                _record(job, state, outcome)
                if outcome.error:
                    units_with_error.add(outcome.unit)
                if state.budget.is_over():
                    return
        state.check_lease()
        units = current.units_left(job, state)
        lost_units = select_units(units, set(units.ids()) - units_with_error)
        if lost_units:
            state.warn(
                f"The worker process died or ran out of memory on "
                f"{plural(len(lost_units), 'unit')}; trying the images one by one."
            )
            for outcome in pipeline.isolate(lost_units):
                _record(job, state, outcome)
            state.check_lease()
            units = current.units_left(job, state)
        if not units:
            break


def _record(job: Job, state: RunState, outcome: UnitOutcome) -> None:
    state.record(outcome)
    if outcome.counts:
        job.counts.add(UnitCounts.from_text(outcome.counts))


def _actor_spec(job: Job, pool: PoolSize) -> ActorSpec:
    """What every actor of `pool` needs to know."""
    from segcore.distributed.actors import ActorSpec

    config = job.config
    return ActorSpec(
        model=config.model.name,
        weights=job.model.weights,
        edition=job.edition,
        options=job.model.options.model_copy(update={"device": pool.device}),
        read_options=ReadOptions(
            storage=job.storage,
            source=source_options_for_pool(config.source, pool),
            decode=config.decode,
            threads=config.ray.decode_threads or pool.decode_threads,
            max_decoded_bytes=config.ray.max_decoded_bytes,
            image_timeout_s=config.run.image_timeout_s,
        ),
        parts=job.parts,
        max_concurrent_batches=_CONCURRENT_BATCHES.get(pool.device, pool.threads),
        max_bytes=config.ray.max_actor_bytes,
        cpus_per_process=min(pool.cpus, pool.cpus_per_reader) if pool.readers else pool.cpus,
        max_processes=pool.max_actors + pool.readers,
        gpu_share=pool.gpus,
        log_level=config.log.kept_level,
    )


def source_options_for_pool(options: SourceOptions, pool: PoolSize) -> SourceOptions:
    """Reading options for the workers of `pool`.

    A GPU needs more images per second than as many concurrent requests as suit a CPU can deliver.
    """
    if options.read_threads or pool.device == "cpu":
        return options
    return options.model_copy(update={"read_threads": _GPU_READ_THREADS})


def _progress_goal(units: Units) -> ProgressGoal:
    images = units.table["n_images"]
    return ProgressGoal(
        images=None if images.null_count else pc.sum(images).as_py(),
        units=len(units),
        bytes=pc.sum(units.table["n_bytes"]).as_py(),
    )
