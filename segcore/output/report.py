"""What a run did, in numbers that balance."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from segcore.exit_codes import ExitCode
from segcore.output.layout import EditionLayout
from segcore.output.left_out import bound_kinds, describe_left_out
from segcore.output.unit_counts import sum_counts
from segcore.text import (
    align_columns,
    format_duration,
    join_counts,
    json_text,
    plural,
    printable,
)

RUNNING, SUCCESS, INCOMPLETE, TOO_MANY_FAILED, NOTHING_FOUND = (
    "running",
    "success",
    "incomplete",
    "too_many_failed",
    "nothing_found",
)
BUDGET_REACHED = "budget_reached"  # units are left for the next run, as was asked for
COMPLETE = (SUCCESS, TOO_MANY_FAILED)  # every input is accounted for
_EXIT_CODES = {SUCCESS: ExitCode.DONE, TOO_MANY_FAILED: ExitCode.TOO_MANY_FAILED}


@dataclass(frozen=True)
class Account:
    """What the output holds of a plan.

    Attributes:
        images: Rows of the ``images`` table; = ok + failed.
        missing: Units of the plan without a part.
        unbalanced: Units whose part holds a different number of images than the plan says.
    """

    images: int
    ok: int
    failed: int
    instances: int
    failures: dict[str, int]
    notes: dict[str, int]
    warnings: dict[str, int]
    units: int
    missing: tuple[str, ...] = ()
    unbalanced: tuple[str, ...] = ()


def reconcile(planned: pa.Table, counts: pa.Table) -> Account:
    """Compare a plan with what its parts say about themselves.

    Args:
        planned: The units: columns ``unit`` and ``n_images``, which is null when only reading
            could tell.
        counts: Of the planned units that are committed; see `segcore.output.unit_counts`.
    """
    row = pc.index_in(planned["unit"], counts["unit"])
    images = pc.add(counts["ok"], counts["failed"]).take(row)
    is_unbalanced = pc.fill_null(pc.not_equal(planned["n_images"], images), False)
    totals = sum_counts(counts)
    return Account(
        images=totals.images,
        ok=totals.ok,
        failed=totals.failed,
        instances=totals.instances,
        failures=totals.failures,
        notes=bound_kinds(totals.notes),
        warnings=totals.warnings,
        units=planned.num_rows,
        missing=tuple(planned["unit"].filter(row.is_null()).to_pylist()),
        unbalanced=tuple(planned["unit"].filter(is_unbalanced).to_pylist()),
    )


def final_status(account: Account, max_failed_fraction: float) -> str:
    """The status of a run that ended with this account."""
    if account.missing or account.unbalanced:
        return INCOMPLETE
    if account.failed > max_failed_fraction * account.images:
        return TOO_MANY_FAILED
    return SUCCESS


@dataclass(frozen=True)
class RunReport:
    """A run, as stored in ``runs/<run>.json`` and printed by ``--json``.

    Attributes:
        status: ``running`` while it is in progress, then ``success``, ``incomplete``,
            ``too_many_failed``, ``budget_reached`` (units are left, as was asked for) or
            ``nothing_found`` (the input holds no image).
        execution: Id of this execution; "" if it found nothing to do and wrote nothing.
        log: Folder of the log of this execution, a URI; "" as above.
        sequence: 1 for the first run in this edition, and so on; orders runs without clocks.
        started, finished: UTC, ISO 8601; "" when not yet.
        timings: Seconds of each step of this command.
        metrics: What its workers measured; see `segcore.output.metrics`.
        images: Rows of the ``images`` table; = ok + failed.
        failures: Failed images by error code.
        notes: What was noticed while reading, such as ``duplicate_names`` (renamed in a shard).
        warnings: Images by code of their warnings (`images.warnings`).
        units_missing: How many units of the plan have no part.
        units_unbalanced: Units whose part has a different number of images than the plan.
        units_withdrawn: Units of earlier plans whose parts were deleted, because their images are
            in new parts, or were to be removed.
        images_unlisted: Images beside `images` that the input lacks today; their results are kept.
        images_removed: Such images whose results were removed (``--remove-unlisted``).
        images_this_time: Segmented by this command; the rest was done before.
        images_retried: Of these, how many had failed before and were retried (``--retry-failed``).
        images_recovered: Of the retried ones, how many did not fail again.
        images_per_second: `images_this_time` over ``timings["segment"]``.
        cost: Of the workers of this command, by ``run.worker_price``; 0 without one.
        pool: The workers, for people.
        runtimes: What the workers computed with: device, torch, size of batches. Where these are
            the same, so are the bytes of the results.
        nodes_taken_out: A sentence for each node of the cluster that failed so often that it got no
            more units.
        errors: What kept units from being committed, a few of them, and what else is wrong; empty
            only after success.
        nothing_to_do: Everything was done before, and nothing was written.
        published: The edition that ``latest.json`` names after this run; "" for none.
        older_edition: The edition beside this one that it was compared with; "" for none.
        edition_changes: In what this edition differs from that one.
        input_notes: Sentences about what the listing of the input left out.
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
    metrics: dict[str, float] = field(default_factory=dict)
    images: int = 0
    ok: int = 0
    failed: int = 0
    instances: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    warnings: dict[str, int] = field(default_factory=dict)
    units: int = 0
    units_missing: int = 0
    units_unbalanced: tuple[str, ...] = ()
    units_done_before: int = 0
    units_withdrawn: int = 0
    images_unlisted: int = 0
    images_removed: int = 0
    images_this_time: int = 0
    images_retried: int = 0
    images_recovered: int = 0
    images_per_second: float = 0.0
    cost: float = 0.0
    pool: str = ""
    runtimes: tuple[str, ...] = ()
    nodes_taken_out: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    execution: str = ""
    log: str = ""
    nothing_to_do: bool = False
    published: str = ""
    older_edition: str = ""
    edition_changes: tuple[str, ...] = ()
    input_notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0, 1 or 3; see `segcore.exit_codes`."""
        return _EXIT_CODES.get(self.status, ExitCode.INCOMPLETE)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def to_json(self) -> bytes:
        """The bytes of ``runs/<run>.json``."""
        return json_text(self.to_dict()).encode()

    def summary(self) -> str:
        """The summary for people, a few aligned lines."""
        reasons = join_counts(self.failures)
        seconds = self.timings.get("segment", 0.0)
        layout = EditionLayout(self.prefix)
        warnings = join_counts(self.warnings)
        rows = [
            ("status", self.status),
            ("images", f"{self.images:,}"),
            ("  ok", f"{self.ok:,}"),
            ("  failed", f"{self.failed:,}" + (f"  ({reasons})" if reasons else "")),
            ("instances", f"{self.instances:,}"),
            ("units", _summarize_units(self)),
        ]
        if warnings:
            rows.insert(4, ("  warnings", warnings))
        if seconds:
            images = plural(self.images_this_time, "image")
            pace = f"{images} in {format_duration(seconds)}, {self.images_per_second:.1f}/s"
            rows.append(("this time", pace))
        if self.images_retried:
            retried = plural(self.images_retried, "failed image")
            rows.append(("tried again", f"{retried}, {self.images_recovered:,} now ok"))
        if self.images_unlisted:
            kept = plural(self.images_unlisted, "image")
            rows.append(("unlisted", f"{kept} of earlier listings, kept besides"))
        if self.images_removed:
            removed = plural(self.images_removed, "image")
            rows.append(("removed", f"results of {removed} that the input lacks"))
        rows.append(("model", self.edition))
        rows.append(("tables", layout.parts_pattern("images")))
        rows.append(("", layout.parts_pattern("instances")))
        return align_columns(rows)

    def advice(self) -> list[str]:
        """What a person should know besides the numbers; for stderr, printable."""
        return [printable(line) for line in self._advice()]

    def _advice(self) -> list[str]:
        lines = [*self._left_out_lines(), *self._node_lines()]
        if self.status == BUDGET_REACHED:
            left = f"{self.units_missing:,} of {plural(self.units, 'unit')} are left."
            if not self.units_missing:  # of those to be done again
                left = " ".join(self.errors)
            return [
                *lines,
                "The budget of this run (run.max_images, max_seconds, max_cost) is used up: "
                f"{left} Run the same command again to go on.",
            ]
        if self.status == INCOMPLETE:
            return lines + _advice_on_incomplete_run(self)
        if self.warnings:
            lines.append(
                "Some images have warnings; the images table has their texts (column warnings), "
                "and docs/output.md explains each."
            )
        if self.status == SUCCESS:
            lines += self.errors
        lines += self._publication_lines()
        if self.units_done_before == self.units and not (self.images_retried or self.errors):
            lines.append(
                "Nothing was left to do: this edition already has results for every image of this "
                f"input ({plural(self.images, 'image')}). Use --overwrite to segment them again."
            )
        if self.status == TOO_MANY_FAILED:
            reasons = "The images table gives the reason for each (status = 'failed')."
            lines += [f"Error: {error} {reasons}" for error in self.errors[-1:]]
        return lines

    @property
    def is_published(self) -> bool:
        """Whether readers find this edition without naming it."""
        return self.published == self.edition

    @property
    def may_be_published(self) -> bool:
        """Whether the results are complete, but not published."""
        return self.status in COMPLETE and not self.is_published

    def _left_out_lines(self) -> list[str]:
        """What was not read or was read otherwise than written: by the listing, and by reading."""
        lines = [*self.input_notes, *describe_left_out(self.notes)]
        return ["Noticed while reading:", *(f"  {line}" for line in lines)] if lines else []

    def _node_lines(self) -> list[str]:
        """Nodes that need a person, once more: what was said of them is far above."""
        nodes = self.nodes_taken_out
        return ["Nodes that did not work:", *(f"  {line}" for line in nodes)] if nodes else []

    def _publication_lines(self) -> list[str]:
        """What is published instead of this edition, and how they differ."""
        if not self.may_be_published:
            return []
        what = f"latest.json names {self.published}" if self.published else "nothing is published"
        lines = [f"This edition is not published: {what}. Add --publish to publish this one."]
        if self.edition_changes:
            lines.append(
                f"It differs from {self.older_edition}: {'; '.join(self.edition_changes)}."
            )
        return lines


def _summarize_units(report: RunReport) -> str:
    details = []
    if report.units_done_before:
        details.append(f"{report.units_done_before:,} done before")
    if report.units_withdrawn:
        details.append(f"{report.units_withdrawn:,} of earlier plans deleted")
    if report.units_missing:
        details.append(f"{report.units_missing:,} MISSING")
    return f"{report.units:,}" + (f"  ({', '.join(details)})" if details else "")


def _advice_on_incomplete_run(report: RunReport) -> list[str]:
    lines = []
    if report.units_missing:
        verb = "has" if report.units_missing == 1 else "have"
        lines.append(
            f"Error: {report.units_missing:,} of {plural(report.units, 'unit')} {verb} no result. "
            "Run the same command again to do only what is missing."
        )
    if report.units_unbalanced:
        count = len(report.units_unbalanced)
        verb = "holds" if count == 1 else "hold"
        lines.append(
            f"Error: {plural(count, 'unit')} {verb} a different number of images than planned, "
            f"for example {report.units_unbalanced[0]}: the input changed while it was being "
            "read. Run the same command again, and with --overwrite if that does not fix it."
        )
    return lines + [f"  {error}" for error in report.errors]
