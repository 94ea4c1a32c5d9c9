"""One run from configuration to report; every step is a function of another module.

The order is the contract: what the run will do is written before anything is deleted, parts
are written before the report, and ``latest.json`` last. Whatever dies in between, the same
command again goes on from what exists.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime

from segcore.config import Config
from segcore.errors import NothingFound, ObjectNotFound, SegcoreError, UsageError
from segcore.lease.hold import heartbeat_options, hold_lease
from segcore.lease.lease import Lease
from segcore.output.parts import SCHEMA_VERSION
from segcore.output.report import (
    COMPLETE,
    RUNNING,
    Preview,
    RunReport,
    final_status,
    reconcile,
)
from segcore.planning.plan import Units, remaining_units, select_units
from segcore.planning.plan_files import encode_plan
from segcore.run.carry_over import carry_over
from segcore.run.job import MAX_JSON_BYTES, Job, check_paths_reachable, prepare_job, refresh_job
from segcore.run.passes import Notify, Pass, RunState, run_passes
from segcore.signals import sigterm_as_interrupt
from segcore.storage import Storage, join

MAX_ERRORS_KEPT = 10


class Interrupted(SegcoreError):
    """Somebody stopped the run; what is committed stays."""

    exit_code = 130


def preview(config: Config, *, overwrite: bool = False) -> Preview:
    """What `segment` would do; writes nothing and starts no Ray."""
    return prepare_job(config, overwrite=overwrite).preview()


def segment(
    config: Config,
    *,
    overwrite: bool = False,
    retry_failed: bool = False,
    notify: Notify = lambda text: None,
) -> RunReport:
    """Segment an archive; go on where an earlier run of the same edition stopped.

    Args:
        config: The whole configuration.
        overwrite: Delete the results of this edition first.
        retry_failed: Segment also the failed images of units that are done again.
        say: Takes sentences for people while the run goes on.

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
            hint="--overwrite does everything again, failed images included.",
        )
    course = RunState()
    with course.timed("prepare"):
        job = prepare_job(config, overwrite=overwrite)
        check_paths_reachable(job)
    for sentence in (*job.plan.notes, job.preview().summary_line()):
        notify(sentence)
    if _nothing_to_do(job, retry_failed):
        return _balance(job, course)
    with sigterm_as_interrupt(), _stoppable(job), _lease(job, notify) as lease:
        course.check = lease.check
        with course.timed("prepare"):  # somebody else may have been at work until now
            job = refresh_job(job, overwrite=overwrite)
        if _nothing_to_do(job, retry_failed):
            return _balance(job, course)
        return _segment_alone(job, course, notify, overwrite=overwrite, retry_failed=retry_failed)


def _lease(job: Job, notify: Notify) -> AbstractContextManager[Lease]:
    """Nobody else writes into the edition while this is held."""
    ttl_s = job.config.run.lease_ttl_s
    return hold_lease(
        job.storage,
        join(job.prefix, "lease"),
        ttl_s,
        notify,
        Storage(heartbeat_options(job.config.storage, ttl_s)),
    )


def _segment_alone(
    job: Job, course: RunState, notify: Notify, *, overwrite: bool, retry_failed: bool
) -> RunReport:
    """Everything that writes, from the run's record on."""
    course.check()
    started = _begin(job, overwrite)
    with course.timed("carry"):
        course.carried = carry_over(job.parts, job.plan, job.committed)
    course.check()
    course.units_deleted = job.parts.delete_stale(set() if overwrite else set(job.planned))
    tasks = [Pass(remaining_units(job.plan, job.committed | course.carried))]
    if retry_failed:
        tasks.append(Pass(_with_failures(job, course, notify), retry_failed=True))
    tasks = [task for task in tasks if task.units]
    if tasks:
        run_passes(job, tasks, course, notify)
    return _finish(job, course, started)


def _begin(job: Job, overwrite: bool) -> RunReport:
    """Write down what is about to be done."""
    storage = job.storage
    edition = job.uri("edition.json")
    if overwrite:
        storage.write(edition, job.edition.to_json())
    else:
        storage.write_if_absent(edition, job.edition.to_json())
    storage.write(job.uri("plans", f"{job.plan.run}.parquet"), encode_plan(job.plan))
    started = replace(_blank(job), status=RUNNING, started=_now())
    storage.write(job.uri("runs", f"{job.plan.run}.json"), started.to_json())
    return started


