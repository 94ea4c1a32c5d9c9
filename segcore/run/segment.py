"""One run from configuration to report; every step is a function of another module.

The order is the contract: what the run will do is written first, then its parts; parts of earlier
plans are deleted once all of these exist, then comes the report, and ``latest.json`` last. Whatever
dies in between, running the same command again resumes from what exists.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from segcore.config import Config
from segcore.distributed.indexing import index_shards
from segcore.errors import Interrupted, NothingFound, UsageError
from segcore.lease.acquire import refuse_if_held
from segcore.lease.hold import heartbeat_options, hold_lease
from segcore.lease.lease import Lease
from segcore.output.committed import CommittedParts
from segcore.output.execution_log import ExecutionLog, collect_log
from segcore.output.executions import new_execution_id, record_death, write_execution
from segcore.output.latest import publish, read_published, should_publish
from segcore.output.left_out import describe_left_out
from segcore.output.preview import Preview
from segcore.output.report import (
    COMPLETE,
    NOTHING_FOUND,
    RunReport,
)
from segcore.output.rereads import delete_reread_marks, read_reread_marks
from segcore.planning.plan import Units, remaining_units, select_units
from segcore.planning.plan_files import write_plan
from segcore.run.account import MAX_ERRORS_KEPT, new_report, take_account, with_work_left
from segcore.run.budget import Budget
from segcore.run.carry_over import carry_over
from segcore.run.history import log_and_tell, log_end, open_log, record_early_end, utc_now
from segcore.run.job import (
    Job,
    check_paths_reachable,
    load_model_of,
    prepare_job,
    refresh_job,
)
from segcore.run.job_model import JobModel
from segcore.run.metrics_file import metrics_file
from segcore.run.passes import Notify, Pass, RunState, connect_workers, run_passes
from segcore.run.settle import settle
from segcore.signals import sigterm_as_interrupt
from segcore.storage import Storage
from segcore.text import plural


def preview(
    config: Config,
    *,
    overwrite: bool = False,
    retry_failed: bool = False,
    remove_unlisted: bool = False,
) -> Preview:
    """What `segment` would do; writes nothing and does not start Ray."""
    job = prepare_job(config, overwrite=overwrite)
    state = RunState(retry_failed=retry_failed, remove_unlisted=remove_unlisted)
    planned = job.preview(remove_unlisted=remove_unlisted)
    return replace(planned, nothing_to_do=_nothing_to_do(job, state))


def segment(
    config: Config,
    *,
    overwrite: bool = False,
    retry_failed: bool = False,
    remove_unlisted: bool = False,
    model: JobModel | None = None,
    check_job: Callable[[Job], None] = lambda job: None,
    notify: Notify = lambda text: None,
) -> RunReport:
    """Segment an archive; resume where an earlier run of the same edition stopped.

    Args:
        config: The whole configuration.
        overwrite: Delete the results of this edition first.
        retry_failed: Also segment the failed images of units that are done already.
        remove_unlisted: Once all is done, delete the results of images that the input lacks today.
        model: What the configuration names, recalled; it is loaded only if there is work.
        check_job: Called with what the run is to do before anything is written; may raise.
        notify: Takes sentences for people while the run is in progress.

    Returns:
        The report; its `exit_code` tells whether everything is accounted for.

    Raises:
        SegcoreError: Nothing could be started, or the run broke off.
        LeaseHeld: Another run is at work on this edition.
        Interrupted: Ctrl-C or SIGTERM.
    """
    if overwrite and retry_failed:
        raise UsageError(
            "--overwrite and --retry-failed contradict each other.",
            hint="--overwrite segments everything again, failed images included.",
        )
    with collect_log(config.log) as log:
        state = RunState(retry_failed=retry_failed, remove_unlisted=remove_unlisted)
        state.budget = Budget.of(config.run)
        state.warn = log_and_tell(notify, logging.WARNING)
        with metrics_file(config.metrics.file, state) as take_report:
            job = _prepare(config, state, notify, model, overwrite=overwrite)
            check_job(job)
            report = _segment(job, state, log_and_tell(notify), log, overwrite=overwrite)
            take_report(report)
        return report


def _prepare(
    config: Config, state: RunState, notify: Notify, model: JobModel | None, *, overwrite: bool
) -> Job:
    with state.timed("prepare"):
        check_paths_reachable(config)
        keep = partial(index_shards, options=config.ray, notify=log_and_tell(notify))
        job = prepare_job(config, overwrite=overwrite, index_shards=keep, model=model)
        if job.model.is_loaded or _nothing_to_do(job, state):
            return job
        return load_model_of(job)


def _segment(
    job: Job, state: RunState, notify: Notify, log: ExecutionLog, *, overwrite: bool
) -> RunReport:
    planned = job.preview(remove_unlisted=state.remove_unlisted)
    for sentence in (*planned.notes(), planned.summary_line()):
        notify(sentence)
    if _nothing_to_do(job, state):
        return _report_nothing_done(job, state)
    with ExitStack() as stack:
        stack.enter_context(sigterm_as_interrupt())
        stack.enter_context(_interrupt_as_error(job, state))
        # Nothing is written before Ray has what the run needs: a run that cannot begin leaves
        # no trace.
        stack.enter_context(_ready_for_work(job, planned, state))
        lease = stack.enter_context(_hold_edition(job, notify))
        state.check_lease = lease.check
        with state.timed("prepare"):  # another run may have been at work until now
            job = refresh_job(job, overwrite=overwrite)
        if _nothing_to_do(job, state):
            return _report_nothing_done(job, state)
        stack.enter_context(record_early_end(job, state, lease))
        return _run_job(job, state, notify, log, overwrite=overwrite)


@contextmanager
def _ready_for_work(job: Job, planned: Preview, state: RunState) -> Iterator[None]:
    """Ray with the resources that the run needs, if there are images to segment."""
    refuse_if_held(job.storage, job.layout.lease_folder, job.config.run.lease_ttl_s)
    n_units = planned.units_left
    if job.rereads or (state.retry_failed and job.last_run is not None and job.last_run.failed):
        n_units = max(n_units, 1)
    with connect_workers(job, n_units, state) if n_units else nullcontext():
        yield


def _hold_edition(job: Job, notify: Notify) -> AbstractContextManager[Lease]:
    """Nobody else writes into the edition while this is held."""
    ttl_s = job.config.run.lease_ttl_s
    return hold_lease(
        job.storage,
        job.layout.lease_folder,
        ttl_s,
        notify,
        Storage(heartbeat_options(job.config.storage, ttl_s)),
    )


def _run_job(
    job: Job, state: RunState, notify: Notify, log: ExecutionLog, *, overwrite: bool
) -> RunReport:
    """Everything that writes, from the run's record on; the lease must be held."""
    state.check_lease()
    started = state.started = _write_run_start(job, overwrite)
    open_log(log, job, started)
    with state.timed("carry"):
        state.carried = carry_over(job.parts, job.plan, job.committed, job.counts.add_written)
    state.check_lease()
    if overwrite:
        job.parts.delete_all_but({})
        delete_reread_marks(job.storage, job.layout, read_reread_marks(job.storage, job.layout))
    passes = [Pass(remaining_units(job.plan.units, job.committed | state.carried))]
    if job.rereads:
        passes.append(Pass(_units_to_reread(job, state, notify), retry_failed=True))
    if state.retry_failed:
        passes.append(Pass(_units_to_retry(job, state, notify), retry_failed=True))
    most_images = job.config.plan.images
    passes = [
        replace(candidate, units=state.budget.cut(candidate.units, most_images, state.retried))
        for candidate in passes
    ]
    passes = [candidate for candidate in passes if candidate.units]
    if passes:
        run_passes(job, passes, state, notify)
    report = _finish(job, state, started)
    _say_what_is_compacted(job, notify)
    return report


