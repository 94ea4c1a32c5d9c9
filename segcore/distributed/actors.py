"""The actors of the pool: processes that hold a model and work on one unit per call."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Generic, TypeVar

import pyarrow as pa

from segcore.distributed import cluster
from segcore.distributed.code_version import code_version
from segcore.distributed.prepared_units import Packer, unpack
from segcore.distributed.progress import ProgressReporter
from segcore.distributed.worker_logs import collect_log
from segcore.errors import (
    ClusterError,
    ObjectChanged,
    SegcoreError,
    StorageFull,
    describe_error,
)
from segcore.logs.faults import fault_key
from segcore.models.base import Model, ModelOptions
from segcore.models.registry import load_model, probe_model
from segcore.models.torch_runtime import (
    describe_runtime,
    limit_device_memory,
    peak_device_memory_bytes,
    use_one_thread,
)
from segcore.output.edition import Edition, make_edition
from segcore.output.edition_changes import describe_differences
from segcore.output.part_counts import PartCounts
from segcore.output.parts import Parts
from segcore.output.unit_counts import UnitCounts
from segcore.sources.unit_tables import units_from_table
from segcore.sources.units import Unit
from segcore.worker import memory
from segcore.worker.batch_size import fit_batch_size
from segcore.worker.batching import DeviceLost
from segcore.worker.measures import MEASURES
from segcore.worker.preprocessing import PreparedSample
from segcore.worker.read_options import ReadOptions
from segcore.worker.unit_worker import HostOutOfMemory, Remarks, UnitReader, UnitWorker

Worker = TypeVar("Worker")
_SETUP_FAILURE_PAUSE_S = 2.0
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class ActorSpec:
    """What an actor needs to set itself up.

    Attributes:
        model: Name or path of the model, as `load_model` takes it.
        weights: Bytes of the checkpoint, or None when the name is enough.
        edition: As the driver knows it. Each worker must come to the same, or results would depend
            on the machine.
        max_concurrent_batches: Batches in the model at once, where the model allows it.
        max_bytes: Memory that a process on a CPU may take (its data segment); None: its share of
            the node's memory.
        cpus_per_process: CPUs that each process takes, at least.
        max_processes: Most processes of the pool.
        gpu_share: GPUs of each process; below 1 it takes no more than that share of the memory.
        log_level: Least severe records that the log of the run wants.
        code: The driver's `code_version`.
    """

    model: str
    weights: bytes | None = field(repr=False)
    edition: Edition
    options: ModelOptions
    read_options: ReadOptions
    parts: Parts
    max_concurrent_batches: int = 1
    max_bytes: int | None = None
    cpus_per_process: float = 1.0
    max_processes: int = 1
    gpu_share: float = 0.0
    log_level: int = logging.INFO
    code: str = field(default_factory=code_version)

    def reporter(self, progress: Any) -> ProgressReporter:
        """The way of this process to the `ProgressActor`, for its progress and its log."""
        return ProgressReporter(progress, self.max_processes, collect_log(self.log_level))


@dataclass(frozen=True)
class UnitOutcome:
    """What became of a unit: one row of the pipeline's output.

    Attributes:
        unit: Its id.
        ok, failed, instances: Its counts; 0 when it was not committed.
        counts: All its counts with the part that has them, as `UnitCounts.to_text`; "" when it
            was not committed or the part was there before.
        error: Why it was not committed; "" when it was, or when `needs_isolation`.
        needs_isolation: Not committed: its images must be tried one by one.
        storage_full: Not committed because there is no room for its part; nor will there be for
            others.
        input_changed: Not committed because its input changed, for which no node is to blame.
        setup_failed: Not committed because the worker could not be set up on its node.
        node: Id of the node that worked on it; of the one at fault, if there is an error.
        runtime: What the worker computes with, for people.
    """

    unit: str
    ok: int = 0
    failed: int = 0
    instances: int = 0
    counts: str = ""
    error: str = ""
    needs_isolation: bool = False
    storage_full: bool = False
    input_changed: bool = False
    setup_failed: bool = False
    node: str = ""
    runtime: str = ""


class UnitActor:
    """Holds the model; called with one unit at a time."""

    def __init__(self, spec: ActorSpec, progress: Any, retry_failed: bool) -> None:
        self._node = register_current_actor(progress)
        self._progress = spec.reporter(progress)
        self._retry_failed = retry_failed
        # Ray gives a new process the bundle of the one that died, whose first units may be done.
        self._finds_units_done = was_restarted() and not retry_failed
        self._parts = spec.parts
        self._runtime = ""
        self._device = spec.options.device
        self._setup = WorkerSetup(lambda: self._make_worker(spec))
        self._progress.flush()

    def _make_worker(self, spec: ActorSpec) -> UnitWorker:
        model = load_worker_model(spec)
        self._runtime = describe_runtime(spec.options.device, model)
        return UnitWorker(model, spec.read_options, spec.parts, spec.max_concurrent_batches)

    def __call__(self, batch: pa.Table) -> dict[str, list]:
        """Segment the units of a batch (a bundle) and return what became of them."""
        outcomes = [self._run(unit, UnitWorker.segment) for unit in units_from_table(batch)]
        self._measure_memory()
        self._progress.flush()
        return outcomes_to_columns(outcomes)

    def _measure_memory(self) -> None:
        if (n_bytes := peak_device_memory_bytes(self._device)) is not None:
            MEASURES.peak("segcore_gpu_memory_peak_bytes", n_bytes)

    def _run(self, unit: Unit, segment: Callable[..., PartCounts], *args: Any) -> UnitOutcome:
        """Call `segment`, a method of the worker, and turn what happens into an outcome."""
        outcome = (
            self._setup.failed_outcome(unit)
            or self._committed_before(unit)
            or self._segment(unit, segment, *args)
        )
        return replace(outcome, node=self._node, runtime=self._runtime)

    def _committed_before(self, unit: Unit) -> UnitOutcome | None:
        """The outcome of a unit that the process before this one has committed."""
        if not self._finds_units_done:
            return None
        counts = self._parts.find_counts(unit.unit)
        if counts is None:
            return None
        return complete_unit(self._progress, unit, counts, self._node)

    def _segment(self, unit: Unit, segment: Callable[..., PartCounts], *args: Any) -> UnitOutcome:

        def report(ok: int, failed: int, instances: int) -> None:
            self._progress.report(unit.unit, ok, failed, instances)

        try:
            counts = segment(
                self._setup.result, unit, *args, report, retry_failed=self._retry_failed
            )
        except DeviceLost:
            os._exit(1)  # Ray starts a new process and gives it this unit again
        except HostOutOfMemory:
            return UnitOutcome(unit.unit, needs_isolation=True)
        except Exception as error:  # goes to the driver; the unit stays undone
            return failed_outcome(unit, error)
        return complete_unit(self._progress, unit, counts, self._node)


class ReadActor:
    """First stage of the layout `split`: reads and prepares units, needs no GPU."""

    def __init__(self, spec: ActorSpec, progress: Any, retry_failed: bool) -> None:
        self._node = register_current_actor(progress)
        self._progress = spec.reporter(progress)
        self._retry_failed = retry_failed
        self._packer = Packer()
        self._setup = WorkerSetup(lambda: self._make_reader(spec))
        self._progress.flush()

    def _make_reader(self, spec: ActorSpec) -> UnitReader:
        model = load_worker_model(spec, only_preprocess=True)
        return UnitReader(model, spec.read_options, spec.parts)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Read the unit of a batch.

        Returns:
            What `Packer` makes of the unit, its images and the `Remarks`; or of the unit and its
            `UnitOutcome`, if it cannot be read.
        """
        (unit,) = units_from_table(batch)
        try:
            table = self._packer.pack(self._read(unit))
        except Exception as error:  # goes to the driver; the unit stays undone
            outcome = replace(failed_outcome(unit, error), node=self._node)
            table = self._packer.pack([unit, outcome])
        self._progress.flush()
        return table

    def _read(self, unit: Unit) -> Iterator[Unit | PreparedSample | Remarks | UnitOutcome]:
        yield unit
        if (failed := self._setup.failed_outcome(unit)) is not None:
            yield replace(failed, node=self._node)
        else:
            yield (yield from self._setup.result.read(unit, retry_failed=self._retry_failed))


