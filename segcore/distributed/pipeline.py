"""The Ray Data graph: units in, one row about each committed part out.

In the layout `fused` everything about a unit happens inside one actor (read, decode, model,
commit), so nothing large passes through the object store. In `split`, the default on GPUs,
processes of their own read and decode, on CPUs that may be those of other machines, and prepared
images pass through the object store. The rows are messages to the driver; only storage records what
is done.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

from segcore.distributed import cluster
from segcore.distributed.actors import (
    ActorSpec,
    ReadActor,
    SegmentActor,
    UnitActor,
    UnitOutcome,
)
from segcore.distributed.bundles import Bundles, bundle_sizes, max_bundle_units
from segcore.distributed.graph_options import data_context, pool_options
from segcore.distributed.isolation import Isolator
from segcore.distributed.node_failures import ClusterView, NodeFailures, Verdict
from segcore.distributed.pool import PoolSize
from segcore.distributed.pool_failures import PoolFailed, find_broken_nodes
from segcore.distributed.progress import ProgressActor, ProgressSnapshot
from segcore.errors import ClusterError, SegcoreError, StorageError, StorageFull
from segcore.logs.relay import Entry
from segcore.output.metrics import Samples
from segcore.planning.plan import Units, select_units
from segcore.text import plural

# A dead actor is always replaced. Its unit is tried once more; then its images one by one.
_RESTART_OPTIONS: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 1}
_DEATHS_INTERVAL_S = 5.0
_SNAPSHOT_TIMEOUT_S = 5
_DRAIN_TIMEOUT_S = 10


@dataclass(frozen=True)
class _Stage:
    """One kind of actor in the graph.

    Attributes:
        pool_options: How many actors, and what each takes; see `pool_options`.
        extra_arguments: Of its constructor, besides those that all actors get.
    """

    actor: type
    pool_options: dict[str, Any]
    extra_arguments: Mapping[str, Any] = field(default_factory=dict)


class Pipeline:
    """Runs units through a pool of actors on the connected Ray.

    Args:
        retry_failed: The units are committed; segment their failed images again.
        taken_out: Node id -> why that node gets no more units; bad nodes are added.
        notify: Takes a sentence about each node that is taken out.
        export_metrics: To Prometheus, by Ray.
    """

    def __init__(
        self,
        spec: ActorSpec,
        pool: PoolSize,
        *,
        retry_failed: bool = False,
        taken_out: dict[str, str] | None = None,
        notify: Callable[[str], None] = lambda sentence: None,
        export_metrics: bool = False,
    ) -> None:
        import ray

        self._spec = spec
        self._pool = pool
        self._retry_failed = retry_failed
        self._nodes = NodeFailures(self._view, {} if taken_out is None else taken_out)
        self._notify = notify
        here = cluster.on_node(cluster.this_node())  # on others segcore may be missing
        actor = ray.remote(num_cpus=0, max_restarts=-1, **here)(ProgressActor)
        self._progress: Any = actor.remote(spec.edition.name if export_metrics else "")
        self._deaths_read_at = time.monotonic()
        self._failures: dict[str, UnitOutcome] = {}  # of the graph that runs

    def snapshot(self) -> ProgressSnapshot | None:
        """Progress so far; None when the `ProgressActor` does not answer in time."""
        import ray

        try:
            return ray.get(self._progress.snapshot.remote(), timeout=_SNAPSHOT_TIMEOUT_S)
        except Exception:  # progress is a convenience; it never ends a run
            return None

    def problems(self) -> list[str]:
        """What is wrong, each a few words, for the progress line."""
        problems = []
        failures = list(self._failures.values())
        if failures:
            problems.append(f"{plural(len(failures), 'unit')} not done: {failures[-1].error}")
        if taken_out := len(self._nodes.taken_out):
            problems.append(f"{plural(taken_out, 'node')} taken out")
        return problems

    def take_log(self) -> list[Entry]:
        """The log of the workers since the last call; nothing when nobody answers in time."""
        import ray

        try:
            entries: list[Entry] = ray.get(
                self._progress.take_log.remote(), timeout=_SNAPSHOT_TIMEOUT_S
            )
        except Exception:  # as above
            return []
        return entries

    def samples(self) -> Samples:
        """The metrics so far; {} when nobody answers in time."""
        import ray

        try:
            return dict(ray.get(self._progress.samples.remote(), timeout=_SNAPSHOT_TIMEOUT_S))
        except Exception:  # as above
            return {}

    def run(self, units: Units) -> Generator[UnitOutcome]:
        """Segment `units`, yielding outcomes as they come; one whose process died yields nothing.

        Raises:
            ClusterError: The pool as a whole cannot work.
            StorageError: Unit after unit failed, and no node is left that works.
            StorageFull: There is no room for the part of a unit.
        """
        self._measure("segcore_units_left", len(units))
        self._measure("segcore_nodes_taken_out", len(self._nodes.taken_out))
        # In `split`, what is read of a bundle would be in memory at once.
        max_units = 1 if self._pool.readers else max_bundle_units(units.table)
        yield from self._run_units(units, self._pool_stages, max_units)
        if len(units) >= self._pool.min_actors:
            self._take_out_silent()

    def _pool_stages(self, n_units: int) -> list[_Stage]:
        """The stages of a graph on the nodes that are left."""
        taken_out = self._nodes.taken_out
        pool = self._pool
        if taken_out:
            pool = pool.on_nodes([n for n in cluster.live_nodes() if n.node_id not in taken_out])
        min_actors = min(pool.min_actors, n_units)  # a second pass may have few
        options = pool_options(min_actors, pool.max_actors, pool, taken_out)
        if not pool.readers:
            return [_Stage(UnitActor, options)]
        readers = pool.reader_pool()
        reader_options = pool_options(readers.min_actors, readers.max_actors, readers, taken_out)
        return [_Stage(ReadActor, reader_options), _Stage(SegmentActor, options)]

    def isolate(self, units: Units) -> Iterator[UnitOutcome]:
        """As `run`, but image by image, for units that lost their process.

        See `segcore.distributed.isolation`.

        Raises:
            ClusterError, StorageError: See `run`.
        """

        def stages(n_units: int) -> list[_Stage]:
            # An isolator itself takes nothing; the processes that it starts have the pool's size.
            taken_out = self._nodes.taken_out
            options = pool_options(1, min(self._pool.max_actors, n_units), None, taken_out)
            arguments = {"pool": self._pool, "taken_out": tuple(taken_out)}
            return [_Stage(Isolator, options, extra_arguments=arguments)]

        yield from self._run_units(units, stages)

    def _run_units(
        self, units: Units, make_stages: Callable[[int], list[_Stage]], max_bundle: int = 1
    ) -> Iterator[UnitOutcome]:
        """Outcomes of all units; failures come last, for a unit may be done on another node.

        One graph does all of them: the pool starts once, and no unit waits for a slower one. Where
        a node is taken out, a graph without it goes on with what is left.
        """
        failures = self._failures = {}
        left = set(units.ids())
        while left:
            bad_node = None
            stages = make_stages(len(left))
            slots = self._pool.max_actors * self._pool.units_in_flight
            sizes = bundle_sizes(len(left), slots, max_bundle)
            bundles = Bundles(select_units(units, left).table, sizes)
            try:
                with closing(self._run_graph(bundles, stages)) as outcomes:
                    for outcome in outcomes:
                        if outcome.unit not in left:
                            continue  # told twice
                        left.remove(outcome.unit)
                        bad_node = self._judge(outcome)
                        if outcome.error:
                            failures[outcome.unit] = outcome
                        else:
                            yield outcome
                        if bad_node is not None:
                            break
            except PoolFailed:
                bad_node = self._take_out_broken()
                if bad_node is None:
                    raise
            if not left and bad_node is None:
                at_end = [self._take_out(node) for node in self._nodes.take_out_at_end()]
                bad_node = at_end[0] if at_end else None
            if bad_node is not None:
                left |= self._forget_failures_of_bad_nodes()
            elif max(sizes) > 1:
                max_bundle = 1  # the process died of one unit of a bundle: which one?
            else:
                break  # what is left lost its process
        yield from failures.values()

    def _forget_failures_of_bad_nodes(self) -> set[str]:
        """The units that failed on nodes that are taken out; others are to do them."""
        failures, taken_out = self._failures, self._nodes.taken_out
        again = {unit for unit, failure in failures.items() if failure.node in taken_out}
        for unit in again:
            del failures[unit]
        return again

    def _judge(self, outcome: UnitOutcome) -> str | None:
        """Count an outcome; returns the id of a node that is to be taken out.

        Raises:
            ClusterError, StorageError, StorageFull: See `run`.
        """
        if outcome.storage_full:  # all others would be computed in vain
            raise StorageFull(
                f"Stopped because there is no room for the results: {outcome.error}",
                hint="Make room, then rerun the same command to resume; finished units are "
                "not redone.",
            )
        if outcome.input_changed:
            return None
        if outcome.error:
            self._measure("segcore_unit_errors_total", 1)
            nodes = self._nodes
            record = nodes.record_setup_failure if outcome.setup_failed else nodes.record_failure
            verdict = record(outcome.node, outcome.error)
            if verdict is Verdict.STOP:
                raise self._outage(outcome)
            if verdict is Verdict.TAKE_NODE_OUT:
                return self._take_out(outcome.node)
        elif not outcome.needs_isolation:
            self._nodes.record_success(outcome.node)
        verdict, node = self._nodes.record_deaths(self._recent_deaths())
        return self._take_out(node) if verdict is Verdict.TAKE_NODE_OUT else None

    def _take_out(self, node: str) -> str:
        """Say that the node is taken out, and why; returns its id."""
        labels = {known.node_id: known.label() for known in cluster.all_nodes()}
        sentence = (
            f"Took {labels.get(node, f'node {node[:8]}')} out of the run; its units are done on "
            f"other nodes. What failed there: {self._nodes.taken_out[node]}"
        )
        self._nodes.taken_out[node] = sentence
        self._measure("segcore_nodes_taken_out", len(self._nodes.taken_out))
        self._notify(sentence)
        return node

    def _take_out_broken(self) -> str | None:
        """Take out the nodes on which actors cannot even begin; returns one, None if all can.

        Raises:
            ClusterError: They are all.
        """
        able = {node.node_id for node in cluster.live_nodes() if self._pool.fits_on(node)}
        able -= self._nodes.taken_out.keys()
        broken = find_broken_nodes(able, self._spec.code)
        if able and broken.keys() >= able:
            raise ClusterError(next(iter(broken.values())))
        self._take_out_all(broken)
        return next(iter(broken), None)

    def _take_out_all(self, broken: Mapping[str, str]) -> None:
        for node, error in broken.items():
            self._nodes.taken_out[node] = error
            self._take_out(node)

    def _take_out_silent(self) -> None:
        """Take out the nodes on which no actor could begin before the units ran out."""
        import ray

        with suppress(ray.exceptions.RayError):  # all units are through: nothing is lost by this
            nodes = cluster.live_nodes()
            if not self._pool.fills(nodes):
                return  # some may have nothing to do
            able = {node.node_id for node in nodes if self._pool.fits_on(node)}
            seen = ray.get(self._progress.nodes_seen.remote(), timeout=_SNAPSHOT_TIMEOUT_S)
            silent = able - seen - self._nodes.taken_out.keys()
            self._take_out_all(find_broken_nodes(silent, self._spec.code))

    def _outage(self, outcome: UnitOutcome) -> SegcoreError:
        """The error of a run that no node can go on with, after this outcome."""
        nodes = self._nodes
        before = " ".join(["", *nodes.taken_out.values()])
        if outcome.setup_failed:
            return ClusterError(f"{outcome.error}{before}")
        where = f" on {nodes.n_failing_nodes} nodes" if nodes.n_failing_nodes > 1 else ""
        return StorageError(
            f"Stopped after {nodes.n_consecutive} consecutive units failed{where}: "
            f"{outcome.error}{before}",
            hint="Fix the cause and rerun the same command to resume; finished units are not "
            "redone.",
        )

    def _measure(self, name: str, value: float) -> None:
        self._progress.measure.remote({(name, ""): value})

    def _view(self) -> ClusterView:
        """The nodes as they are now."""
        import ray

        nodes = cluster.live_nodes()
        able = frozenset(node.node_id for node in nodes if self._pool.fits_on(node))
        try:
            placements = ray.get(self._progress.placements.remote(), timeout=_SNAPSHOT_TIMEOUT_S)
        except Exception:  # it is being restarted
            placements = {}
        at_work = frozenset(placements.values()) & able
        return ClusterView(able, at_work if len(placements) >= self._pool.min_actors else able)

    def _recent_deaths(self) -> dict[str, int]:
        """Processes that died, by node; nothing if asked again within `_DEATHS_INTERVAL_S`."""
        import ray

        if time.monotonic() - self._deaths_read_at < _DEATHS_INTERVAL_S:
            return {}
        self._deaths_read_at = time.monotonic()
        try:
            return dict(ray.get(self._progress.deaths.remote(), timeout=_SNAPSHOT_TIMEOUT_S))
        except Exception:  # the next outcome asks again
            return {}

    def _run_graph(self, bundles: Bundles, stages: Sequence[_Stage]) -> Generator[UnitOutcome]:
        """Outcomes of the units in `bundles`, from one Ray Data graph with actors of its own."""
        import ray
        import ray.data

        constructor_arguments = {
            "spec": self._spec,
            "progress": self._progress,
            "retry_failed": self._retry_failed,
        }
        with ray.data.DataContext.current(data_context()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*ray_remote_args.*")  # no other way yet
            # `from_arrow` would start a task for each of them.
            dataset: ray.data.Dataset = ray.data.from_blocks(bundles)  # type: ignore[arg-type]
            for stage in stages:
                dataset = dataset.map_batches(
                    stage.actor,
                    batch_size=1,
                    batch_format="pyarrow",
                    fn_constructor_kwargs={**constructor_arguments, **stage.extra_arguments},
                    **stage.pool_options,
                    **_RESTART_OPTIONS,
                )
        try:
            table: Any
            for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                for row in table.to_pylist():  # `iter_rows` takes ten times as long
                    yield UnitOutcome(**row)
        except ray.exceptions.RayError as error:
            raise PoolFailed.because(error) from error
        finally:
            self._kill_actors()

    def _kill_actors(self) -> None:
        """End the actors of a graph.

        Ray forgets an actor that is being restarted at that moment. It would hold its CPUs or GPU
        until the driver ends, and the next graph could not start.
        """
        import ray
        from ray import cloudpickle

        try:
            for handle in ray.get(self._progress.drain.remote(), timeout=_DRAIN_TIMEOUT_S):
                ray.kill(cloudpickle.loads(handle), no_restart=True)
        except ray.exceptions.RayError:  # the cluster itself is going: nothing left to free
            return
