"""One run from configuration to report; every step is a function of another module.

The order is the contract: what the run will do is written before anything is deleted, parts
are written before the report, and ``latest.json`` last. Whatever dies in between, the same
command again goes on from what exists.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from segcore import cluster
from segcore.carry import carry
from segcore.config import Config
from segcore.errors import ObjectNotFound, SegcoreError
from segcore.job import MAX_JSON_BYTES, Job, check_reach, prepare, refresh
from segcore.lease import Lease, hasty, held
from segcore.parts import SCHEMA_VERSION
from segcore.plan import Units, choose, remaining, save
from segcore.report import (
    COMPLETE,
    RUNNING,
    Preview,
    Report,
    account,
    judge,
)
from segcore.storage import Storage, join
from segcore.telemetry import Goal, progress
from segcore.worker import Reading

if TYPE_CHECKING:
    from segcore.actors import ActorSpec, UnitOutcome
    from segcore.pipeline import Pipeline

MAX_ERRORS_KEPT = 10

Say = Callable[[str], None]


class Interrupted(SegcoreError):
    """Somebody stopped the run; what is committed stays."""

    exit_code = 130


@dataclass
class _Course:
    """What happens while the run goes on."""

    timings: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)  # unit -> why it was not committed
    done: dict[str, UnitOutcome] = field(default_factory=dict)
    withdrawn: int = 0
    carried: set[str] = field(default_factory=set)  # units whose results were there already
    pool: str = ""
    check: Callable[[], None] = lambda: None  # raises once this run may not go on

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the seconds of the block to `timings`."""
        began = time.monotonic()
        try:
            yield
        finally:
            took = time.monotonic() - began
            self.timings[step] = round(self.timings.get(step, 0.0) + took, 3)

    def note(self, outcome: UnitOutcome) -> None:
        """Remember what became of a unit; a success forgets earlier errors."""
        if outcome.error:
            self.errors[outcome.unit] = outcome.error
        elif not outcome.alone:
            self.errors.pop(outcome.unit, None)
            self.done[outcome.unit] = outcome


def preview(config: Config, *, overwrite: bool = False) -> Preview:
    """What `segment` would do; writes nothing and starts no Ray."""
    return prepare(config, overwrite=overwrite).preview()


def segment(config: Config, *, overwrite: bool = False, say: Say = lambda text: None) -> Report:
    """Segment an archive; go on where an earlier run of the same edition stopped.

    Args:
        config: The whole configuration.
        overwrite: Delete the results of this edition first.
        say: Takes sentences for people while the run goes on.

    Returns:
        The report; its `exit_code` tells whether everything is accounted for.

    Raises:
        SegcoreError: Nothing could be started, or the run broke off.
        LeaseHeld: Another run is at work on this edition.
        Interrupted: Ctrl-C or SIGTERM.
    """
    course = _Course()
    with course.timed("prepare"):
        job = prepare(config, overwrite=overwrite)
        check_reach(job)
    for sentence in (*job.plan.notes, job.preview().sentence()):
        say(sentence)
    if _nothing_to_do(job):
        return _balance(job, course)
    with _sigterm_as_interrupt(), _stoppable(job), _lease(job, say) as lease:
        course.check = lease.check
        with course.timed("prepare"):  # somebody else may have been at work until now
            job = refresh(job, overwrite=overwrite)
        if _nothing_to_do(job):
            return _balance(job, course)
        return _segment_alone(job, course, overwrite, say)


def _lease(job: Job, say: Say) -> AbstractContextManager[Lease]:
    """Nobody else writes into the edition while this is held."""
    ttl_s = job.config.run.lease_ttl_s
    return held(job.storage, job.prefix, ttl_s, say, Storage(hasty(job.config.storage, ttl_s)))


def _segment_alone(job: Job, course: _Course, overwrite: bool, say: Say) -> Report:
    """Everything that writes, from the run's record on."""
    course.check()
    started = _begin(job, overwrite)
    with course.timed("carry"):
        course.carried = carry(job.parts, job.plan, job.committed)
    course.check()
    course.withdrawn = job.parts.withdraw(set() if overwrite else set(job.planned))
    units = remaining(job.plan, job.committed | course.carried)
    if units:
        _work(job, units, course, say)
    return _finish(job, course, started)


def _begin(job: Job, overwrite: bool) -> Report:
    """Write down what is about to be done."""
    storage = job.storage
    edition = job.uri("edition.json")
    if overwrite:
        storage.write(edition, job.edition.to_json())
    else:
        storage.write_if_absent(edition, job.edition.to_json())
    storage.write(job.uri("plans", f"{job.plan.run}.parquet"), save(job.plan))
    started = replace(_blank(job), status=RUNNING, started=_now())
    storage.write(job.uri("runs", f"{job.plan.run}.json"), started.to_json())
    return started