class SegmentActor(UnitActor):
    """Second stage of the layout `split`: holds the model and gets the units of `ReadActor`."""

    def __call__(self, batch: pa.Table) -> dict[str, list]:
        """Segment the unit of a batch and return what became of it."""
        unit, *images, last = unpack(batch)
        if isinstance(last, UnitOutcome):
            outcome = last
        else:
            outcome = self._run(unit, UnitWorker.segment_prepared, images, last)
        self._measure_memory()
        self._progress.flush()
        return outcomes_to_columns([outcome])


class WorkerSetup(Generic[Worker]):
    """Sets a worker up; a failure is kept for the units that come, so that its node is blamed.

    An exception of an actor's constructor would end the whole pool.
    """

    def __init__(self, make: Callable[[], Worker]) -> None:
        self._worker: Worker | None = None
        self._error = ""
        try:
            self._worker = make()
        except Exception as error:  # goes to the driver with each unit
            self._error = describe_error(error)
            _log_error(error, "A worker could not be set up")

    @property
    def result(self) -> Worker:
        """The worker; `failed_outcome` must have given None."""
        assert self._worker is not None, "failed_outcome() comes first"
        return self._worker

    def failed_outcome(self, unit: Unit) -> UnitOutcome | None:
        """The outcome of a unit for which there is no worker; None where there is one."""
        if self._worker is not None:
            return None
        time.sleep(_SETUP_FAILURE_PAUSE_S)  # other nodes shall get most of the units
        error = f"A worker could not be set up: {self._error}"
        return UnitOutcome(unit.unit, error=error, setup_failed=True)


