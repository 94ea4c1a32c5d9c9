"""The account of a run: what storage holds of its plan, in numbers that balance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from segcore.output.committed import CommittedParts
from segcore.output.metrics import to_document
from segcore.output.report import (
    BUDGET_REACHED,
    COMPLETE,
    INCOMPLETE,
    RUNNING,
    TOO_MANY_FAILED,
    Account,
    RunReport,
    final_status,
    reconcile,
)
from segcore.output.unlisted import count_unlisted
from segcore.run.job import Job
from segcore.run.passes import RunState
from segcore.text import plural

MAX_ERRORS_KEPT = 10


def new_report(job: Job) -> RunReport:
    """A report that says what is run, and nothing yet of how it went."""
    changes = job.changes
    return RunReport(
        status=RUNNING,
        run=job.plan.run,
        edition=job.edition.name,
        input=job.plan.input,
        output=job.output.uri,
        prefix=job.layout.prefix,
        model=job.model.info.name,
        sequence=job.sequence,
        max_failed_fraction=job.config.run.max_failed_fraction,
        published=job.published.edition,
        older_edition=changes.older if changes else "",
        edition_changes=changes.fields if changes else (),
        input_notes=job.plan.notes,
        units=len(job.plan.units),
        units_done_before=job.n_done,
    )


def take_account(job: Job, state: RunState, committed: CommittedParts) -> RunReport:
    """The report, from what lies in storage.

    Args:
        committed: All parts that exist now.

    Raises:
        StorageError: A part of the plan is not readable.
    """
    planned = job.plan.units.table.select(["unit", "n_images"])
    with state.timed("account"):
        job.counts.compacted = committed.compacted
        counts = job.counts.counts_of(committed.rows_of(planned["unit"]))
        images_unlisted = count_unlisted(job.storage, job.layout, job.plan.run)
    account = reconcile(planned, counts)
    done_before = _rows_of(counts, job.committed | state.carried)
    new_images = account.images - _sum_images(done_before)
    tried = state.retried.keys() & state.done  # not those that an outage or the budget left
    failed_again = pc.sum(_rows_of(counts, tried)["failed"]).as_py() or 0
    images_retried = sum(state.retried[unit] for unit in tried)
    reread = _rows_of(counts, state.reread)
    images_before = sum(state.reread[unit] for unit in reread["unit"].to_pylist())
    new_images += _sum_images(reread) - images_before
    images_this_time = new_images + images_retried
    seconds = state.timings.get("segment", 0.0)
    return replace(
        new_report(job),
        status=_status(account, state, job.config.run.max_failed_fraction),
        timings=state.timings,
        metrics=to_document(state.samples),
        images=account.images,
        ok=account.ok,
        failed=account.failed,
        instances=account.instances,
        failures=account.failures,
        notes=account.notes,
        warnings=account.warnings,
        units_missing=len(account.missing),
        units_unbalanced=account.unbalanced,
        images_unlisted=images_unlisted,
        images_this_time=images_this_time,
        images_retried=images_retried,
        images_recovered=images_retried - failed_again,
        images_per_second=round(images_this_time / seconds, 3) if seconds else 0.0,
        pool=state.pool,
        runtimes=tuple(sorted(state.runtimes)),
        nodes_taken_out=tuple(state.nodes_taken_out.values()),
        cost=round(state.budget.cost(), 4),
        errors=_describe_errors(account, state, job.config.run.max_failed_fraction),
    )


def _status(account: Account, state: RunState, max_failed_fraction: float) -> str:
    """How the run ended; units that its budget left are no failure."""
    status = final_status(account, max_failed_fraction)
    is_sound = not state.errors and not account.unbalanced
    return BUDGET_REACHED if status == INCOMPLETE and state.budget.reached and is_sound else status


def with_work_left(report: RunReport, state: RunState) -> RunReport:
    """The report of a run that did not come to all committed units that it was to do again.

    They have their rows of before, so counts alone would make it a success. It is one where only
    its budget left failed images: some may fail for ever, and take all of it every time.
    """
    n_shards = len(state.reread.keys() - state.done)
    n_images = sum(state.retried[unit] for unit in state.retried.keys() - state.done)
    is_left = state.budget.reached and report.status in (BUDGET_REACHED, *COMPLETE)
    errors, status = report.errors, report.status
    if n_images:
        errors = (_describe_left(n_images, "failed image", "tried again", is_left), *errors)
        status = status if is_left else INCOMPLETE
    if n_shards:
        what = "read again for more images"
        errors = (_describe_left(n_shards, "shard", what, is_left), *errors)
        status = BUDGET_REACHED if is_left else INCOMPLETE
    return replace(report, status=status, errors=errors)


def _describe_left(number: int, noun: str, what: str, is_left: bool) -> str:
    verb = "could not be"
    if is_left:
        verb = f"{'is' if number == 1 else 'are'} left to be"
    return f"{plural(number, noun)} {verb} {what}."


def _describe_errors(
    account: Account, state: RunState, max_failed_fraction: float
) -> tuple[str, ...]:
    """What is wrong: nothing only where the run is a success."""
    errors = list(dict.fromkeys(state.errors.values()))[:MAX_ERRORS_KEPT]
    unexplained = [unit for unit in account.missing if unit not in state.errors]
    not_listed = [unit for unit in unexplained if unit in state.done]
    lost = [unit for unit in unexplained if unit not in state.done]
    if not_listed:
        errors.append(
            f"{plural(len(not_listed), 'unit')} written by this run and not listed, for example "
            f"{not_listed[0]}: the storage lists objects late, or something deleted them. The same "
            "command, run again, does what is still missing then."
        )
    if lost and state.budget.reached:
        errors.append(
            f"{plural(len(lost), 'unit')} left for the next run: the budget of this one "
            "(run.max_images, max_seconds, max_cost) is used up."
        )
    elif lost:
        errors.append(
            f"{plural(len(lost), 'unit')} got no result, for example {lost[0]}: the worker "
            "processes died on them, or were lost with their nodes."
        )
    if account.unbalanced:
        errors.append(
            f"{plural(len(account.unbalanced), 'unit')} of another number of images than planned, "
            f"for example {account.unbalanced[0]}: the input changed while it was being read."
        )
    if final_status(account, max_failed_fraction) == TOO_MANY_FAILED:
        share = account.failed / account.images
        errors.append(
            f"{account.failed:,} of {plural(account.images, 'image')} failed ({share:.1%}); "
            f"run.max_failed_fraction allows {max_failed_fraction:.1%}."
        )
    return tuple(errors)


def _rows_of(counts: pa.Table, units: Iterable[str]) -> pa.Table:
    """The rows of these units."""
    return counts.filter(pc.is_in(counts["unit"], value_set=pa.array(list(units), pa.string())))


def _sum_images(counts: pa.Table) -> int:
    return sum(int(pc.sum(counts[name]).as_py() or 0) for name in ("ok", "failed"))