def _say_what_is_compacted(job: Job, notify: Notify) -> None:
    """Name the place of the rows that are in compacted files; the report names that of parts."""
    compacted = job.parts.compacted.units(refresh=False)
    if compacted.layout is not None:
        n_units = len(compacted.generations.keys() & job.planned)
        notify(
            f"The rows of {plural(n_units, 'unit')} lie in compacted files, "
            f"{compacted.layout.prefix}; the patterns of the report find only parts beside these."
        )


def _write_run_start(job: Job, overwrite: bool) -> RunReport:
    """Write the edition, the plan and the run's record, before anything else changes."""
    storage, layout, run = job.storage, job.layout, job.plan.run
    if overwrite:
        storage.write(layout.edition_json, job.edition.to_json())
    else:
        storage.write_if_absent(layout.edition_json, job.edition.to_json())
    if overwrite or job.last_run is None or job.last_run.run != run:
        storage.delete(layout.unlisted(run))  # of an earlier run with this very plan
    storage.write_with(layout.plan(run), partial(write_plan, job.plan))
    if job.last_run is not None:
        record_death(storage, layout, job.last_run.values)
    execution = new_execution_id()
    started = replace(
        new_report(job), execution=execution, log=layout.log_folder(execution), started=utc_now()
    )
    storage.write(layout.run_record(run), started.to_json())
    return started


def _units_to_reread(job: Job, state: RunState, notify: Notify) -> Units:
    """The units done before whose shards hold more; their rows stay, and others join them."""
    units = sorted(job.rereads.keys() & job.planned & job.committed)
    state.reread = {counts.unit: counts.images for counts in job.parts.read_counts(units)}
    notify(f"Reading {plural(len(set(job.rereads.values())), 'shard')} again for more images.")
    return select_units(job.plan.units, units)


