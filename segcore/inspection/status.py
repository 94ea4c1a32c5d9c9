"""Where a run stands, from storage alone: its record, its plan, and the parts that exist.

Works from any machine, while the job runs elsewhere or after it died. Times are those of the
storage, so that no two clocks are compared except for "how long ago" of the newest part.
"""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import StorageError, UsageError
from segcore.lease.observation import HELD, RELEASED, LeaseObservation, observe_lease
from segcore.output.parts import PartCounts, counts_from_metadata, unit_of_part
from segcore.output.report import RUNNING
from segcore.output.results import find_edition
from segcore.output.run_records import RunRecord, planned_units, read_plan, read_run_records
from segcore.storage import ObjectInfo, Storage, join
from segcore.storage.uris import basename
from segcore.text import align_columns, format_duration

_FOOTER_BYTES = 16 << 10  # holds the footer of an `images` part; a larger one is read whole
_READERS = 32
_PACE_PARTS = 50  # the pace is that of the last so many parts
_LOOKS = 5

STOPPED, DIED = "stopped", "died"  # besides the states that a run's record gives


@dataclass(frozen=True)
class Pace:
    """How fast the run in progress goes.

    Attributes:
        images_per_second: Over the newest parts of this run; 0 before there are any.
        eta_s: Seconds to go at that pace; None when unknown.
        last_commit_s: Seconds since the newest part, by this machine's clock; None before.
    """

    images_per_second: float = 0.0
    eta_s: float | None = None
    last_commit_s: float | None = None


@dataclass(frozen=True)
class LeaseState:
    """Who may write into the edition.

    Attributes:
        state: ``held``; or free, since it was ``released``, its process is ``gone``, or it
            ``expired``.
        holder: In words.
        host, pid, user: The same in parts; None when the lease file is none of segcore's.
        since: When it began, by the holder's own clock.
        last_heartbeat_s: Seconds since its last sign of life by the storage's clock; None when
            that was not asked for, or may not be.
    """

    state: str
    holder: str
    last_heartbeat_s: float | None
    host: str | None = None
    pid: int | None = None
    user: str | None = None
    since: str | None = None

    def summary(self) -> str:
        """For people, one line; "" when there is nobody to speak of."""
        if self.state == RELEASED:
            return ""
        age = self.last_heartbeat_s
        ago = "" if age is None else f"; last sign of life {format_duration(age)} ago"
        return f"{self.state}: {self.holder}{ago}"


