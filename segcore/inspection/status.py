"""Where a run stands, from storage alone: its record, its plan, and the parts that exist.

Works from any machine, while the job runs elsewhere or after it died. Times are those of the
storage, so that no two clocks are compared, except to say how long ago the newest part came.
"""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import StorageError, UsageError
from segcore.inspection.liveness import LeaseState, Pace
from segcore.lease.observation import HELD, RELEASED, LeaseObservation, observe_lease
from segcore.output.editions import choose_edition
from segcore.output.executions import Execution, read_recent_executions
from segcore.output.layout import EditionLayout, part_of_file
from segcore.output.part_counts import PartCounts
from segcore.output.report import RUNNING
from segcore.output.run_records import (
    PlannedUnit,
    RunRecord,
    planned_units,
    read_newest_run,
    read_plan,
)
from segcore.output.unlisted import read_unlisted
from segcore.storage import ObjectInfo, Storage
from segcore.text import align_columns, join_counts, plural

_FOOTER_BYTES = 16 << 10  # enough for the footer of most `images` parts; others are read whole
_REQUEST_THREADS = 32
_PACE_PARTS = 50  # the pace is that of this many newest parts
_MAX_LEASE_READS = 5
_SHOWN_EXECUTIONS = 5

STOPPED, DIED = "stopped", "died"  # besides the states that a run's record gives


@dataclass(frozen=True)
class Status:
    """Where the newest run of an edition stands.

    Attributes:
        state: ``running``; ``stopped`` (interrupted, or ended by an error) or ``died`` (without
            a trace) before the end; ``success``, ``incomplete``, ``too_many_failed``.
        images: Of the whole plan; None while shards are counted only as they are read.
        images_done: Rows of the committed parts; = ok + failed.
        images_left: None like `images`.
        warnings: Images by code of their warnings.
        units_foreign: Units with parts that are neither in the plan nor unlisted.
        images_unlisted: Images beside these whose results are kept though the input lacks them.
        unreadable: Committed parts whose footer cannot be read; `segcore verify` says more.
        pace: Only while the state is ``running``.
        lease: None when the edition has none.
        executions: The newest of the edition that have ended, newest first.
        edition_notes: Sentences for people: whether the edition is published, for example.
    """

    edition: str
    prefix: str
    run: str
    state: str
    started: str
    finished: str
    units: int
    units_done: int
    images: int | None
    images_done: int
    images_left: int | None
    ok: int
    failed: int
    failures: dict[str, int]
    instances: int
    warnings: dict[str, int] = field(default_factory=dict)
    units_foreign: int = 0
    images_unlisted: int = 0
    unreadable: tuple[str, ...] = ()
    pace: Pace | None = None
    lease: LeaseState | None = None
    executions: tuple[Execution, ...] = ()
    edition_notes: tuple[str, ...] = ()

    @property
    def units_left(self) -> int:
        """Units of the plan without a part."""
        return self.units - self.units_done

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"units_left": self.units_left}

    def summary(self) -> str:
        """For people, a few aligned lines."""
        total = "counted when read" if self.images is None else f"{self.images:,}"
        images_left = "" if self.images_left is None else f"  ({self.images_left:,} left)"
        reasons = join_counts(self.failures)
        rows = [
            ("edition", self.edition),
            ("run", f"{self.run}  {self.state}{self._when()}"),
            ("units", f"{self.units_done:,} of {self.units:,}  ({self.units_left:,} left)"),
            ("images", f"{self.images_done:,} of {total}{images_left}"),
            ("ok", f"{self.ok:,}"),
            ("failed", f"{self.failed:,}" + (f"  ({reasons})" if reasons else "")),
            ("instances", f"{self.instances:,}"),
        ]
        if self.warnings:
            rows.append(("warnings", join_counts(self.warnings)))
        if self.pace is not None:
            rows.append(("pace", self.pace.summary()))
        if self.lease is not None and self.lease.summary():
            rows.append(("lease", self.lease.summary()))
        if self.images_unlisted:
            unlisted = plural(self.images_unlisted, "image")
            rows.append(("unlisted", f"{unlisted} of earlier listings, kept besides"))
        if self.units_foreign:
            foreign = plural(self.units_foreign, "unit")
            rows.append(("foreign", f"{foreign} with parts that are not in the plan"))
        if self.unreadable:
            unreadable = plural(len(self.unreadable), "part")
            rows.append(("unreadable", f"{unreadable}, for example {self.unreadable[0]}"))
        for number, execution in enumerate(self.executions):
            rows.append(("" if number else "history", execution.summary()))
        return align_columns(rows)

    def _when(self) -> str:
        """When the run began, if it has not ended; else when it ended."""
        if self.state in (RUNNING, STOPPED, DIED):
            return f", since {self.started}" if self.started else ""
        return f", finished {self.finished}" if self.finished else ""


