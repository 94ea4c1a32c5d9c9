"""Units that lost their process, image by image: the image to blame becomes a failed row.

A unit that lost its process twice comes here. An `Isolator`, which touches no image and so does not
die of one, starts a process of its own (`ImageActor`) and has it work through the unit one image at
a time. So it knows at each moment which image is in progress. When the process dies or does not
return in time, a new one tries the same image once more; the second time the image becomes a row
`crashed`, `timed_out` or `out_of_memory`, and the next one is tried. A process that went with its
node, or that the network cut off, is held against no image. Each process first segments a plain
grey image: where that fails, the machine or the model is at fault, and no image is blamed.

Compared with halving a unit until one image is left, this costs two processes for a bad image, not
eight, and finds several bad ones in one pass.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from segcore.distributed import cluster
from segcore.distributed.actors import (
    ActorSpec,
    UnitOutcome,
    complete_unit,
    failed_outcome,
    load_worker_model,
    outcomes_to_columns,
    register_current_actor,
)
from segcore.distributed.pool import PoolSize
from segcore.distributed.unread_rows import unread_rows
from segcore.errors import ErrorCode, ImageError, describe_error
from segcore.models.base import Model
from segcore.output.part_counts import PartCounts
from segcore.output.tables import ImageResult
from segcore.sources.unit_tables import units_from_table
from segcore.sources.units import Unit
from segcore.worker.batching import DeviceLost
from segcore.worker.image_worker import ImageWorker, NamedImage

MAX_PROCESSES_PER_IMAGE = 2
MAX_START_ATTEMPTS = 2  # to get a process that works; on different nodes, where there are some
MAX_LOST_NODES = 5  # for one unit
_NODE_LOSS_WAIT_S = 60.0  # Ray may need so long to notice that a node is gone
_NODE_POLL_S = 1.0
_LOGGER = logging.getLogger(__name__)
_ROW_MESSAGES = {
    ErrorCode.CRASHED: "the process died on this image, twice",
    ErrorCode.TIMED_OUT: "took longer than run.image_timeout_s ({limit_s:g} s), twice",
    ErrorCode.OUT_OF_MEMORY: "the process was ended for its use of memory on this image, twice",
}


class ProcessDied(Exception):
    """The process of an `Isolator` is gone; `code` is what an image would fail with for it."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(str(code))
        self.code = code


class NodeLost(Exception):
    """The node of a process is gone, or cannot be reached; no image is to blame."""


class NoWorkingProcess(Exception):
    """No process can be started that segments even a plain image."""


class ImageActor:
    """The process that may die: `ImageWorker` behind Ray."""

    def node(self) -> str:
        """The id of the node that the process is on."""
        return cluster.this_node()

    def set_up(self, spec: ActorSpec, progress: Any) -> None:
        """Load the model, and segment a plain image with it.

        Args:
            progress: The `ProgressActor`, which takes the log of this process.
        """
        self._log = spec.reporter(progress)
        model = load_worker_model(spec)
        _segment_plain_image(model)
        self._worker = ImageWorker(model, spec.read_options, spec.parts)

    def open(self, unit: Unit, skip: int, retry_failed: bool) -> None:
        """See `ImageWorker.open`."""
        self._worker.open(unit, skip, retry_failed)

    def read_next(self) -> NamedImage | None:
        """See `ImageWorker.read_next`."""
        return self._worker.read_next()

    def segment(self) -> ImageResult:
        """See `ImageWorker.segment`."""
        try:
            return self._worker.segment()
        except DeviceLost:
            os._exit(1)  # nothing works in this process any more
        finally:
            self._log.flush()

    def commit(self, unit: Unit, rows: list[ImageResult], retry_failed: bool) -> PartCounts:
        """See `ImageWorker.commit`."""
        try:
            return self._worker.commit(unit, rows, retry_failed)
        finally:
            self._log.flush()


def _segment_plain_image(model: Model) -> None:
    """Segment a plain grey image; a process that dies of it shows that no image is to blame."""
    with suppress(Exception):  # what a model raises is dealt with for each image
        prepared = [model.preprocess(np.full((64, 64, 3), 114, np.uint8))]
        model.postprocess(model.forward(prepared), prepared)


