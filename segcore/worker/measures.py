"""What a worker process measures of itself: seconds of stages and queues, batches, repetitions.

One collector for each process, as with logging: stages are far apart, and hand nothing else to each
other. Recording takes about a microsecond.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from segcore.output.metrics import Samples, merge

_STAGE, _WAIT = "segcore_stage_seconds_total", "segcore_wait_seconds_total"


class Measures:
    """Collects samples until they are taken; thread-safe."""

    def __init__(self) -> None:
        self._samples: Samples = {}
        self._lock = threading.Lock()
        self._n_in_model = 0
        self._busy_since = 0.0

    def add(self, name: str, value: float, label: str = "") -> None:
        """Add to a counter."""
        with self._lock:
            key = (name, label)
            self._samples[key] = self._samples.get(key, 0.0) + value

    def peak(self, name: str, value: float) -> None:
        """Keep the largest value."""
        with self._lock:
            merge(self._samples, {(name, ""): value})

    @contextmanager
    def stage(self, stage: str) -> Iterator[None]:
        """Add the seconds of the block to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(_STAGE, time.perf_counter() - began, stage)

    @contextmanager
    def wait(self, queue: str) -> Iterator[None]:
        """Add the seconds of the block to the waits for a queue."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(_WAIT, time.perf_counter() - began, queue)

    @contextmanager
    def in_model(self, n_images: int, n_slots: int) -> Iterator[None]:
        """Count a batch, and the time in which the model has at least one."""
        with self._lock:
            if self._n_in_model == 0:
                self._busy_since = time.perf_counter()
            self._n_in_model += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_in_model -= 1
                if self._n_in_model == 0:
                    self._add_busy()
            self.add("segcore_batches_total", 1)
            self.add("segcore_batch_images_total", n_images)
            self.add("segcore_batch_slots_total", n_slots)

    def _add_busy(self) -> None:
        now = time.perf_counter()
        merge(self._samples, {("segcore_model_busy_seconds_total", ""): now - self._busy_since})
        self._busy_since = now

    def take(self) -> Samples:
        """The samples since the last call."""
        with self._lock:
            if self._n_in_model:
                self._add_busy()
            taken, self._samples = self._samples, {}
        return taken


MEASURES = Measures()  # of this process
