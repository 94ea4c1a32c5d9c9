"""What the workers tell while they work: their progress and their log, gathered by an actor."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from segcore.distributed.metrics_export import MetricsExporter
from segcore.logs.relay import Entry, LogBuffer
from segcore.output.metrics import Key, Samples, merge
from segcore.worker.measures import MEASURES

REPORT_INTERVAL_S = 1.0  # of a worker
_MAX_REPORTS_PER_S = 100  # of all workers together: one costs the `ProgressActor` a millisecond
_MAX_LOG_ENTRIES = 2000  # of all workers, until the driver takes them


UnitTotals = tuple[int, int, int]  # ok, failed, instances
CommittedUnit = tuple[str, str, UnitTotals, int]  # node, unit, its counts and bytes


@dataclass(frozen=True)
class ProgressSnapshot:
    """What this run has done so far; images done before it do not count.

    Attributes:
        ok, failed, instances: Of committed units.
        units: Committed units.
        bytes: Compressed bytes of the committed units.
        in_progress: Images with a result, ok or failed, in units that are not committed yet.
        deaths: Processes of the pool that died and were started again.
    """

    ok: int = 0
    failed: int = 0
    instances: int = 0
    units: int = 0
    bytes: int = 0
    in_progress: int = 0
    deaths: int = 0

    @property
    def images(self) -> int:
        """Images of committed units, ok or failed."""
        return self.ok + self.failed


class ProgressCounter:
    """Adds up what the workers report.

    Reports are totals of a unit, so those of a retry replace those of the attempt before.
    """

    def __init__(self) -> None:
        self._in_progress: dict[str, UnitTotals] = {}
        self._committed = ProgressSnapshot()
        self._committed_units: set[str] = set()

    def report(self, unit: str, ok: int, failed: int, instances: int) -> None:
        """Set the counts so far of a unit in progress."""
        if unit not in self._committed_units:
            self._in_progress[unit] = (ok, failed, instances)

    def complete(self, unit: str, ok: int, failed: int, instances: int, n_bytes: int) -> None:
        """Add the final counts of a committed unit."""
        self._in_progress.pop(unit, None)
        if unit in self._committed_units:
            return
        self._committed_units.add(unit)
        before = self._committed
        self._committed = ProgressSnapshot(
            ok=before.ok + ok,
            failed=before.failed + failed,
            instances=before.instances + instances,
            units=before.units + 1,
            bytes=before.bytes + n_bytes,
            deaths=before.deaths,
        )

    def snapshot(self) -> ProgressSnapshot:
        """Committed units, and how much there is of those in progress."""
        in_progress = sum(ok + failed for ok, failed, _ in self._in_progress.values())
        return replace(self._committed, in_progress=in_progress)


class ProgressActor(ProgressCounter):
    """The small actor beside the pool: counts progress and knows the actors of the graph.

    It lives in this module because its process imports what the module imports: PyTorch, for one,
    would cost it seconds.

    Args:
        edition: Label of the metrics that it exports; "" to export none.
    """

    def __init__(self, edition: str = "") -> None:
        super().__init__()
        self._samples: Samples = {}
        self._exporter = MetricsExporter(edition) if edition else None
        self._registered: list[bytes] = []
        self._nodes: dict[str, str] = {}  # actor id -> its node
        self._nodes_seen: set[str] = set()
        self._deaths: Counter[str] = Counter()  # node -> since it committed a unit
        self._log: deque[Entry] = deque(maxlen=_MAX_LOG_ENTRIES)

    def register(self, handle: bytes, actor_id: str, node: str) -> None:
        """Remember an actor of the pool; one that is known was restarted after its death.

        Args:
            handle: Of the actor, pickled: as an object it would make this process import Ray Data.
        """
        self._registered.append(handle)
        if actor_id in self._nodes:
            self._deaths[self._nodes[actor_id]] += 1
            self._committed = replace(self._committed, deaths=self._committed.deaths + 1)
            self.measure({("segcore_retries_total", "process"): 1})
        self._nodes[actor_id] = node
        self._nodes_seen.add(node)
        self.measure({("segcore_workers", ""): len(self._nodes)})

    def complete_on(self, node: str, unit: str, counts: UnitTotals, n_bytes: int) -> None:
        """As `complete`, for a unit that this node committed."""
        self._deaths.pop(node, None)
        if unit not in self._committed_units:
            self._measure_unit(counts, n_bytes)
        self.complete(unit, *counts, n_bytes)

    def _measure_unit(self, counts: UnitTotals, n_bytes: int) -> None:
        ok, failed, instances = counts
        samples: Samples = {
            ("segcore_images_total", "ok"): ok,
            ("segcore_images_total", "failed"): failed,
            ("segcore_instances_total", ""): instances,
            ("segcore_input_bytes_total", ""): n_bytes,
            ("segcore_units_total", ""): 1,
        }
        if left := self._samples.get(("segcore_units_left", "")):
            samples["segcore_units_left", ""] = left - 1
        self.measure(samples)

    def measure(self, samples: Mapping[Key, float]) -> None:
        """Add samples, and export them; what goes wrong with that ends no run."""
        merge(self._samples, samples)
        if self._exporter is not None:
            try:
                self._exporter.export(samples, self._samples)
            except Exception:  # metrics are a convenience
                self._exporter = None

    def samples(self) -> Samples:
        """All samples so far."""
        return dict(self._samples)

    def update(
        self,
        in_progress: Mapping[str, UnitTotals],
        committed: Sequence[CommittedUnit],
        log: Sequence[Entry] = (),
        samples: Mapping[Key, float] | None = None,
    ) -> None:
        """Take what a `ProgressReporter` has gathered."""
        self._log.extend(log)
        if samples:
            self.measure(samples)
        for unit, counts in in_progress.items():
            self.report(unit, *counts)
        for entry in committed:
            self.complete_on(*entry)

    def take_log(self) -> list[Entry]:
        """The log of the workers since the last call."""
        entries = list(self._log)
        self._log.clear()
        return entries

    def placements(self) -> dict[str, str]:
        """Actor id -> node, of all actors that registered since the last `drain`."""
        return dict(self._nodes)

    def nodes_seen(self) -> set[str]:
        """Nodes on which an actor has ever begun."""
        return self._nodes_seen

    def deaths(self) -> dict[str, int]:
        """Node -> how many of its processes died since it committed a unit."""
        return dict(self._deaths)

    def drain(self) -> list[bytes]:
        """The pickled handles of all actors that registered since the last call."""
        drained, self._registered = self._registered, []
        self._nodes.clear()
        self.measure({("segcore_workers", ""): 0})
        return drained


class ProgressReporter:
    """A worker's way to the `ProgressActor`: gathers what was done, and sends it now and then.

    The first unit that a process commits is told at once: it shows that its node works.
    Thread-safe.

    Args:
        progress: Handle of the `ProgressActor`.
        n_workers: How many share it.
        log: The log of this process, which travels along.
    """

    def __init__(self, progress: Any, n_workers: int, log: LogBuffer | None = None) -> None:
        self._progress = progress
        self._log = log
        self._interval_s = max(REPORT_INTERVAL_S, n_workers / _MAX_REPORTS_PER_S)
        self._in_progress: dict[str, UnitTotals] = {}
        self._committed: list[CommittedUnit] = []
        self._has_committed = False
        self._sent_at = float("-inf")  # monotonic seconds
        self._lock = threading.Lock()

    def report(self, unit: str, ok: int, failed: int, instances: int) -> None:
        """See `ProgressCounter.report`."""
        with self._lock:
            self._in_progress[unit] = (ok, failed, instances)
            self._send_when_due()

    def complete(self, node: str, unit: str, counts: UnitTotals, n_bytes: int) -> None:
        """See `ProgressActor.complete_on`."""
        with self._lock:
            self._in_progress.pop(unit, None)
            self._committed.append((node, unit, counts, n_bytes))
            self._send_when_due(at_once=not self._has_committed)
            self._has_committed = True

    def flush(self) -> None:
        """Send what has not been sent; to be called before the worker may have to wait for work."""
        with self._lock:
            self._send_when_due(at_once=True)

    def _send_when_due(self, at_once: bool = False) -> None:
        if not at_once and time.monotonic() - self._sent_at < self._interval_s:
            return
        log = self._log.take() if self._log is not None else []
        if not (self._in_progress or self._committed or log or at_once):
            return
        samples = MEASURES.take()
        if not (self._in_progress or self._committed or log or samples):
            return
        self._progress.update.remote(self._in_progress, self._committed, log, samples)
        self._in_progress, self._committed = {}, []
        self._sent_at = time.monotonic()