@dataclass
class _CommittedParts:
    """The committed parts of a plan.

    Attributes:
        counts: Unit -> what its part says about itself, where that can be read.
        changed: Unit -> when its part was written, by the clock of the storage.
        foreign: Units that have parts and are not in the plan.
        unreadable: URIs of parts whose footer cannot be read.
    """

    counts: dict[str, PartCounts] = field(default_factory=dict)
    changed: dict[str, float] = field(default_factory=dict)
    foreign: set[str] = field(default_factory=set)
    unreadable: list[str] = field(default_factory=list)


def read_status(storage: Storage, output: str, edition: str | None = None) -> Status:
    """Look at the newest run of an edition.

    Args:
        output: What the run was given as output, or the prefix of one edition in it.
        edition: Name of the edition; default the one with the newest run record.

    Raises:
        UsageError: There is no output of segcore, or it holds no run.
        SegcoreError: The record or the plan cannot be read.
    """
    choice = choose_edition(storage, output, edition, newest=True)
    layout = choice.layout
    record, lease = _read_record_and_lease(storage, layout)
    plan = read_plan(storage, layout, record.run)
    planned = {planned_unit.unit: planned_unit for planned_unit in planned_units(plan)}
    parts = _read_committed_parts(storage, layout, planned.keys())
    unlisted = read_unlisted(storage, layout, record.run, ["unit"]) if parts.foreign else None
    if unlisted is not None:
        parts.foreign.difference_update(unlisted["unit"].to_pylist())
    status = _make_status(layout, record, lease, planned, parts)
    return replace(
        status,
        images_unlisted=0 if unlisted is None else unlisted.num_rows,
        executions=read_recent_executions(storage, layout, _SHOWN_EXECUTIONS),
        edition_notes=tuple(choice.sentences()),
    )


def _read_record_and_lease(
    storage: Storage, layout: EditionLayout
) -> tuple[RunRecord, LeaseObservation | None]:
    """The newest record, and the lease at the same moment.

    A run writes its final record before it releases its lease. So if a record says ``running``
    and was read between two observations of the same free lease, its run no longer exists.
    """
    lease = observe_lease(storage, layout.lease_folder)
    for _ in range(_MAX_LEASE_READS):
        record = _read_record(storage, layout)
        if record.status != RUNNING or _may_be_at_work(lease):
            break
        previous, lease = lease, observe_lease(storage, layout.lease_folder)
        same_lease = (previous and previous.generation) == (lease and lease.generation)
        if same_lease and not _may_be_at_work(lease):
            break
    return record, lease


def _read_record(storage: Storage, layout: EditionLayout) -> RunRecord:
    record = read_newest_run(storage, layout)
    if record is None:
        raise UsageError(
            f"{layout.prefix} holds no run.",
            hint="Start one with `segcore segment`, or choose another edition with --edition.",
        )
    return record


def _may_be_at_work(lease: LeaseObservation | None) -> bool:
    """Whether the holder may still be at work; a stopped process of this machine may wake up."""
    if lease is None:
        return False
    return lease.state == HELD or bool(
        lease.state != RELEASED and lease.holder and lease.holder.exists()
    )


def _run_state(record: RunRecord, lease: LeaseObservation | None) -> str:
    """See `Status.state`."""
    if record.status != RUNNING or _may_be_at_work(lease):
        return record.status
    return STOPPED if lease is not None and lease.state == RELEASED else DIED


def _lease_state(lease: LeaseObservation | None) -> LeaseState | None:
    if lease is None:
        return None
    names = {"host", "pid", "user", "since"}
    holder = lease.holder.model_dump(include=names) if lease.holder else {}
    age_s = None if lease.age_s is None else round(lease.age_s, 1)
    return LeaseState(lease.state, lease.summary(), age_s, **holder)


