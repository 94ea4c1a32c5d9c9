"""Which run of an edition is complete, so that its results may be published."""

from __future__ import annotations

from segcore.errors import ObjectNotFound, SegcoreError
from segcore.exit_codes import ExitCode
from segcore.output.compacted_rows import CompactedParts
from segcore.output.layout import EditionLayout
from segcore.output.parts import list_generations
from segcore.output.report import COMPLETE
from segcore.output.run_records import RunRecord, read_planned_ids, read_run_records
from segcore.storage import Storage
from segcore.text import plural


class NotComplete(SegcoreError):
    """An edition lacks results that its plan has, so it is not published."""

    exit_code = ExitCode.INCOMPLETE


def find_complete_run(storage: Storage, layout: EditionLayout) -> RunRecord:
    """The newest run that ended with an account of every image, and whose units all exist.

    Raises:
        NotComplete: There is none; says why the newest run is not it.
        StorageError: The parts cannot be listed, or a plan is damaged.
    """
    records = read_run_records(storage, layout)
    if not records:
        raise NotComplete(
            f"{layout.prefix} holds no run, so nothing says what it should hold.",
            "Run `segcore segment` with the same model and options.",
        )
    committed = list_generations(storage, layout, CompactedParts(storage, layout)).keys()
    reason = ""
    for record in reversed(records):
        why_not = _why_not(storage, layout, record, set(committed))
        if not why_not:
            return record
        reason = reason or why_not
    raise NotComplete(
        f"Edition {layout.name} is not complete: {reason}.",
        "Rerun the same `segcore segment` command to do what is missing.",
    )


def _why_not(
    storage: Storage, layout: EditionLayout, record: RunRecord, committed: set[str]
) -> str:
    """Why a run is not complete; "" if it is."""
    if record.status not in COMPLETE:
        return f"its run {record.run} has the status {record.status}"
    try:
        missing = read_planned_ids(storage, layout, record.run) - committed
    except ObjectNotFound:
        return f"the plan of its run {record.run} is gone"
    if missing:
        return f"{plural(len(missing), 'unit')} of its run {record.run} have no part"
    return ""