def _work(job: Job, units: Units, course: _Course, say: Say) -> None:
    """Run units until each has a part or its attempts are used up."""
    from segcore.pipeline import Pipeline

    options = job.config.ray
    with ExitStack() as stack:
        with course.timed("start_ray"):
            stack.enter_context(cluster.connected(options))
            stack.enter_context(_sigterm_as_interrupt())  # Ray has just put its own in place
            pool = cluster.make_pool(options, job.config.model.device, len(units), cluster.nodes())
        course.pool = pool.words()
        say(f"Working with {course.pool}.")
        pipeline = Pipeline(_spec(job, pool), pool, options.units_per_wave)
        stack.enter_context(progress(pipeline.snapshot, _goal(units)))
        # What counts is what lies in storage, not what the actors said.
        with course.timed("segment"):
            for _ in range(job.config.run.attempts):
                units = _pass(
                    pipeline, units, course, lambda: remaining(job.plan, job.parts.committed()), say
                )
                course.check()
                if not units:
                    break


def _pass(
    pipeline: Pipeline, units: Units, course: _Course, left: Callable[[], Units], say: Say
) -> Units:
    """One pass over `units`: through the pool, then image by image those whose process died.

    Returns:
        What is left to do.
    """
    said = set()
    for outcome in pipeline.run(units):
        course.note(outcome)
        if outcome.error:
            said.add(outcome.unit)
    units = left()
    lost = choose(units, set(units.ids()) - said)
    if not lost:
        return units
    say(f"{len(lost):,} units lost their process; looking for the image that is to blame.")
    for outcome in pipeline.isolate(lost):
        course.note(outcome)
    return left()


def _finish(job: Job, course: _Course, started: Report) -> Report:
    """Account, write the report, and publish the result if it is complete."""
    report = replace(_balance(job, course), started=started.started, finished=_now())
    course.check()
    job.storage.write(job.uri("runs", f"{job.plan.run}.json"), report.to_json())
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


def _balance(job: Job, course: _Course) -> Report:
    """The report from what lies in storage now."""
    with course.timed("account"):
        parts = list(job.parts.counts(sorted(job.planned.keys() & job.parts.committed())))
    found = account(job.planned, parts)
    before = job.committed | course.carried
    fresh = sum(part.images for part in parts if part.unit not in before)
    working = course.timings.get("segment", 0.0)
    return replace(
        _blank(job),
        status=judge(found, job.config.run.max_failed_fraction),
        timings=course.timings,
        images=found.images,
        ok=found.ok,
        failed=found.failed,
        instances=found.instances,
        failures=found.failures,
        notes=found.notes,
        units_missing=len(found.missing),
        units_unbalanced=found.unbalanced,
        units_withdrawn=course.withdrawn,
        images_this_time=fresh,
        images_per_second=round(fresh / working, 3) if working else 0.0,
        pool=course.pool,
        errors=tuple(dict.fromkeys(course.errors.values()))[:MAX_ERRORS_KEPT],
    )


def _blank(job: Job) -> Report:
    """A report that says what is run, and nothing yet of how it went."""
    return Report(
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


def _spec(job: Job, pool: cluster.Pool) -> ActorSpec:
    """What every actor of `pool` is told."""
    from segcore.actors import ActorSpec

    config = job.config
    return ActorSpec(
        model=config.model.name,
        weights=job.weights,
        weights_sha256=job.info.weights_sha256,
        options=config.model.options().model_copy(update={"device": pool.device}),
        reading=Reading(
            storage=job.storage,
            source=config.source,
            decode=config.decode,
            threads=config.ray.decode_threads or pool.threads,
            max_decoded_bytes=config.ray.max_decoded_bytes,
            image_timeout_s=config.run.image_timeout_s,
        ),
        parts=job.parts,
        max_bytes=config.ray.max_actor_bytes if pool.device == "cpu" else None,
    )


def _goal(units: Units) -> Goal:
    images = units.table["n_images"]
    return Goal(
        images=None if images.null_count else pc.sum(images).as_py(),
        units=len(units),
        bytes=pc.sum(units.table["n_bytes"]).as_py(),
    )


def _nothing_to_do(job: Job) -> bool:
    """Whether the last run of this very plan ended and is what ``latest.json`` points to."""
    if remaining(job.plan, set(job.committed)):
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
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM, as batch systems send it, stop the run the way Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