def _make_status(
    layout: EditionLayout,
    record: RunRecord,
    lease: LeaseObservation | None,
    planned: dict[str, PlannedUnit],
    parts: _CommittedParts,
) -> Status:
    failures: Counter[str] = Counter()
    warnings: Counter[str] = Counter()
    for counts in parts.counts.values():
        failures.update(counts.failures)
        warnings.update(counts.warnings)
    units_left = [planned[unit] for unit in planned if unit not in parts.changed]
    images_done = sum(counts.images for counts in parts.counts.values())
    images_known = all(unit.images is not None for unit in units_left) and not parts.unreadable
    images_left = sum(unit.images or 0 for unit in units_left) if images_known else None
    pace = None
    state = _run_state(record, lease)
    if state == RUNNING:
        bytes_left = sum(unit.bytes for unit in units_left)
        pace = _measure_pace(record, planned, parts, images_left, bytes_left)
    return Status(
        edition=layout.name,
        prefix=layout.prefix,
        run=record.run,
        state=state,
        started=str(record.values.get("started", "")),
        finished=str(record.values.get("finished", "")),
        units=len(planned),
        units_done=len(parts.changed),
        images=None if images_left is None else images_done + images_left,
        images_done=images_done,
        images_left=images_left,
        ok=sum(counts.ok for counts in parts.counts.values()),
        failed=sum(counts.failed for counts in parts.counts.values()),
        failures=dict(sorted(failures.items())),
        instances=sum(counts.instances for counts in parts.counts.values()),
        warnings=dict(sorted(warnings.items())),
        units_foreign=len(parts.foreign),
        unreadable=tuple(sorted(parts.unreadable)),
        pace=pace,
        lease=_lease_state(lease),
    )


def _measure_pace(
    record: RunRecord,
    planned: dict[str, PlannedUnit],
    parts: _CommittedParts,
    images_left: int | None,
    bytes_left: int,
) -> Pace:
    """The pace of the newest of the parts that came after the run began."""
    commits = sorted(
        (changed, unit) for unit, changed in parts.changed.items() if changed >= record.changed
    )
    if not commits:
        return Pace()
    newest = commits[-1][0]
    measured = commits[-_PACE_PARTS:]
    began = commits[-_PACE_PARTS - 1][0] if len(commits) > _PACE_PARTS else record.changed
    seconds = max(newest - began, 1e-3)
    images = sum(parts.counts[unit].images for _, unit in measured if unit in parts.counts)
    n_bytes = sum(planned[unit].bytes for _, unit in measured)
    eta_s = None
    if images_left is not None and images:
        eta_s = images_left * seconds / images
    elif n_bytes:
        eta_s = bytes_left * seconds / n_bytes
    return Pace(
        images_per_second=round(images / seconds, 3),
        eta_s=None if eta_s is None else round(eta_s, 1),
        last_commit_s=round(max(0.0, time.time() - newest), 1),
    )


def _read_committed_parts(
    storage: Storage, layout: EditionLayout, planned: AbstractSet[str]
) -> _CommittedParts:
    """Footers of all committed parts of the plan, one request each, many at a time."""
    parts = _CommittedParts()
    newest: dict[str, tuple[int, ObjectInfo]] = {}  # unit -> generation and file
    for info, changed in storage.list_with_times(layout.parts_folder("images")):
        name = part_of_file(info.uri)
        if name is None:
            continue
        if name.unit not in planned:
            parts.foreign.add(name.unit)
        elif name.unit not in newest or name.generation > newest[name.unit][0]:
            newest[name.unit] = name.generation, info
            parts.changed[name.unit] = changed
    units, infos = list(newest), [info for _, info in newest.values()]
    with ThreadPoolExecutor(_REQUEST_THREADS) as pool:
        all_counts = pool.map(lambda info: _read_part_counts(storage, info), infos)
        for unit, info, counts in zip(units, infos, all_counts, strict=True):
            if counts is None or counts.unit != unit:
                parts.unreadable.append(info.uri)
            else:
                parts.counts[unit] = counts
    return parts


def _read_part_counts(storage: Storage, info: ObjectInfo) -> PartCounts | None:
    """What a part says about itself; None when that cannot be read."""
    try:
        tail = storage.read_range(info.uri, max(0, info.size - _FOOTER_BYTES), _FOOTER_BYTES)
        # a Parquet file ends with the footer, 4 bytes of its length, and 4 bytes of magic
        if len(tail) >= 8 and int.from_bytes(tail[-8:-4], "little") + 8 > len(tail):
            tail = storage.read(info.uri)
        return PartCounts.from_metadata(pq.read_metadata(io.BytesIO(tail)).metadata)
    except (KeyError, ValueError, OSError, pa.ArrowException, StorageError):
        return None