class Isolator:
    """Has a process work through units image by image; called with one unit at a time.

    Args:
        pool: The size of the process.
        taken_out: Ids of the nodes on which it may not be.
    """

    def __init__(
        self,
        spec: ActorSpec,
        progress: Any,
        retry_failed: bool,
        pool: PoolSize,
        taken_out: tuple[str, ...],
    ) -> None:
        register_current_actor(progress)
        self._progress = spec.reporter(progress)
        self._progress_actor = progress
        self._spec = spec
        self._retry_failed = retry_failed
        self._pool = pool
        self._taken_out = frozenset(taken_out)
        self._process: Any = None  # handle of the ImageActor
        self._node = ""  # of the process, also after its end

    def __call__(self, batch: pa.Table) -> dict[str, list]:
        """Segment the units of a batch (one) and return what became of them."""
        outcomes = [self._run(unit) for unit in units_from_table(batch)]
        self._progress.flush()
        return outcomes_to_columns(outcomes)

    def _run(self, unit: Unit) -> UnitOutcome:
        try:
            counts = self._segment_image_by_image(unit)
        except Exception as error:  # goes to the driver; the unit stays undone
            self._end_process()
            return replace(failed_outcome(unit, error), node=self._node)
        return complete_unit(self._progress, unit, counts, self._node)

    def _segment_image_by_image(self, unit: Unit) -> PartCounts:
        """Segment and commit a unit, with as many processes as it takes.

        Raises:
            NoWorkingProcess: No process works, whatever the image.
            NodeLost: Too many nodes were lost.
            ImageError: Processes died, and not of an image; the unit stays undone.
        """
        rows: list[ImageResult] = []
        pages_after = 0  # the last of `rows`, in its file
        processes_lost = 0  # on the image after `rows`
        nodes_lost = 0
        is_open = False
        while True:
            image: NamedImage | None = None
            is_reading = True
            try:
                if not is_open:
                    self._start_process()
                    self._call("open", unit, len(rows), self._retry_failed)
                    is_open = True
                image = self._call("read_next")
                is_reading = False
                if image is None:
                    return self._call("commit", unit, rows, self._retry_failed)
                rows.append(self._call("segment"))
                pages_after = image.pages_after
                processes_lost = 0
            except NodeLost:
                is_open = False
                nodes_lost += 1
                if nodes_lost > MAX_LOST_NODES:
                    raise
                continue
            except ProcessDied as death:
                is_open = False
                processes_lost += 1
                _log_death(unit, death, image, is_reading=is_reading)
                if processes_lost < MAX_PROCESSES_PER_IMAGE:
                    continue
                processes_lost = 0
                error = self._image_error(death.code)
                if is_reading:
                    return self._fail_remaining_images(unit, rows, pages_after, error)
                if image is None:  # in the commit: no image is to blame, the unit stays undone
                    raise error from None
                rows.append(replace(image.row, error=error))
                pages_after = image.pages_after
            self._report_progress(unit, rows)

    def _image_error(self, code: ErrorCode) -> ImageError:
        limit_s = self._spec.read_options.image_timeout_s
        return ImageError(code, _ROW_MESSAGES[code].format(limit_s=limit_s))

    def _fail_remaining_images(
        self, unit: Unit, rows: list[ImageResult], pages_after: int, error: ImageError
    ) -> PartCounts:
        """Commit a unit that kills each process that reads on, with all further images failed.

        Raises:
            ImageError: The failed images of the unit were tried again; its part stays as it is.
        """
        if self._retry_failed:
            raise error
        has_pages = self._spec.read_options.decode.pages == "all"
        unread = unread_rows(unit, rows, pages_after, error, has_pages=has_pages)
        return self._spec.parts.commit(unit, [*rows, *unread])

    def _start_process(self) -> None:
        """Start a process with a model that works, unless there is one.

        Raises:
            NoWorkingProcess: There is none to be had.
            NodeLost: It went with its node.
        """
        import ray

        if self._process is not None:
            return
        pool = self._pool
        actor_class = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, max_restarts=0)(ImageActor)
        avoided = self._taken_out
        for attempt in range(1, MAX_START_ATTEMPTS + 1):
            self._process = actor_class.options(**cluster.away_from(avoided)).remote()
            try:
                self._node = ray.get(self._process.node.remote())
                ray.get(self._process.set_up.remote(self._spec, self._progress_actor))
                return
            except ray.exceptions.RayError as error:
                is_lost = _node_is_lost(self._process, error, self._node)
                self._end_process()
                if is_lost:
                    raise NodeLost(describe_error(error)) from None
                avoided = self._other_node_than(self._node)
                if attempt == MAX_START_ATTEMPTS:
                    raise NoWorkingProcess(
                        "even a process that had segmented only a plain grey image died: the "
                        f"machine or the model is at fault, not an image ({describe_error(error)})"
                    ) from None

    def _other_node_than(self, node: str) -> frozenset[str]:
        """The nodes to avoid, so that another one is tried next; all but one if there is none."""
        avoided = self._taken_out | {node}
        able = {n.node_id for n in cluster.live_nodes() if self._pool.fits_on(n)}
        return avoided if able - avoided else self._taken_out

    def _call(self, method: str, *args: Any) -> Any:
        """Call a method of the process.

        Raises:
            ProcessDied: It is gone, or was ended because it did not return in time.
            NodeLost: It went with its node.
        """
        import ray

        options = self._spec.read_options
        # Decoding and the model may each take the limit of an image.
        timeout_s = 2 * options.image_timeout_s
        if method != "segment":
            timeout_s += options.read_timeout_s
        started = time.monotonic()
        try:
            return ray.get(getattr(self._process, method).remote(*args), timeout=timeout_s)
        except ray.exceptions.OutOfMemoryError:
            code = ErrorCode.OUT_OF_MEMORY
        except ray.exceptions.GetTimeoutError:
            code = ErrorCode.TIMED_OUT
        except (
            ray.exceptions.RayActorError,
            ray.exceptions.NodeDiedError,
            ray.exceptions.WorkerCrashedError,
        ) as error:
            # Its watchdog ends it after the limit of an image.
            took_too_long = time.monotonic() - started >= options.image_timeout_s
            code = ErrorCode.TIMED_OUT if took_too_long else ErrorCode.CRASHED
            if _node_is_lost(self._process, error, self._node):
                self._end_process()
                raise NodeLost(describe_error(error)) from None
        self._end_process()
        raise ProcessDied(code)

    def _end_process(self) -> None:
        import ray

        if self._process is not None:
            ray.kill(self._process, no_restart=True)
        self._process = None

    def _report_progress(self, unit: Unit, rows: list[ImageResult]) -> None:
        segmented = [row.instances for row in rows if row.instances is not None]
        n_failed = len(rows) - len(segmented)
        n_instances = sum(map(len, segmented))
        self._progress.report(unit.unit, len(segmented), n_failed, n_instances)


