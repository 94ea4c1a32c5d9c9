"""One call of a scheduler: segment, verify, hold against the gates, publish or refuse.

Each step finds what an earlier call left and does only the rest, so a call is safe twice, late and
after a death: segmenting resumes; a decision is written before the pointer moves, and is found
again under the facts that it follows from; the pointer is one object. The record of the call comes
last, for people.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from segcore.config.reprocess import ReprocessConfig
from segcore.config.schema import Config, ModelConfig
from segcore.errors import ListingShrank, UsageError
from segcore.images import DecodeOptions
from segcore.inspection.verify import verify_output
from segcore.lakehouse.publish import describe_other_tables, hold_execution, open_tables
from segcore.lakehouse.target import TableTarget, parse_target
from segcore.lease.hold import heartbeat_options, hold_lease
from segcore.lease.lease import LeaseHeld, LeaseLost
from segcore.output.executions import new_execution_id
from segcore.output.latest import Published, publish, read_published
from segcore.output.layout import OutputLayout
from segcore.output.report import BUDGET_REACHED, COMPLETE, RunReport
from segcore.output.reprocess_records import (
    decision_key,
    read_decision,
    read_model_options,
    write_call,
    write_decision,
    write_model_options,
)
from segcore.output.run_records import read_run_record
from segcore.run.gates import check_gates, check_listing_size, measure
from segcore.run.history import log_and_tell, utc_now
from segcore.run.job import Job, locate_input_and_output
from segcore.run.publish import publish_to_tables
from segcore.run.recalled_model import model_facts, recall_model
from segcore.run.reprocess_report import (
    BUSY,
    DAMAGED,
    NOTHING_TO_DO,
    PUBLISHED,
    REFUSED,
    ReprocessReport,
)
from segcore.run.segment import segment
from segcore.storage import Storage
from segcore.text import join_counts

_WAIT_S = 5.0  # between two looks at a lease that is held
_IF_IT_SHRANK = (
    "If a folder is not mounted or a prefix is wrong, mend that. If the images are gone on "
    "purpose, call it once with --set source.allow_shrunk_listing=true."
)
Notify = Callable[[str], None]


@dataclass
class _Call:
    """What the steps of a call share."""

    config: ReprocessConfig
    storage: Storage
    output: OutputLayout
    notify: Notify
    check_lease: Callable[[], None] = lambda: None
    began: float = field(default_factory=time.monotonic)
    images_begun: int = 0
    cost: float = 0.0
    tables: TableTarget | None = None

    def say(self, sentence: str) -> None:
        """Log a sentence, and tell it."""
        log_and_tell(self.notify)(sentence)

    def segment_config(self, model: ModelConfig, decode: DecodeOptions) -> Config:
        """The segment job of a model, with what is left of the budget; it never publishes."""
        run = self.config.run
        changes: dict[str, Any] = {"publish": False}
        if run.max_images is not None:
            changes["max_images"] = max(1, run.max_images - self.images_begun)
        if run.max_seconds is not None:
            used = time.monotonic() - self.began
            changes["max_seconds"] = max(1e-3, run.max_seconds - used)
        if run.max_cost is not None:
            changes["max_cost"] = max(1e-9, run.max_cost - self.cost)
        values = {name: getattr(self.config, name) for name in Config.model_fields}
        values |= {"model": model, "decode": decode, "run": run.model_copy(update=changes)}
        return Config(**values)

    def segment(
        self, config: Config, published: str, check_job: Callable[[Job], None]
    ) -> RunReport:
        """Segment what is left; see `segcore.run.segment.segment`."""
        report = segment(
            config,
            model=recall_model(config, self.storage, self.output, published),
            remove_unlisted=self.config.schedule.removed == "prune",
            check_job=check_job,
            notify=self.notify,
        )
        self.images_begun += report.images_this_time
        self.cost += report.cost
        return report

    def out_of_budget(self) -> bool:
        """Whether nothing is left to segment anything else with."""
        run = self.config.run
        if run.max_images is not None and self.images_begun >= run.max_images:
            return True
        if run.max_cost is not None and self.cost >= run.max_cost:
            return True
        return run.max_seconds is not None and time.monotonic() - self.began >= run.max_seconds


def reprocess(
    config: ReprocessConfig, *, logical_date: str = "", notify: Notify = lambda text: None
) -> ReprocessReport:
    """Bring an output up to date with its input, and publish it if it passes the gates.

    Args:
        logical_date: The date that a scheduler means; recorded, and never used as now.
        notify: Takes sentences for people.

    Raises:
        UsageError: The configuration, a gate or the golden set is wrong, or the published edition
            is gone; nothing was published.
        LeaseHeld: Another call or run is at work, and `schedule.if_busy` is ``fail``.
        LeaseLost: Another one took over, as this one was silent for too long; also ``fail``.
        SegcoreError: The call broke off; the next one goes on.
    """
    _, output = locate_input_and_output(config)
    call = _Call(config, Storage(config.storage), output, notify)
    if config.schedule.table is not None:
        call.tables = parse_target(config.schedule.table)
        # What is wrong with them is said before anything runs.
        open_tables(call.storage, call.tables, output)
    is_told = False
    while True:
        try:
            return _under_lease(call, logical_date)
        except (LeaseHeld, LeaseLost) as held:
            # One that took over is at work as any other: on a machine that has stopped for a while,
            # each of two calls may find the other one silent.
            is_busy = isinstance(held, LeaseHeld) or held.is_taken
            if config.schedule.if_busy == "fail" or not is_busy:
                raise
            if config.schedule.if_busy == "skip":
                reasons = (held.message,)
                return ReprocessReport(BUSY, output.uri, logical_date, reasons=reasons)
            if not is_told:
                call.say(f"{held.message} Waiting until it has ended.")
            is_told = True
            time.sleep(_WAIT_S)


def _under_lease(call: _Call, logical_date: str) -> ReprocessReport:
    ttl_s = call.config.run.lease_ttl_s
    heartbeats = Storage(heartbeat_options(call.config.storage, ttl_s))
    folder, started = call.output.reprocess_lease, utc_now()
    with hold_lease(call.storage, folder, ttl_s, call.notify, heartbeats, what="schedule") as lease:
        call.check_lease = lease.check
        report = _reprocess(call)
        report = replace(report, logical_date=logical_date, started=started, finished=utc_now())
        if report.status != NOTHING_TO_DO and not report.again:
            write_call(call.storage, call.output, new_execution_id(), report.to_dict())
    return report


def _reprocess(call: _Call) -> ReprocessReport:
    published = _read_published(call)
    jobs: list[Job] = []

    def check(job: Job) -> None:
        jobs.append(job)
        gates = call.config.gates
        categories = {item.id: item.name for item in job.model.info.categories}
        check_gates(gates, call.storage, categories)
        if published.edition:
            layout = call.output.edition(published.edition)
            check_listing_size(job, layout, gates.max_listing_loss)

    config = call.segment_config(call.config.model, call.config.decode)
    empty = ReprocessReport(
        REFUSED, call.output.uri, before=published.edition, published=published.edition
    )
    try:
        run = call.segment(config, published.edition, check)
    except ListingShrank as error:
        return replace(empty, reasons=(error.message,), notes=(_IF_IT_SHRANK,))
    _remember_model(call, config, jobs[0])
    report = replace(
        empty, edition=run.edition, run=run.run, images_this_time=run.images_this_time, segment=run
    )
    if run.status not in COMPLETE:
        reasons = (*run.errors, *(line for line in run.advice() if not run.errors))
        return replace(report, status=run.status, reasons=reasons)
    is_current = published == (run.edition, run.run)
    if run.nothing_to_do and is_current and run.status != "too_many_failed":
        if not _tables_lag(call, run):
            return replace(report, status=NOTHING_TO_DO)
        return _publish(call, run, replace(report, status=PUBLISHED))
    return _decide(call, report, run, published)


def _read_published(call: _Call) -> Published:
    """What is published now.

    Raises:
        UsageError: ``latest.json`` exists and names no edition that exists.
    """
    published = read_published(call.storage, call.output)
    if not published.edition and call.storage.exists(call.output.latest_json):
        raise UsageError(
            f"{call.output.latest_json} names no edition that exists: the published edition was "
            "deleted, or the file was damaged. So there is nothing to compare with; nothing was "
            "done.",
            "Publish an edition that exists (segcore editions, segcore publish), or delete "
            "latest.json to begin anew.",
        )
    return published


def _remember_model(call: _Call, config: Config, job: Job) -> None:
    """Write with which options the edition is made, so that it can grow once it is published."""
    if job.model.is_loaded and (facts := model_facts(config, job.model)) is not None:
        write_model_options(call.storage, call.output, job.edition.name, facts)


def _decide(
    call: _Call, report: ReprocessReport, run: RunReport, published: Published
) -> ReprocessReport:
    """Hold a complete edition against the gates, unless that was done; publish it, or refuse."""
    facts = {
        "edition": run.edition,
        "run": run.run,
        "images": [run.ok, run.failed, run.instances],
        "published": published.edition,
        "gates": call.config.gates.model_dump(mode="json"),
        "max_failed_fraction": run.max_failed_fraction,
    }
    key = decision_key(facts)
    decision = read_decision(call.storage, call.output, key)
    again = decision is not None and run.nothing_to_do
    if decision is None:
        if call.config.schedule.verify and (damage := _verify(call, run.edition)):
            return replace(report, status=DAMAGED, reasons=(damage,))
        call.say("Comparing with the published edition and the gates.")
        measured = measure(call.storage, run, published.edition, call.config.gates)
        decision = {"reasons": measured.reasons, "measured": measured.values, "facts": facts}
        call.check_lease()
        if measured.was_compared:
            write_decision(call.storage, call.output, key, decision)
    reasons = tuple(map(str, decision["reasons"]))
    report = replace(report, reasons=reasons, measured=decision["measured"])
    if not reasons:
        return _publish(call, run, replace(report, status=PUBLISHED, published=run.edition))
    report = replace(report, again=again)
    if published.edition in ("", run.edition) or call.config.schedule.on_refusal == "keep":
        return report
    return _update_published(call, report, published)


def _verify(call: _Call, edition: str) -> str:
    """What is wrong with an edition, as a sentence; "" if nothing is."""
    call.say(f"Verifying {edition}.")
    found = verify_output(call.storage, call.output.uri, edition)
    if not found.counts:
        return ""
    return (
        f"segcore verify finds problems in {edition}: {join_counts(found.counts)}. Nothing was "
        "published."
    )


def _tables_lag(call: _Call, run: RunReport) -> bool:
    """Whether the tables that are asked for lack this run: they are new, or another call died."""
    if call.tables is None:
        return False
    layout = call.output.edition(run.edition)
    record = read_run_record(call.storage, layout, run.run)
    return not hold_execution(call.storage, call.tables, layout, record)


def _publish(call: _Call, run: RunReport, report: ReprocessReport) -> ReprocessReport:
    """Bring the edition into its tables, and then move the pointer, under the lease of the output.

    Returns:
        The report, with a note of tables that now lag.

    Raises:
        SegcoreError: A table could not be written; the pointer is where it was.
    """
    ttl_s = call.config.run.lease_ttl_s
    heartbeats = Storage(heartbeat_options(call.config.storage, ttl_s))
    with hold_lease(
        call.storage, call.output.lease_folder, ttl_s, call.notify, heartbeats, what="output"
    ) as lease:
        call.check_lease()
        layout = call.output.edition(run.edition)
        if call.tables is not None:
            record = read_run_record(call.storage, layout, run.run)
            tables = publish_to_tables(
                call.storage, layout, record, call.tables, lease.check, call.notify
            )
            call.say(tables.summary())
        lease.check()
        publish(call.storage, layout, run.run, run.status)
    others = describe_other_tables(call.storage, call.tables, call.output)
    return replace(report, notes=(*report.notes, others)) if others else report


def _update_published(
    call: _Call, report: ReprocessReport, published: Published
) -> ReprocessReport:
    """Bring new images under the published model; a refusal stays one, whatever comes of it."""
    if call.out_of_budget():
        note = f"Nothing was left of the budget to bring new images into {published.edition}."
        return replace(report, notes=(note,))
    try:
        run = _segment_published(call, published)
    except UsageError as error:
        note = (
            f"New images did not get into the published edition {published.edition}: "
            f"{error.message} {error.hint}"
        )
        return replace(report, notes=(note.strip(),))
    report = replace(
        report, again=report.again and run.nothing_to_do, images_added=run.images_this_time
    )
    if run.status not in COMPLETE:
        what = "the budget is used up" if run.status == BUDGET_REACHED else run.status
        note = f"Not all new images are in the published edition {published.edition} yet: {what}."
        return replace(report, notes=(note, *run.errors), updated=False)
    if published != (run.edition, run.run) or _tables_lag(call, run):
        report = _publish(call, run, report)
    return replace(report, updated=True)


def _segment_published(call: _Call, published: Published) -> RunReport:
    """Segment new images with the model of the published edition.

    Raises:
        UsageError: It is not known, or not there any more.
    """
    stored = read_model_options(call.storage, call.output, published.edition)
    name = call.config.schedule.published_model
    if stored is None and name is None:
        raise UsageError(
            "It is not recorded with which model that was made.",
            "Set schedule.published_model to its checkpoint.",
        )
    model, decode = call.config.model, call.config.decode
    try:
        if stored is not None:
            model = ModelConfig(**stored["model"])
            decode = DecodeOptions(**stored["decode"])
    except (KeyError, TypeError, ValueError):
        raise UsageError(
            f"{call.output.reprocess_model(published.edition)} is damaged.", "Delete it."
        ) from None
    changes: dict[str, Any] = {"device": call.config.model.device}
    if name is not None:
        changes["name"] = name
    config = call.segment_config(model.model_copy(update=changes), decode)

    def check(job: Job) -> None:
        if job.edition.name != published.edition:
            raise UsageError(
                f"the model {config.model.name} now gives the edition {job.edition.name}.",
                "Set schedule.published_model to the checkpoint with which it was made.",
            )

    call.say(f"Bringing new images into the published edition, {published.edition}.")
    return call.segment(config, published.edition, check)
