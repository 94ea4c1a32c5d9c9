"""What a run did, in numbers that balance."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from segcore.output.parts import PartCounts
from segcore.text import align_columns, format_bytes, format_duration

RUNNING, SUCCESS, INCOMPLETE, TOO_MANY_FAILED = (
    "running",
    "success",
    "incomplete",
    "too_many_failed",
)
COMPLETE = (SUCCESS, TOO_MANY_FAILED)  # every input is accounted for
EXIT_CODES = {SUCCESS: 0, INCOMPLETE: 1, TOO_MANY_FAILED: 3}


@dataclass(frozen=True)
class Account:
    """Plan against output.

    Attributes:
        images: Rows of the ``images`` table; = ok + failed.
        missing: Units of the plan without a part.
        unbalanced: Units whose part holds another number of images than the plan says.
    """

    images: int
    ok: int
    failed: int
    instances: int
    failures: dict[str, int]
    notes: dict[str, int]
    units: int
    missing: tuple[str, ...] = ()
    unbalanced: tuple[str, ...] = ()


def reconcile(planned: Mapping[str, int | None], counts: Iterable[PartCounts]) -> Account:
    """Compare a plan with what its parts say about themselves.

    Args:
        planned: Unit id -> number of its images; None when only reading could tell.
        counts: Of the planned units that are committed.
    """
    found = {part.unit: part for part in counts}
    failures: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    for part in found.values():
        failures.update(part.failures)
        notes.update(part.notes)
    unbalanced = tuple(
        unit for unit, part in found.items() if planned[unit] not in (None, part.images)
    )
    return Account(
        images=sum(part.images for part in found.values()),
        ok=sum(part.ok for part in found.values()),
        failed=sum(part.failed for part in found.values()),
        instances=sum(part.instances for part in found.values()),
        failures=dict(sorted(failures.items())),
        notes=dict(sorted(notes.items())),
        units=len(planned),
        missing=tuple(unit for unit in planned if unit not in found),
        unbalanced=unbalanced,
    )


def final_status(found: Account, max_failed_fraction: float) -> str:
    """The status that an account deserves."""
    if found.missing or found.unbalanced:
        return INCOMPLETE
    if found.failed > max_failed_fraction * found.images:
        return TOO_MANY_FAILED
    return SUCCESS


@dataclass(frozen=True)
class RunReport:
    """A run, as stored in ``runs/<run>.json`` and printed by ``--json``.

    Attributes:
        status: ``running`` while it goes on, then ``success``, ``incomplete`` or
            ``too_many_failed``.
        sequence: 1 for the first run in this edition, and so on; orders runs without clocks.
        started, finished: UTC, ISO 8601; "" when not yet.
        timings: Seconds of each step of this command.
        images: Rows of the ``images`` table; = ok + failed.
        failures: Failed images by error code.
        notes: What reading noticed, such as ``duplicate_names`` (renamed in a shard).
        units_missing: How many units of the plan have no part.
        units_unbalanced: Units whose part has another number of images than the plan.
        units_withdrawn: Units whose input changed or went away; their parts were deleted.
        images_this_time: Segmented by this command; the rest was done before.
        images_retried: Of these: failed before, tried again by ``--retry-failed``.
        images_recovered: Of these: failed no more.
        images_per_second: `images_this_time` over ``timings["segment"]``.
        errors: What kept units from being committed, a few of them.
    """

    status: str
    run: str
    edition: str
    input: str
    output: str
    prefix: str
    model: str
    sequence: int
    max_failed_fraction: float
    started: str = ""
    finished: str = ""
    timings: dict[str, float] = field(default_factory=dict)
    images: int = 0
    ok: int = 0
    failed: int = 0
    instances: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    units: int = 0
    units_missing: int = 0
    units_unbalanced: tuple[str, ...] = ()
    units_done_before: int = 0
    units_withdrawn: int = 0
    images_this_time: int = 0
    images_retried: int = 0
    images_recovered: int = 0
    images_per_second: float = 0.0
    pool: str = ""
    errors: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0, 1 or 3; see the exit codes of the command line."""
        return EXIT_CODES.get(self.status, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def to_json(self) -> bytes:
        """The bytes of ``runs/<run>.json``."""
        return (json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n").encode()

    def summary(self) -> str:
        """The summary for people, a few aligned lines."""
        reasons = ", ".join(f"{code} {count:,}" for code, count in self.failures.items())
        seconds = self.timings.get("segment", 0.0)
        rows = [
            ("status", self.status),
            ("images", f"{self.images:,}"),
            ("  ok", f"{self.ok:,}"),
            ("  failed", f"{self.failed:,}" + (f"  ({reasons})" if reasons else "")),
            ("instances", f"{self.instances:,}"),
            ("units", _units(self)),
        ]
        if seconds:
            rate = f"{self.images_this_time:,} images in {format_duration(seconds)}"
            rows.append(("this time", f"{rate}, {self.images_per_second:.1f}/s"))
        if self.images_retried:
            again = f"{self.images_retried:,} failed images, {self.images_recovered:,} now ok"
            rows.append(("tried again", again))
        rows.append(("model", self.edition))
        rows.append(("tables", f"{self.prefix}/images/*.parquet"))
        rows.append(("", f"{self.prefix}/instances/*.parquet"))
        return align_columns(rows)

    def advice(self) -> list[str]:
        """What a person should know besides the numbers; for stderr."""
        if self.status == INCOMPLETE:
            return _advice_incomplete(self)
        lines = []
        if self.notes:
            noticed = ", ".join(f"{name} {count:,}" for name, count in self.notes.items())
            lines.append(f"Noticed while reading: {noticed}.")
        if self.units_done_before == self.units and not self.images_retried:
            lines.append(
                f"Nothing was left to do: all {self.images:,} images of this input were already "
                "segmented by this edition. --overwrite does them again."
            )
        if self.status == TOO_MANY_FAILED:
            share = self.failed / self.images
            lines.append(
                f"Error: {self.failed:,} of {self.images:,} images failed ({share:.1%}); "
                f"run.max_failed_fraction allows {self.max_failed_fraction:.1%}. "
                "The images table has the reason of each (status = 'failed')."
            )
        return lines


@dataclass(frozen=True)
class Preview:
    """What a run would do.

    Attributes:
        images: None when shards are counted only as they are read.
        images_done: Of the units already done; None as above.
    """

    input: str
    prefix: str
    model: str
    kind: str
    images: int | None
    units: int
    bytes: int
    images_done: int | None
    units_done: int
    units_stale: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def summary_line(self) -> str:
        """One line for people."""
        left = self.units - self.units_done
        done = f"; {self.units_done:,} of them are done" if self.units_done else ""
        images = "images counted when read" if self.images is None else f"{self.images:,} images"
        todo = f", {left:,} to do" if done else ""
        return f"Plan: {images} in {self.units:,} units ({format_bytes(self.bytes)}){done}{todo}."

    def summary(self) -> str:
        """The plan for people, a few aligned lines."""
        unknown = "counted when read"
        done = unknown if self.images_done is None else f"{self.images_done:,} images"
        rows = [
            ("input", f"{self.input}  ({self.kind})"),
            ("images", unknown if self.images is None else f"{self.images:,}"),
            ("units", f"{self.units:,}"),
            ("bytes", f"{self.bytes:,}  ({format_bytes(self.bytes)})"),
            ("model", self.model),
            ("output", self.prefix),
            ("skipped", f"{self.units_done:,} units already done ({done})"),
            ("to do", f"{self.units - self.units_done:,} units"),
        ]
        if self.units_stale:
            rows.append(("withdrawn", f"{self.units_stale:,} units whose input changed or went"))
        return align_columns(rows)


def _units(report: RunReport) -> str:
    parts = [f"{report.units:,}"]
    if report.units_done_before:
        parts.append(f"{report.units_done_before:,} done before")
    if report.units_withdrawn:
        parts.append(f"{report.units_withdrawn:,} withdrawn, their input changed")
    if report.units_missing:
        parts.append(f"{report.units_missing:,} MISSING")
    return parts[0] + (f"  ({', '.join(parts[1:])})" if parts[1:] else "")


def _advice_incomplete(report: RunReport) -> list[str]:
    lines = []
    if report.units_missing:
        lines.append(
            f"Error: {report.units_missing:,} of {report.units:,} units have no result. "
            "Run the same command again: it goes on with these only."
        )
    if report.units_unbalanced:
        lines.append(
            f"Error: {len(report.units_unbalanced):,} units hold another number of images than "
            f"planned, such as {report.units_unbalanced[0]}: the input changed while it was "
            "read. Run the same command again; --overwrite if that does not mend it."
        )
    return lines + [f"  {error}" for error in report.errors]