def _log_death(
    unit: Unit, death: ProcessDied, image: NamedImage | None, *, is_reading: bool
) -> None:
    step = "reading" if is_reading else "committing" if image is None else "segmenting an image"
    about = {} if image is None else {"image": image.row.image_id}
    _LOGGER.warning(
        "A process for the unit %s ended while %s (%s).", unit.unit, step, death.code, extra=about
    )


def _node_is_lost(process: Any, error: Exception, node: str) -> bool:
    """Whether a process that is gone went with its node, or was cut off by the network.

    Until Ray notices that a node is gone, it calls the processes there unavailable.

    Args:
        error: What the last call of the process raised.
        node: The node of the process.
    """
    import ray

    give_up_at = time.monotonic() + _NODE_LOSS_WAIT_S
    while isinstance(error, ray.exceptions.ActorUnavailableError):
        if time.monotonic() > give_up_at:
            return True
        time.sleep(_NODE_POLL_S)
        try:
            ray.get(process.node.remote(), timeout=_NODE_POLL_S)
            return True  # it lives: only the call was lost
        except ray.exceptions.GetTimeoutError:
            continue
        except ray.exceptions.RayError as next_error:
            error = next_error
    if isinstance(error, ray.exceptions.NodeDiedError):
        return True
    is_actor_error = isinstance(error, ray.exceptions.RayActorError)
    return is_actor_error and node not in {live.node_id for live in cluster.live_nodes()}
