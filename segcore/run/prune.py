"""Deleting old editions: never the published one, one at work, or one that a table refers to.

What is deleted goes in an order that leaves a sound output wherever the process dies: first the
records of runs, so that the next run of this edition plans again; then the pointer to compacted
files; then the parts, ``images`` first, so that no unit is without its instances; then the rest,
``edition.json`` last. So the next call finds an edition that was deleted in part, and goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from segcore.errors import SegcoreError, UsageError
from segcore.inspection.editions import EditionState, list_editions
from segcore.lease.hold import heartbeat_options, hold_lease
from segcore.lease.lease import LeaseHeld
from segcore.output.latest import read_published
from segcore.output.layout import EditionLayout, OutputLayout
from segcore.output.registered import pinned_files
from segcore.storage import Storage, normalize
from segcore.storage.uris import parent
from segcore.text import format_bytes, plural

LEASE_TTL_S = 60.0
Notify = Callable[[str], None]


@dataclass(frozen=True)
class PrunedEdition:
    """What becomes of an edition, and why.

    Attributes:
        deleted: Whether it was deleted, or would be in a dry run.
        reason: Why it is kept, or may go.
    """

    edition: str
    deleted: bool
    reason: str
    bytes: int
    files: int


@dataclass(frozen=True)
class PruneReport:
    """What a call of prune did, or would do."""

    output: str
    published: str
    dry_run: bool
    editions: tuple[PrunedEdition, ...]

    @property
    def bytes_deleted(self) -> int:
        """Bytes of the editions that went, or would go."""
        return sum(edition.bytes for edition in self.editions if edition.deleted)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"bytes_deleted": self.bytes_deleted}

    def summary(self) -> str:
        """For people, one sentence."""
        number = sum(edition.deleted for edition in self.editions)
        if not number:
            return "No edition is to be deleted."
        size = f"{plural(number, 'edition')}, {format_bytes(self.bytes_deleted)}"
        return f"Would delete {size}; --yes deletes." if self.dry_run else f"Deleted {size}."


def prune(
    storage: Storage,
    output: str,
    keep: int,
    *,
    dry_run: bool = True,
    notify: Notify = lambda text: None,
) -> PruneReport:
    """Delete all editions but the published one and the newest others.

    Args:
        output: What a run was given as output.
        keep: How many editions besides the published one stay.
        dry_run: Only say what would be deleted.

    Raises:
        UsageError: There is no edition, or it cannot be told which one is published.
        LeaseHeld: Another process publishes, prunes or compacts in this output.
        StorageError: Storage fails; call it again to go on.
    """
    layout = OutputLayout(normalize(output))
    if dry_run:
        return _report(storage, layout, _choose(storage, layout, keep), dry_run=True)
    heartbeats = Storage(heartbeat_options(storage.options, LEASE_TTL_S))
    folder = layout.lease_folder
    with hold_lease(storage, folder, LEASE_TTL_S, notify, heartbeats, what="output") as lease:
        done = []
        for choice in _choose(storage, layout, keep):
            if choice.deleted:
                lease.check()
                choice = _delete(storage, layout, choice, lease.check, notify)
            done.append(choice)
    return _report(storage, layout, done, dry_run=False)


def _report(
    storage: Storage, layout: OutputLayout, editions: list[PrunedEdition], *, dry_run: bool
) -> PruneReport:
    published = read_published(storage, layout).edition
    return PruneReport(layout.uri, published, dry_run, tuple(editions))


def _choose(storage: Storage, layout: OutputLayout, keep: int) -> list[PrunedEdition]:
    """What is to become of each edition, the newest first.

    Raises:
        UsageError: It cannot be told which edition is published.
    """
    states = list_editions(storage, layout.uri)
    published = read_published(storage, layout).edition
    if not published and storage.exists(layout.latest_json):
        raise UsageError(
            f"{layout.latest_json} names no edition that exists, so it is not known which one "
            "readers need. Nothing was deleted.",
            "Publish one first: segcore publish OUTPUT EDITION.",
        )
    others = [state.edition for state in states if state.edition != published]
    newest = set(others[:keep])
    return [_decide(storage, state, newest, keep) for state in states]


def _decide(storage: Storage, state: EditionState, newest: set[str], keep: int) -> PrunedEdition:
    reason = ""
    if state.published:
        reason = "published"
    elif state.at_work:
        reason = "a run is at work"
    elif state.edition in newest:
        reason = f"one of the newest {keep}"
    else:
        reason = _pinned(storage, EditionLayout(state.prefix))
    why = reason or "older than the editions that are kept"
    return PrunedEdition(state.edition, not reason, why, state.bytes, state.files)


def _pinned(storage: Storage, layout: EditionLayout) -> str:
    """Why an edition is kept whose files a table refers to; "" if none does."""
    try:
        n_pinned = len(pinned_files(storage, layout))
    except SegcoreError as error:
        return f"not known what a table refers to: {error.message}"
    return f"a table refers to {plural(n_pinned, 'file')} of it" if n_pinned else ""


def _delete(
    storage: Storage,
    output: OutputLayout,
    choice: PrunedEdition,
    check_output_lease: Callable[[], None],
    notify: Notify,
) -> PrunedEdition:
    """Delete an edition under its own lease, so that no run begins meanwhile."""
    layout = output.edition(choice.edition)
    heartbeats = Storage(heartbeat_options(storage.options, LEASE_TTL_S))
    try:
        with hold_lease(storage, layout.lease_folder, LEASE_TTL_S, notify, heartbeats) as lease:
            if read_published(storage, output).edition == layout.name:  # a run has just ended
                return replace(choice, deleted=False, reason="published")
            if reason := _pinned(storage, layout):
                return replace(choice, deleted=False, reason=reason)
            for uris in _in_order(storage, layout):
                check_output_lease()
                lease.check()
                storage.delete_all(uris)
            lease_file = lease.uri
        storage.delete(lease_file)
    except LeaseHeld:
        return replace(choice, deleted=False, reason="a run is at work")
    return choice


def _in_order(storage: Storage, layout: EditionLayout) -> Iterator[list[str]]:
    """The files of an edition in the order in which they are deleted; its lease stays."""
    uris = [info.uri for info in storage.list(layout.prefix)]
    uris = [uri for uri in uris if parent(uri) != layout.lease_folder]
    records = [uri for uri in uris if parent(uri) == layout.runs_folder]
    images = [uri for uri in uris if parent(uri) == layout.parts_folder("images")]
    yield records
    yield [uri for uri in uris if uri == layout.compacted_pointer]
    yield images
    last = {*records, *images, layout.compacted_pointer, layout.edition_json}
    yield [uri for uri in uris if uri not in last]
    yield [layout.edition_json]
