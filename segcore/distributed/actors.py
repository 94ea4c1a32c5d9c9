"""The processes that hold a model: what they are told, and what they say about each unit."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from segcore.distributed.progress import ProgressCounter
from segcore.errors import ClusterError, describe_error
from segcore.models.base import Model, ModelOptions
from segcore.models.registry import load_model
from segcore.output.parts import PartCounts, Parts
from segcore.sources.unit_tables import units_from_table
from segcore.sources.units import Unit
from segcore.worker import memory
from segcore.worker.batching import DeviceLost
from segcore.worker.unit_worker import (
    HostOutOfMemory,
    PreparedUnit,
    ReadOptions,
    UnitReader,
    UnitWorker,
)


@dataclass(frozen=True)
class ActorSpec:
    """What an actor needs to set itself up.

    Attributes:
        model: What `load_model` takes.
        weights: Bytes of the checkpoint, or None when the name is enough.
        weights_sha256: What every worker must have, or results would depend on the machine.
        lanes: Batches in the model at once, where the model allows it.
        max_bytes: Memory that the process may take (its data segment); None: no limit.
    """

    model: str
    weights: bytes | None = field(repr=False)
    weights_sha256: str
    options: ModelOptions
    read_options: ReadOptions
    parts: Parts
    max_concurrent_batches: int = 1
    max_bytes: int | None = None


@dataclass(frozen=True)
class UnitOutcome:
    """One row of the graph's output.

    Attributes:
        error: Why the unit was not committed; "" when it was, or when `needs_isolation`.
        alone: Not committed: its images must be judged one by one.
    """

    unit: str
    ok: int = 0
    failed: int = 0
    instances: int = 0
    error: str = ""
    needs_isolation: bool = False


class ProgressActor(ProgressCounter):
    """The small actor beside the pool: takes reports, and knows who is at work."""

    def __init__(self) -> None:
        super().__init__()
        self._at_work: list[Any] = []

    def register(self, actor: Any) -> None:
        """An actor of the pool introduces itself by its handle."""
        self._at_work.append(actor)

    def drain(self) -> list[Any]:
        """All who arrived since the last call."""
        gone, self._at_work = self._at_work, []
        return gone


class UnitActor:
    """Holds the model; called with one unit at a time."""

    def __init__(self, spec: ActorSpec, progress: Any, retry_failed: bool) -> None:
        register(progress)
        self._progress = progress
        self._retry_failed = retry_failed
        self._worker = UnitWorker(
            load_worker_model(spec), spec.read_options, spec.parts, spec.max_concurrent_batches
        )

    def __call__(self, batch: pa.Table) -> dict[str, list]:
        """Segment the units of a batch (one) and say what became of them."""
        return outcomes_to_columns(
            [self._outcome(unit, self._worker.segment) for unit in units_from_table(batch)]
        )

    def _outcome(self, unit: Unit, work: Callable[..., PartCounts], *args: Any) -> UnitOutcome:
        report = self._progress.report.remote
        try:
            counts = work(
                unit,
                *args,
                lambda *so_far: report(unit.unit, *so_far),
                retry_failed=self._retry_failed,
            )
        except DeviceLost:
            os._exit(1)  # Ray starts a new process and gives it this unit again
        except HostOutOfMemory:
            return UnitOutcome(unit.unit, needs_isolation=True)
        except Exception as error:  # tells the driver; the unit stays undone
            return UnitOutcome(unit.unit, error=describe_error(error))
        totals = (counts.ok, counts.failed, counts.instances)
        self._progress.close.remote(unit.unit, *totals, unit.n_bytes)
        return UnitOutcome(unit.unit, *totals)


class ReadActor:
    """First stage of the split layout: reads and prepares units, needs no GPU."""

    def __init__(self, spec: ActorSpec, progress: Any, retry_failed: bool) -> None:
        register(progress)
        self._retry_failed = retry_failed
        on_cpu = replace(spec, options=spec.options.model_copy(update={"device": "cpu"}))
        self._reader = UnitReader(load_worker_model(on_cpu), spec.read_options, spec.parts)

    def __call__(self, batch: pa.Table) -> dict[str, np.ndarray]:
        """Units -> the same with what was read, or with the reason why it was not."""
        units = list(units_from_table(batch))
        read: list[PreparedUnit | str] = [self._read(unit) for unit in units]
        return {"unit": _objects(units), "read": _objects(read)}

    def _read(self, unit: Unit) -> PreparedUnit | str:
        try:
            return self._reader.read(unit, retry_failed=self._retry_failed)
        except Exception as error:  # tells the driver; the unit stays undone
            return describe_error(error)


class SegmentActor(UnitActor):
    """Second stage of the split layout: holds the model, and gets units that are read."""

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        """Segment the units of a batch (one) and say what became of them."""
        return outcomes_to_columns(
            [
                UnitOutcome(unit.unit, error=read)
                if isinstance(read, str)
                else self._outcome(unit, self._worker.finish, read)
                for unit, read in zip(batch["unit"], batch["read"], strict=True)
            ]
        )


def _objects(values: list[Any]) -> np.ndarray:
    """An array of objects, one for each value, whatever they are."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


def register(progress: Any) -> None:
    """Tell the desk that this actor is at work."""
    import ray

    progress.register.remote(ray.get_runtime_context().current_actor)


def load_worker_model(spec: ActorSpec) -> Model:
    """Prepare this process for computing, and load the model.

    Raises:
        ClusterError: The weights are others than the driver's.
    """
    import cv2
    import torch

    # Sums split over another number of threads round otherwise: one, always, so that results do
    # not depend on how many actors or cores a run has. More actors use more cores.
    torch.set_num_threads(1)
    cv2.setNumThreads(1)  # decoding is parallel over images, not inside one
    memory.keep_freed_memory()
    if spec.max_bytes is not None:
        memory.limit_memory(spec.max_bytes)
    model = load_model(spec.model, spec.options, spec.weights)
    if model.info.weights_sha256 != spec.weights_sha256:
        raise ClusterError(
            f"The model {spec.model} has other weights on this worker than on the driver.",
            hint="Install the same version everywhere, or give the checkpoint by its path.",
        )
    return model


def outcomes_to_columns(outcomes: list[UnitOutcome]) -> dict[str, list]:
    """Outcomes as a batch of Ray Data."""
    rows = [asdict(outcome) for outcome in outcomes]
    return {name: [row[name] for row in rows] for name in rows[0]}
