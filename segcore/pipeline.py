"""The Ray Data graph: units in, one row about each committed part out.

Everything of a unit happens inside one actor (read, decode, model, commit), so nothing large
passes the object store. What a row says is a message to the driver; what is done stands in
storage alone.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from segcore.batches import DeviceLost
from segcore.cluster import Pool
from segcore.errors import ClusterError, StorageError
from segcore.models.base import ModelOptions
from segcore.models.registry import load_model
from segcore.parts import Parts
from segcore.readahead import sentence
from segcore.telemetry import Board, Snapshot
from segcore.units import Unit, from_table, to_table
from segcore.worker import Reading, UnitWorker

# A dead actor is always replaced; a unit whose process dies is tried again this often.
RESTARTS: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 3}
MAX_FAILURES_IN_A_ROW = 20  # units that fail without one success between: storage is gone


@dataclass(frozen=True)
class ActorSpec:
    """What an actor needs to set itself up.

    Attributes:
        model: What `load_model` takes.
        weights: Bytes of the checkpoint, or None when the name is enough.
        weights_sha256: What every worker must have, or results would depend on the machine.
    """

    model: str
    weights: bytes | None = field(repr=False)
    weights_sha256: str
    options: ModelOptions
    reading: Reading
    parts: Parts


@dataclass(frozen=True)
class UnitOutcome:
    """One row of the graph's output; `error` is "" when the unit was committed."""

    unit: str
    ok: int = 0
    failed: int = 0
    instances: int = 0
    error: str = ""


class Desk(Board):
    """The small actor beside the pool: takes reports, and knows who is at work."""

    def __init__(self) -> None:
        super().__init__()
        self._at_work: list[Any] = []

    def arrive(self, actor: Any) -> None:
        """An actor of the pool introduces itself by its handle."""
        self._at_work.append(actor)

    def dismiss(self) -> list[Any]:
        """All who arrived since the last call."""
        gone, self._at_work = self._at_work, []
        return gone


class UnitActor:
    """Holds the model; called with one unit at a time."""

    def __init__(self, spec: ActorSpec, desk: Any) -> None:
        import cv2
        import ray
        import torch

        # Sums split over another number of threads round otherwise: one, always, so that results do
        # not depend on how many actors or cores a run has. More actors use more cores.
        torch.set_num_threads(1)
        cv2.setNumThreads(1)  # decoding is parallel over images, not inside one
        self._desk = desk
        desk.arrive.remote(ray.get_runtime_context().current_actor)
        model = load_model(spec.model, spec.options, spec.weights)
        if model.info.weights_sha256 != spec.weights_sha256:
            raise ClusterError(
                f"The model {spec.model} has other weights on this worker than on the driver.",
                hint="Install the same version everywhere, or give the checkpoint by its path.",
            )
        self._worker = UnitWorker(model, spec.reading, spec.parts)

    def __call__(self, batch: pa.Table) -> dict[str, list]:
        """Segment the units of a batch (one) and say what became of them."""
        outcomes = [self._segment(unit) for unit in from_table(batch)]
        return {
            "unit": [o.unit for o in outcomes],
            "ok": [o.ok for o in outcomes],
            "failed": [o.failed for o in outcomes],
            "instances": [o.instances for o in outcomes],
            "error": [o.error for o in outcomes],
        }

    def _segment(self, unit: Unit) -> UnitOutcome:
        report = self._desk.report.remote
        try:
            counts = self._worker.segment(unit, lambda *so_far: report(unit.unit, *so_far))
        except DeviceLost:
            os._exit(1)  # Ray starts a new process and gives it this unit again
        except Exception as error:  # tells the driver; the unit stays undone
            return UnitOutcome(unit.unit, error=sentence(error))
        totals = (counts.ok, counts.failed, counts.instances)
        self._desk.close.remote(unit.unit, *totals, unit.n_bytes)
        return UnitOutcome(unit.unit, *totals)


class Pipeline:
    """Runs units through a pool of actors on the connected Ray."""

    def __init__(self, spec: ActorSpec, pool: Pool, units_per_wave: int) -> None:
        import ray

        self._spec = spec
        self._pool = pool
        self._wave = units_per_wave
        self._desk: Any = ray.remote(num_cpus=0, max_restarts=-1)(Desk).remote()

    def snapshot(self) -> Snapshot | None:
        """Progress so far; None when the counter does not answer just now."""
        import ray

        try:
            return ray.get(self._desk.snapshot.remote(), timeout=5)
        except Exception:  # progress is a comfort; it never ends a run
            return None

    def run(self, units: Sequence[Unit]) -> Iterator[UnitOutcome]:
        """Segment `units`, yielding outcomes as they come; dropped units yield nothing.

        Raises:
            ClusterError: The pool as a whole cannot work.
            StorageError: Unit after unit failed, and none succeeded.
        """
        in_a_row = 0
        for start in range(0, len(units), self._wave):
            for outcome in self._run_wave(units[start : start + self._wave]):
                in_a_row = in_a_row + 1 if outcome.error else 0
                if in_a_row >= MAX_FAILURES_IN_A_ROW:
                    raise StorageError(
                        f"Stopped after {in_a_row} units failed in a row: {outcome.error}",
                        hint="Mend the cause and run the same command again; "
                        "finished units are not redone.",
                    )
                yield outcome

    def _run_wave(self, units: Sequence[Unit]) -> Iterator[UnitOutcome]:
        import ray
        import ray.data

        pool = self._pool
        with ray.data.DataContext.current(_context()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*ray_remote_args.*")  # no other way yet
            blocks = [to_table([unit]) for unit in units]
            dataset = ray.data.from_arrow(blocks).map_batches(
                UnitActor,
                batch_size=1,
                batch_format="pyarrow",
                fn_constructor_kwargs={"spec": self._spec, "desk": self._desk},
                compute=ray.data.ActorPoolStrategy(
                    min_size=pool.min_actors,
                    max_size=pool.max_actors,
                    # A unit queued at an actor would share the death of the one before it, and
                    # wait behind a slow one; the gap between units is milliseconds.
                    max_tasks_in_flight_per_actor=1,
                ),
                num_cpus=pool.cpus,
                num_gpus=pool.gpus or None,
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
            for actor in ray.get(self._desk.dismiss.remote(), timeout=10):
                ray.kill(actor, no_restart=True)
        except ray.exceptions.RayError:  # the cluster itself is going: nothing left to free
            return


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