@dataclass(frozen=True)
class Status:
    """Where the newest run of an edition stands.

    Attributes:
        state: ``running``; ``stopped`` (interrupted, or ended by an error) or ``died`` (without
            a word) before the end; ``success``, ``incomplete``, ``too_many_failed``.
        images: Of the whole plan; None while shards are counted only as they are read.
        images_done: Rows of the committed parts; = ok + failed.
        images_left: None like `images`.
        units_foreign: Parts of units that the plan does not hold.
        unreadable: Committed parts whose footer cannot be read; `segcore verify` says more.
        pace: Only while the state is ``running``.
        lease: None when the edition has none.
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
    units_foreign: int = 0
    unreadable: tuple[str, ...] = ()
    pace: Pace | None = None
    lease: LeaseState | None = None

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
        left = "" if self.images_left is None else f"  ({self.images_left:,} left)"
        reasons = ", ".join(f"{code} {count:,}" for code, count in self.failures.items())
        rows = [
            ("edition", self.edition),
            ("run", f"{self.run}  {self.state}" + _since(self)),
            ("units", f"{self.units_done:,} of {self.units:,}  ({self.units_left:,} left)"),
            ("images", f"{self.images_done:,} of {total}{left}"),
            ("ok", f"{self.ok:,}"),
            ("failed", f"{self.failed:,}" + (f"  ({reasons})" if reasons else "")),
            ("instances", f"{self.instances:,}"),
        ]
        if self.pace is not None:
            rows.append(("pace", _pace_words(self.pace)))
        if self.lease is not None and self.lease.summary():
            rows.append(("lease", self.lease.summary()))
        if self.units_foreign:
            rows.append(("foreign", f"{self.units_foreign:,} parts of units outside the plan"))
        if self.unreadable:
            rows.append(("unreadable", f"{len(self.unreadable):,} parts, such as "
                         f"{self.unreadable[0]}"))  # fmt: skip
        return align_columns(rows)


@dataclass
class _Done:
    """What the committed parts of the plan amount to."""

    counts: dict[str, PartCounts] = field(default_factory=dict)
    changed: dict[str, float] = field(default_factory=dict)
    foreign: int = 0
    unreadable: list[str] = field(default_factory=list)


def read_status(storage: Storage, output: str, edition: str | None = None) -> Status:
    """Look at the newest run of an edition.

    Args:
        output: What the run was given as output, or the prefix of one edition in it.
        edition: Name of the edition; default the one with the newest run record.

    Raises:
        UsageError: No output of segcore, or it holds no run.
        SegcoreError: The record or the plan cannot be read.
    """
    prefix = find_edition(storage, output, edition, newest=True)
    record, seen = _newest(storage, prefix)
    plan = read_plan(storage, prefix, record.run)
    planned = {unit: (images, size) for unit, images, size in planned_units(plan)}
    done = _read_done(storage, prefix, planned.keys())
    return _status(prefix, record, seen, planned, done)


def _newest(storage: Storage, prefix: str) -> tuple[RunRecord, LeaseObservation | None]:
    """The newest record, and the lease of the same moment.

    A run writes its last word before it releases its lease. So a record that says ``running``
    between two sightings of one and the same free lease is that of a run that is no more.
    """
    seen = observe_lease(storage, join(prefix, "lease"))
    for _ in range(_LOOKS):
        found = read_run_records(storage, prefix)
        if not found:
            raise UsageError(
                f"{prefix} holds no run.",
                hint="Start one with `segcore segment`, or choose another edition with --edition.",
            )
        if found[-1].status != RUNNING or _is_alive(seen):
            break
        before, seen = seen, observe_lease(storage, join(prefix, "lease"))
        if (before and before.generation) == (seen and seen.generation) and not _is_alive(seen):
            break
    return found[-1], seen


def _is_alive(seen: LeaseObservation | None) -> bool:
    """Whether the holder may still be at work; a stopped process of this machine may wake up."""
    if seen is None:
        return False
    return seen.state == HELD or bool(
        seen.state != RELEASED and seen.holder and seen.holder.exists()
    )


def _state(record: RunRecord, seen: LeaseObservation | None) -> str:
    if record.status != RUNNING or _is_alive(seen):
        return record.status
    return STOPPED if seen is not None and seen.state == RELEASED else DIED


def _lease_state(seen: LeaseObservation | None) -> LeaseState | None:
    if seen is None:
        return None
    names = {"host", "pid", "user", "since"}
    said = seen.holder.model_dump(include=names) if seen.holder else {}
    age = None if seen.age_s is None else round(seen.age_s, 1)
    return LeaseState(seen.state, seen.summary(), age, **said)


def _status(
    prefix: str,
    record: RunRecord,
    seen: LeaseObservation | None,
    planned: dict[str, tuple[int | None, int]],
    done: _Done,
) -> Status:
    failures: Counter[str] = Counter()
    for counts in done.counts.values():
        failures.update(counts.failures)
    left = [planned[unit] for unit in planned if unit not in done.changed]
    done_images = sum(counts.images for counts in done.counts.values())
    known = all(images is not None for images, _ in left) and not done.unreadable
    images_left = sum(images or 0 for images, _ in left) if known else None
    pace = None
    state = _state(record, seen)
    if state == RUNNING:
        pace = _pace(record, planned, done, images_left, sum(size for _, size in left))
    return Status(
        edition=basename(prefix),
        prefix=prefix,
        run=record.run,
        state=state,
        started=str(record.values.get("started", "")),
        finished=str(record.values.get("finished", "")),
        units=len(planned),
        units_done=len(done.changed),
        images=None if images_left is None else done_images + images_left,
        images_done=done_images,
        images_left=images_left,
        ok=sum(counts.ok for counts in done.counts.values()),
        failed=sum(counts.failed for counts in done.counts.values()),
        failures=dict(sorted(failures.items())),
        instances=sum(counts.instances for counts in done.counts.values()),
        units_foreign=done.foreign,
        unreadable=tuple(sorted(done.unreadable)),
        pace=pace,
        lease=_lease_state(seen),
    )


def _pace(
    record: RunRecord,
    planned: dict[str, tuple[int | None, int]],
    done: _Done,
    images_left: int | None,
    bytes_left: int,
) -> Pace:
    """From the parts that came after the run began, newest first."""
    fresh = sorted((when, unit) for unit, when in done.changed.items() if when >= record.changed)
    if not fresh:
        return Pace()
    newest = fresh[-1][0]
    chosen = fresh[-_PACE_PARTS:]
    began = fresh[-_PACE_PARTS - 1][0] if len(fresh) > _PACE_PARTS else record.changed
    seconds = max(newest - began, 1e-3)
    images = sum(done.counts[unit].images for _, unit in chosen if unit in done.counts)
    size = sum(planned[unit][1] for _, unit in chosen)
    eta = None
    if images_left is not None and images:
        eta = images_left * seconds / images
    elif size:
        eta = bytes_left * seconds / size
    return Pace(
        images_per_second=round(images / seconds, 3),
        eta_s=None if eta is None else round(eta, 1),
        last_commit_s=round(max(0.0, time.time() - newest), 1),
    )


def _read_done(storage: Storage, prefix: str, planned: Iterable[str]) -> _Done:
    """Footers of all committed parts of the plan, one request each, many at a time."""
    wanted, done = set(planned), _Done()
    listed: list[tuple[str, ObjectInfo]] = []
    for info, when in storage.list_dated(join(prefix, "images")):
        unit = unit_of_part(info.uri)
        if unit is None:
            continue
        if unit not in wanted:
            done.foreign += 1
            continue
        done.changed[unit] = when
        listed.append((unit, info))
    with ThreadPoolExecutor(_READERS) as pool:
        for (unit, info), counts in zip(
            listed, pool.map(lambda item: _counts(storage, item[1]), listed), strict=True
        ):
            if counts is None or counts.unit != unit:
                done.unreadable.append(info.uri)
            else:
                done.counts[unit] = counts
    return done


def _counts(storage: Storage, info: ObjectInfo) -> PartCounts | None:
    """What a part says about itself; None when it says nothing readable."""
    try:
        tail = storage.read_range(info.uri, max(0, info.size - _FOOTER_BYTES), _FOOTER_BYTES)
        if len(tail) >= 8 and int.from_bytes(tail[-8:-4], "little") + 8 > len(tail):
            tail = storage.read(info.uri)
        return counts_from_metadata(pq.read_metadata(io.BytesIO(tail)).metadata)
    except (KeyError, ValueError, OSError, pa.ArrowException, StorageError):
        return None


def _since(found: Status) -> str:
    if found.state in (RUNNING, STOPPED, DIED):
        return f", since {found.started}" if found.started else ""
    return f", finished {found.finished}" if found.finished else ""


def _pace_words(pace: Pace) -> str:
    if pace.last_commit_s is None:
        return "no part committed yet by this run"
    eta = "-" if pace.eta_s is None else format_duration(pace.eta_s)
    ago = format_duration(pace.last_commit_s)
    return f"{pace.images_per_second:.1f} images/s · ETA {eta} · newest part {ago} ago"