def register_current_actor(progress: Any) -> str:
    """Make the calling actor known to the `ProgressActor`; returns the id of its node."""
    import ray
    from ray import cloudpickle

    context = ray.get_runtime_context()
    node: str = context.get_node_id()
    handle = cloudpickle.dumps(context.current_actor)
    progress.register.remote(handle, context.get_actor_id(), node)
    return node


def was_restarted() -> bool:
    """Whether the calling actor has taken the place of one that died."""
    import ray

    return bool(ray.get_runtime_context().was_current_actor_reconstructed)


def failed_outcome(unit: Unit, error: Exception) -> UnitOutcome:
    """The outcome of a unit that is not committed because of this error, which is logged."""
    _log_error(error, f"The unit {unit.unit} was not done")
    return UnitOutcome(
        unit.unit,
        error=describe_error(error),
        storage_full=isinstance(error, StorageFull),
        input_changed=isinstance(error, ObjectChanged),
    )


def _log_error(error: Exception, what: str) -> None:
    """Log an error of a unit or a worker; of one for people there is no traceback."""
    is_for_people = isinstance(error, SegcoreError)
    _LOGGER.log(
        logging.WARNING if is_for_people else logging.ERROR,
        "%s: %s",
        what,
        describe_error(error),
        exc_info=None if is_for_people else error,
        extra={"error": fault_key(getattr(error, "cause", None) or error)},  # Ray's have a cause
    )


def complete_unit(
    progress: ProgressReporter, unit: Unit, counts: PartCounts, node: str
) -> UnitOutcome:
    """Report a unit that this node committed; returns its outcome."""
    totals = counts.ok, counts.failed, counts.instances
    for code, number in counts.failures.items():
        MEASURES.add("segcore_failures_total", number, code)
    progress.complete(node, unit.unit, totals, unit.n_bytes)
    row = UnitCounts.of_written(counts)
    return UnitOutcome(unit.unit, *totals, counts=row.to_text() if row else "", node=node)


def load_worker_model(spec: ActorSpec, *, only_preprocess: bool = False) -> Model:
    """Set up threads and memory of this process, and load the model.

    Args:
        only_preprocess: The process needs no GPU, and does not call the network.

    Raises:
        ClusterError: The code of segcore differs from the driver's, or the edition does: other
            weights, ...
    """
    import cv2

    if code_version() != spec.code:
        raise ClusterError(
            f"This worker runs segcore {code_version()}, the driver {spec.code}.",
            hint="Install the same version everywhere, or send the driver's by ray.ship_code=true.",
        )
    # Sums that are split over another number of threads round differently: always one thread, so
    # that results do not depend on the actors or cores of a run. More actors use more cores.
    use_one_thread()
    cv2.setNumThreads(1)  # decoding is parallel over images, not inside one
    memory.keep_freed_memory()
    on_cuda = spec.options.device.startswith("cuda") and not only_preprocess
    if not on_cuda:
        _limit_memory(spec)
    elif spec.gpu_share < 1:
        limit_device_memory(spec.gpu_share)
    load = probe_model if only_preprocess else load_model
    model = load(spec.model, spec.options, spec.weights)
    edition = make_edition(model.info, spec.read_options.decode)
    if edition.fingerprint != spec.edition.fingerprint:
        differences = "; ".join(describe_differences(spec.edition.document, edition.document))
        raise ClusterError(
            f"This worker would make other results of {spec.model} than the driver expects "
            f"(driver -> worker): {differences}.",
            hint="Install the same version everywhere, or give the checkpoint by its path.",
        )
    if on_cuda:
        fit_batch_size(model, spec.max_concurrent_batches)
    return model


def _limit_memory(spec: ActorSpec) -> None:
    """Limit what this process may take.

    Not for one that uses CUDA: its driver maps far more than it takes, and does not survive a
    refusal.
    """
    max_bytes = spec.max_bytes
    if max_bytes is None:
        if sys.platform != "linux":
            return  # elsewhere the limit means something else
        fitting = cluster.cpus_of_this_node() / spec.cpus_per_process
        max_bytes = memory.share_of_memory(min(spec.max_processes, int(fitting) or 1))
    memory.limit_memory(max_bytes)


def outcomes_to_columns(outcomes: list[UnitOutcome]) -> dict[str, list]:
    """Outcomes as a batch of Ray Data."""
    rows = [asdict(outcome) for outcome in outcomes]
    return {name: [row[name] for row in rows] for name in rows[0]}