def _units_to_retry(job: Job, state: RunState, notify: Notify) -> Units:
    """The units done before that have failed images; records how many in `state`.

    In any order: some fail for ever, and a run with a budget must come to the others, too.
    """
    listed = job.parts.list_committed() if state.carried else job.listed
    job.counts.compacted = listed.compacted
    counts = job.counts.counts_of(listed.rows_of(job.plan.units.table["unit"]))
    failed = counts.filter(pc.greater(counts["failed"], 0))
    columns = (failed[name].to_pylist() for name in ("unit", "failed"))
    state.retried = {
        unit: number for unit, number in zip(*columns, strict=True) if unit not in state.reread
    }
    images = plural(sum(state.retried.values()), "failed image")
    notify(f"Trying {images} in {plural(len(state.retried), 'unit')} again.")
    units = select_units(job.plan.units, state.retried)
    order = random.sample(range(len(units)), len(units))
    return Units(units.table.take(pa.array(order, pa.int64())))


def _finish(job: Job, state: RunState, started: RunReport) -> RunReport:
    """Account, settle, write the report, and publish the result if it is complete."""
    storage, layout = job.storage, job.layout
    with state.timed("account"):
        committed = job.parts.list_committed()
    report = take_account(job, state, committed)
    report = replace(report, started=started.started, execution=started.execution, log=started.log)
    if not report.images and not report.units_missing and not job.config.source.allow_empty:
        report = replace(report, status=NOTHING_FOUND)
    report = with_work_left(report, state)
    state.check_lease()
    if report.status in COMPLETE:
        report = _settle(job, state, report, committed)
    job.counts.save(committed.newest)
    now_published = read_published(storage, job.output)  # another edition's run may have ended
    publishes = report.status in COMPLETE and should_publish(
        now_published, layout.name, job.config.run.publish
    )
    published = layout.name if publishes else now_published.edition
    report = replace(report, published=published, finished=utc_now(), timings=state.timings)
    state.check_lease()
    storage.write(layout.run_record(job.plan.run), report.to_json())
    if publishes:
        publish(storage, layout, job.plan.run, report.status)
    write_execution(storage, layout, report.to_dict())
    log_end(report)
    if report.status == NOTHING_FOUND:
        left_out = "; ".join((*report.input_notes, *describe_left_out(report.notes))).rstrip(".")
        raise NothingFound(
            f"{job.plan.input} was read to its end and holds no images: {left_out or 'nothing'}.",
            "Set source.allow_empty=true if an input may be empty.",
        )
    return report


def _settle(job: Job, state: RunState, report: RunReport, committed: CommittedParts) -> RunReport:
    """Keep or remove what today's listing lacks, delete what is replaced; the report with that."""
    with state.timed("settle"):
        settlement = settle(
            job.parts,
            job.plan,
            job.last_unlisted,
            {record.run: record.sequence for record in job.records} | {job.plan.run: job.sequence},
            committed,
            remove_unlisted=state.remove_unlisted,
            check_lease=state.check_lease,
        )
    delete_reread_marks(job.storage, job.layout, job.rereads)
    return replace(
        report,
        images_unlisted=settlement.images_unlisted,
        images_removed=settlement.images_removed,
        units_withdrawn=settlement.units_deleted,
    )


def _report_nothing_done(job: Job, state: RunState) -> RunReport:
    """The report of a run that finds everything done; no result is written."""
    report = replace(take_account(job, state, job.listed), nothing_to_do=True)
    job.counts.save_if_worthwhile()
    return report


def _nothing_to_do(job: Job, state: RunState) -> bool:
    """Whether the last run had this very plan, ended, and is published if it is to be."""
    last_run = job.last_run
    if state.retry_failed and last_run is not None and last_run.failed:
        return False
    if state.remove_unlisted and job.last_unlisted is not None and job.last_unlisted.rows.num_rows:
        return False
    if job.rereads or job.left:
        return False
    if last_run is None or last_run.run != job.plan.run or last_run.status not in COMPLETE:
        return False
    if not all(map(job.storage.exists, _files_that_readers_need(job, last_run.run))):
        return False  # somebody deleted one
    if not should_publish(job.published, job.edition.name, job.config.run.publish):
        return True
    return job.published == (job.edition.name, job.plan.run)


def _files_that_readers_need(job: Job, run: str) -> Iterator[str]:
    """The files besides parts that this run wrote, and of which it is not known that they exist."""
    yield job.layout.plan(run)
    if job.published.edition != job.edition.name:
        yield job.layout.edition_json
    if not job.committed <= job.planned:
        yield job.layout.unlisted(run)


@contextmanager
def _interrupt_as_error(job: Job, state: RunState) -> Iterator[None]:
    """Turn an interrupt into an error that says how to resume."""
    try:
        yield
    except KeyboardInterrupt:
        done = len(job.planned & job.parts.committed_units())
        stopped = Interrupted.after(done, plural(len(job.planned), "unit"))
        stopped.details = tuple(dict.fromkeys(state.errors.values()))[:MAX_ERRORS_KEPT]
        raise stopped from None
