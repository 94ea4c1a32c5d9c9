"""The editions of an output, side by side: which is published, how complete and how large."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from segcore.errors import SegcoreError, UsageError
from segcore.lease.observation import HELD, observe_lease
from segcore.output.completeness import NotComplete, find_complete_run
from segcore.output.documents import read_document
from segcore.output.edition import document_of
from segcore.output.edition_changes import describe_differences
from segcore.output.editions import require_editions
from segcore.output.latest import read_published
from segcore.output.layout import EditionLayout, OutputLayout
from segcore.output.report import RUNNING
from segcore.output.run_records import RunRecord, read_newest_run
from segcore.storage import Storage, normalize

DIED = "died"  # besides the states that a run's record gives


@dataclass(frozen=True)
class EditionState:
    """One edition of an output.

    Attributes:
        published: Whether ``latest.json`` names it.
        complete: Whether some run of it ended with an account of every image, and its units exist.
        why_incomplete: Why not, as a sentence; "" if it is.
        state: How its newest run ended; ``running``; ``died``; "" if it has none.
        at_work: Whether somebody holds its lease.
        run: Its newest run; "" if it has none.
        images, failed, instances: Of that run, once it has ended.
        bytes, files: All that lies in its folder.
        changed: When its newest run record was written, seconds since 1970; 0 if it has none.
        model: Name of the model.
        differs: In what it differs from the published edition, or from the newest if none is.
        differs_from: That edition; "" if there is no other.
    """

    edition: str
    prefix: str
    published: bool
    complete: bool
    why_incomplete: str
    state: str
    at_work: bool
    run: str
    images: int
    failed: int
    instances: int
    bytes: int
    files: int
    changed: float
    finished: str
    model: str
    differs: tuple[str, ...] = ()
    differs_from: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def list_editions(storage: Storage, output: str) -> list[EditionState]:
    """All editions of an output, the one with the newest run first.

    Args:
        output: What a run was given as output.

    Raises:
        UsageError: There is no edition.
        StorageError: The output cannot be listed.
    """
    layout = OutputLayout(normalize(output))
    layouts = require_editions(storage, layout)
    published = read_published(storage, layout).edition
    documents = {item.name: _read_edition(storage, item) for item in layouts}
    states = [
        _look_at(storage, item, documents[item.name], item.name == published) for item in layouts
    ]
    states.sort(key=lambda state: (-state.changed, state.edition))
    reference = published or states[0].edition
    return [
        state
        if state.edition == reference
        else replace(
            state,
            differs_from=reference,
            differs=tuple(
                describe_differences(
                    document_of(documents[reference]), document_of(documents[state.edition])
                )
            ),
        )
        for state in states
    ]


def is_at_work(storage: Storage, layout: EditionLayout) -> bool:
    """Whether a run holds the lease of an edition, as far as can be told now."""
    lease = observe_lease(storage, layout.lease_folder)
    return lease is not None and lease.state == HELD


def _read_edition(storage: Storage, layout: EditionLayout) -> dict[str, Any]:
    try:
        return read_document(storage, layout.edition_json)
    except UsageError:  # damaged: what else the folder says still counts
        return {}


def _look_at(
    storage: Storage, layout: EditionLayout, document: dict[str, Any], published: bool
) -> EditionState:
    why_incomplete, record, changed = "", None, 0.0
    try:
        changed = max((time for _, time in storage.list_folder(layout.runs_folder)), default=0.0)
        record = read_newest_run(storage, layout)
        find_complete_run(storage, layout)
    except NotComplete as error:
        why_incomplete = error.message
    except SegcoreError as error:  # a damaged record or plan
        why_incomplete = f"It cannot be told: {error.message}"
    sizes = [info.size for info in storage.list(layout.prefix)]
    at_work = is_at_work(storage, layout)
    model = document.get("model")
    return EditionState(
        edition=layout.name,
        prefix=layout.prefix,
        published=published,
        complete=not why_incomplete,
        why_incomplete=why_incomplete,
        state=_state(record, at_work),
        at_work=at_work,
        run=record.run if record else "",
        images=_count(record, "images"),
        failed=_count(record, "failed"),
        instances=_count(record, "instances"),
        bytes=sum(sizes),
        files=len(sizes),
        changed=changed,
        finished=str(record.values.get("finished", "")) if record else "",
        model=str(model.get("name", "")) if isinstance(model, dict) else "",
    )


def _state(record: RunRecord | None, at_work: bool) -> str:
    if record is None:
        return ""
    return DIED if record.status == RUNNING and not at_work else record.status


def _count(record: RunRecord | None, name: str) -> int:
    value = record.values.get(name) if record else 0
    return value if isinstance(value, int) else 0
