"""Images of all units in progress, collected into full batches."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from segcore.worker.batching import Batch, ConcurrentBatches, Outcomes
from segcore.worker.preprocessing import PreparedSample

_MAX_WAITING_BATCHES = 4  # for each unit in progress
# A unit that is at its end waits so long for images of other units to fill its last batches.
_PATIENCE_BATCHES = 4  # of images that the other units add meanwhile
_PATIENCE_S = 2.0


class _Waiting(NamedTuple):
    unit: Batcher
    position: int
    image: PreparedSample


class _Share(NamedTuple):
    """What a unit has in a batch: its images, and their places there."""

    images: Batch
    places: list[int]
    outcomes: Future[Outcomes]


class BatchQueue:
    """Collects images of all units in progress into batches of like ones, and runs these.

    Images wait until a batch of those with the same `Model.batch_key` is full, but no more than
    `_MAX_WAITING_BATCHES` batches for each unit wait in all. What an image gives does not depend on
    the batch, so neither does the part of a unit. Thread-safe.
    """

    def __init__(self, concurrent_batches: ConcurrentBatches) -> None:
        self._batch_key = concurrent_batches.batch_key
        self._runner = concurrent_batches.runner
        self._run = concurrent_batches.run
        self._max_running = concurrent_batches.max_batches
        self._pool = (
            ThreadPoolExecutor(self._max_running, "forward") if self._max_running > 1 else None
        )
        self._changed = threading.Condition()
        self._waiting: dict[Hashable, list[_Waiting]] = {}
        self._running: deque[Future[Outcomes]] = deque()
        self._adding: set[Batcher] = set()  # the units that are not at their end
        self._n_added = 0

    def join(self, unit: Batcher) -> None:
        """A unit begins."""
        with self._changed:
            self._adding.add(unit)

    def add(self, unit: Batcher, position: int, image: PreparedSample) -> None:
        """Add an image of a unit; returns when no more batches run than may wait for each other."""
        key = self._batch_key(image.value)
        with self._changed:
            self._n_added += 1
            self._waiting.setdefault(key, []).append(_Waiting(unit, position, image))
            batch_size = self._runner.batch_size
            max_waiting = _MAX_WAITING_BATCHES * batch_size * max(1, len(self._adding))
            batches = []
            if len(self._waiting[key]) >= batch_size:
                batches = [self._take(key)]
            elif sum(map(len, self._waiting.values())) >= max_waiting:
                batches = [self._take(max(self._waiting, key=lambda k: len(self._waiting[k])))]
            self._changed.notify_all()
        self._start(batches)

    def finish(self, unit: Batcher) -> None:
        """A unit has no more images: start what still waits, after a while or when no other adds.

        Batches that it waits for may be filled by other units meanwhile.
        """
        with self._changed:
            self._adding.discard(unit)
            self._changed.notify_all()
            last = self._n_added + _PATIENCE_BATCHES * self._runner.batch_size
            ends_at = time.monotonic() + _PATIENCE_S
            while (
                self._adding
                and self._n_added < last
                and (left_s := ends_at - time.monotonic()) > 0
                and self._keys_of(unit)
            ):
                self._changed.wait(left_s)
            batches = [self._take(key) for key in self._keys_of(unit)]
        self._start(batches)

    def drop(self, unit: Batcher) -> None:
        """A unit ends by an error: forget its images."""
        with self._changed:
            self._adding.discard(unit)
            for key in self._keys_of(unit):
                left = [entry for entry in self._waiting.pop(key) if entry.unit is not unit]
                if left:
                    self._waiting[key] = left
            self._changed.notify_all()

    def _keys_of(self, unit: Batcher) -> list[Hashable]:
        return [
            key
            for key, entries in self._waiting.items()
            if any(entry.unit is unit for entry in entries)
        ]

    def _take(self, key: Hashable) -> tuple[Batch, Future[Outcomes]]:
        """The waiting batch of `key`; each unit with images in it gets its share. Locked."""
        entries = self._waiting.pop(key)
        outcomes: Future[Outcomes] = Future()
        for unit in dict.fromkeys(entry.unit for entry in entries):
            places = [place for place, entry in enumerate(entries) if entry.unit is unit]
            images = [(entries[place].position, entries[place].image) for place in places]
            unit.shares.append(_Share(images, places, outcomes))
        self._running.append(outcomes)
        return [(entry.position, entry.image) for entry in entries], outcomes

    def _start(self, batches: list[tuple[Batch, Future[Outcomes]]]) -> None:
        for batch, outcomes in batches:
            if self._pool is None:
                self._complete(batch, outcomes)
            else:
                self._pool.submit(self._complete, batch, outcomes)
        while True:
            with self._changed:
                if len(self._running) <= self._max_running:
                    return
                oldest = self._running.popleft()
            wait([oldest])

    def _complete(self, batch: Batch, outcomes: Future[Outcomes]) -> None:
        try:
            result = self._run(batch)
        except BaseException as error:  # reaches each unit that has images in the batch
            outcomes.set_exception(error)
        else:
            outcomes.set_result(result)


class Batcher:
    """The way of one unit's images through a `BatchQueue`.

    Outcomes are delivered in the order in which their batches were started. Used as a context
    manager: a normal exit waits for all images, an exception drops those that still wait.

    Args:
        deliver: Gets the unit's images of each batch with their outcomes, in the thread that calls
            `add` or leaves the block.
    """

    def __init__(self, queue: BatchQueue, deliver: Callable[[Batch, Outcomes], None]) -> None:
        self.shares: deque[_Share] = deque()  # appended by the queue
        self._queue = queue
        self._deliver = deliver

    def add(self, position: int, image: PreparedSample) -> None:
        """Add an image; `deliver` may be called for earlier ones.

        Raises:
            DeviceLost: See `BatchRunner`.
        """
        self._queue.add(self, position, image)
        while self.shares and self.shares[0].outcomes.done():
            self._deliver_oldest()

    def __enter__(self) -> Batcher:
        self._queue.join(self)
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        try:
            if kind is None:
                self._queue.finish(self)
                while self.shares:
                    self._deliver_oldest()
        finally:
            self._queue.drop(self)

    def _deliver_oldest(self) -> None:
        """Wait for the batch that was started first, and deliver the outcomes of its images."""
        share = self.shares.popleft()
        outcomes = share.outcomes.result()
        self._deliver(share.images, [outcomes[place] for place in share.places])