def _with_failures(job: Job, course: RunState, notify: Notify) -> Units:
    """The units done before that have failed images; notes how many."""
    done = job.planned.keys() & (job.committed | course.carried)
    found = {counts.unit: counts.failed for counts in job.parts.counts(sorted(done))}
    course.retried = {unit: failed for unit, failed in found.items() if failed}
    images = sum(course.retried.values())
    notify(f"{images:,} failed images in {len(course.retried):,} units are tried again.")
    return select_units(job.plan.units, course.retried)


def _finish(job: Job, course: RunState, started: RunReport) -> RunReport:
    """Account, write the report, and publish the result if it is complete."""
    report = replace(_balance(job, course), started=started.started, finished=_now())
    course.check()
    job.storage.write(job.uri("runs", f"{job.plan.run}.json"), report.to_json())
    if not report.images and not report.units_missing and not job.config.source.allow_empty:
        noticed = ", ".join(f"{name} {count:,}" for name, count in report.notes.items())
        raise NothingFound(
            f"{job.plan.input} was read to its end and holds no images ({noticed or 'nothing'}).",
            "Set source.allow_empty=true if an input may be empty.",
        )
    if report.status in COMPLETE:
        pointer = {
            "schema_version": SCHEMA_VERSION,
            "edition": job.edition.name,
            "run": job.plan.run,
            "status": report.status,
        }
        data = (json.dumps(pointer, indent=2) + "\n").encode()
        job.storage.write(join(job.output, "latest.json"), data)
    return report


def _balance(job: Job, course: RunState) -> RunReport:
    """The report from what lies in storage now."""
    with course.timed("account"):
        parts = list(job.parts.counts(sorted(job.planned.keys() & job.parts.committed())))
    found = reconcile(job.planned, parts)
    before = job.committed | course.carried
    fresh = sum(part.images for part in parts if part.unit not in before)
    still = sum(part.failed for part in parts if part.unit in course.retried)
    retried = sum(course.retried.values())
    working = course.timings.get("segment", 0.0)
    return replace(
        _blank(job),
        status=final_status(found, job.config.run.max_failed_fraction),
        timings=course.timings,
        images=found.images,
        ok=found.ok,
        failed=found.failed,
        instances=found.instances,
        failures=found.failures,
        notes=found.notes,
        units_missing=len(found.missing),
        units_unbalanced=found.unbalanced,
        units_withdrawn=course.units_deleted,
        images_this_time=fresh + retried,
        images_retried=retried,
        images_recovered=retried - still,
        images_per_second=round((fresh + retried) / working, 3) if working else 0.0,
        pool=course.pool,
        errors=tuple(dict.fromkeys(course.errors.values()))[:MAX_ERRORS_KEPT],
    )


def _blank(job: Job) -> RunReport:
    """A report that says what is run, and nothing yet of how it went."""
    return RunReport(
        status=RUNNING,
        run=job.plan.run,
        edition=job.edition.name,
        input=job.plan.input,
        output=job.output,
        prefix=job.prefix,
        model=job.info.name,
        sequence=job.sequence,
        max_failed_fraction=job.config.run.max_failed_fraction,
        units=len(job.planned),
        units_done_before=len(job.planned.keys() & job.committed),
    )


def _nothing_to_do(job: Job, retry_failed: bool) -> bool:
    """Whether the last run of this very plan ended and is what ``latest.json`` points to."""
    if retry_failed and job.last.get("failed"):
        return False
    if remaining_units(job.plan, set(job.committed)):
        return False
    if job.last.get("run") != job.plan.run or job.last.get("status") not in COMPLETE:
        return False
    try:
        pointer = json.loads(job.storage.read(join(job.output, "latest.json"), MAX_JSON_BYTES))
    except (ObjectNotFound, ValueError):
        return False
    return isinstance(pointer, dict) and (pointer.get("edition"), pointer.get("run")) == (
        job.edition.name,
        job.plan.run,
    )


@contextmanager
def _stoppable(job: Job) -> Iterator[None]:
    """Turn an interrupt into an error that says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        done = len(job.planned.keys() & job.parts.committed())
        raise Interrupted(
            f"Stopped; {done:,} of {len(job.planned):,} units are done and kept.",
            hint="Run the same command again to go on from there.",
        ) from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
