"""Where a run stands, from storage alone: its record, its plan, and the parts that exist.

Works from any machine, while the job runs elsewhere or after it died. Times are those of the
storage, so that no two clocks are compared, except to say how long ago the newest part came.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from segcore.errors import UsageError
from segcore.inspection.liveness import LeaseState, Pace
from segcore.lease.observation import HELD, RELEASED, LeaseObservation, observe_lease
from segcore.output.committed import list_committed
from segcore.output.compacted_rows import CompactedParts
from segcore.output.counts_cache import CountsCache, read_listed_counts
from segcore.output.editions import choose_edition
from segcore.output.executions import Execution, read_recent_executions
from segcore.output.layout import EditionLayout
from segcore.output.report import RUNNING
from segcore.output.run_records import RunRecord, read_newest_run, read_planned_sizes
from segcore.output.unit_counts import UnitCounts, sum_counts, unit_counts_table
from segcore.output.unlisted import read_unlisted
from segcore.storage import Storage
from segcore.text import align_columns, join_counts, plural

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
        units_compacted: Units of the plan that are read from compacted files.
        compacted: Name of the generation of these files; "" if there are none.
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
    units_compacted: int = 0
    compacted: str = ""
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
        if self.compacted:
            compacted = f"{self.units_compacted:,} of the units done, in {self.compacted}"
            rows.append(("compacted", compacted))
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


@dataclass(frozen=True)
class _Progress:
    """How much of a plan is committed.

    Attributes:
        planned: Its units; see `read_planned_sizes`.
        done: Those of its units that are committed; see `list_committed`.
        counts: What their parts say about themselves, where that can be read.
        foreign: Units that have parts and are not in the plan.
        unreadable: URIs of parts whose footer cannot be read.
        compacted: Name of the generation of compacted files; "" if there are none.
        units_compacted: Units of the plan that are read from these.
    """

    planned: pa.Table
    done: pa.Table
    counts: pa.Table
    foreign: set[str]
    unreadable: list[str]
    compacted: str
    units_compacted: int

    @property
    def left(self) -> pa.Table:
        """The rows of `planned` that are not done."""
        is_done = pc.is_in(self.planned["unit"], value_set=self.done["unit"])
        return self.planned.filter(pc.invert(is_done))


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
    planned = read_planned_sizes(storage, layout, record.run)
    progress = _measure_progress(storage, layout, planned)
    unlisted = read_unlisted(storage, layout, record.run, ["unit"]) if progress.foreign else None
    if unlisted is not None:
        progress.foreign.difference_update(unlisted["unit"].to_pylist())
    status = _make_status(layout, record, lease, progress)
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
    progress: _Progress,
) -> Status:
    totals = sum_counts(progress.counts)
    left = progress.left
    images_known = not left["n_images"].null_count and not progress.unreadable
    images_left = _sum(left["n_images"]) if images_known else None
    pace = None
    state = _run_state(record, lease)
    if state == RUNNING:
        pace = _measure_pace(record, progress, images_left, _sum(left["n_bytes"]))
    return Status(
        edition=layout.name,
        prefix=layout.prefix,
        run=record.run,
        state=state,
        started=str(record.values.get("started", "")),
        finished=str(record.values.get("finished", "")),
        units=progress.planned.num_rows,
        units_done=progress.done.num_rows,
        images=None if images_left is None else totals.images + images_left,
        images_done=totals.images,
        images_left=images_left,
        ok=totals.ok,
        failed=totals.failed,
        failures=totals.failures,
        instances=totals.instances,
        warnings=totals.warnings,
        units_foreign=len(progress.foreign),
        unreadable=tuple(sorted(progress.unreadable)),
        units_compacted=progress.units_compacted,
        compacted=progress.compacted,
        pace=pace,
        lease=_lease_state(lease),
    )


def _sum(column: pa.ChunkedArray) -> int:
    return int(pc.sum(column).as_py() or 0)


def _measure_pace(
    record: RunRecord, progress: _Progress, images_left: int | None, bytes_left: int
) -> Pace:
    """The pace of the newest of the parts that came after the run began."""
    done = progress.done.filter(pc.greater_equal(progress.done["changed"], record.changed))
    if not done.num_rows:
        return Pace()
    # The part before the newest ones tells when these began.
    order = pc.select_k_unstable(done, _PACE_PARTS + 1, [("changed", "descending")])
    changed = done["changed"].take(order).to_pylist()
    measured = done["unit"].take(order[:_PACE_PARTS])
    began = changed[-1] if len(changed) > _PACE_PARTS else record.changed
    newest = changed[0]
    seconds = max(newest - began, 1e-3)
    counts, planned = progress.counts, progress.planned
    totals = sum_counts(counts.filter(pc.is_in(counts["unit"], value_set=measured)))
    n_bytes = _sum(planned.filter(pc.is_in(planned["unit"], value_set=measured))["n_bytes"])
    images = totals.images
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


def _measure_progress(storage: Storage, layout: EditionLayout, planned: pa.Table) -> _Progress:
    """What is committed of a plan; opens the parts whose counts the cache does not know."""
    reader = CompactedParts(storage, layout)
    committed = list_committed(storage, layout, with_times=True, reader=reader)
    done = committed.rows_of(planned["unit"])
    known, unknown = CountsCache(storage, layout, committed.compacted).find(done)
    rows: list[UnitCounts] = []
    unreadable = []
    names = zip(*(unknown[name].to_pylist() for name in ("unit", "generation")), strict=True)
    for name, row in zip(names, read_listed_counts(storage, layout, unknown), strict=True):
        if isinstance(row, UnitCounts):
            rows.append(row)
        else:
            unreadable.append(layout.part("images", *name))
    units = committed.newest["unit"]
    foreign = units.filter(pc.invert(pc.is_in(units, value_set=planned["unit"])))
    counts = pa.concat_tables([known, unit_counts_table(rows)])
    compacted = committed.compacted
    return _Progress(
        planned,
        done,
        counts,
        set(foreign.to_pylist()),
        unreadable,
        compacted.layout.name if compacted.layout else "",
        len(committed.read_compacted & set(planned["unit"].to_pylist())),
    )
