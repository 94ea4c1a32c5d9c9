"""Publishing an edition by hand: readers of the output find it from then on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from segcore.lease.hold import heartbeat_options, hold_lease
from segcore.output.completeness import find_complete_run
from segcore.output.editions import choose_edition
from segcore.output.latest import publish, read_published
from segcore.output.layout import OutputLayout
from segcore.output.run_records import read_newest_run
from segcore.storage import Storage, normalize

LEASE_TTL_S = 60.0
Notify = Callable[[str], None]


@dataclass(frozen=True)
class PublishReport:
    """What was published.

    Attributes:
        before: The edition that was published before; "" for none.
        newer_run: A newer run of the edition that is not complete; "" if there is none.
        changed: False if this was published already.
    """

    edition: str
    run: str
    status: str
    before: str
    newer_run: str
    changed: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def summary(self) -> str:
        """For people, one sentence."""
        if not self.changed:
            return f"Edition {self.edition} was published already."
        instead = f", in place of {self.before}" if self.before not in ("", self.edition) else ""
        return f"Edition {self.edition} is published{instead}."


def publish_edition(
    storage: Storage, output: str, edition: str, notify: Notify = lambda text: None
) -> PublishReport:
    """Let ``latest.json`` point to an edition if it is complete.

    Args:
        output: What a run was given as output.
        edition: Name of the edition.

    Raises:
        UsageError: There is no such edition.
        NotComplete: It lacks results; nothing was changed.
        LeaseHeld: Another process publishes, prunes or compacts in this output.
    """
    layout = choose_edition(storage, output, edition).layout
    whole = OutputLayout(normalize(output))
    heartbeats = Storage(heartbeat_options(storage.options, LEASE_TTL_S))
    folder = whole.lease_folder
    with hold_lease(storage, folder, LEASE_TTL_S, notify, heartbeats, what="output") as lease:
        record = find_complete_run(storage, layout)
        before = read_published(storage, whole)
        changed = before != (layout.name, record.run)
        lease.check()
        if changed:
            publish(storage, layout, record.run, record.status)
        newest = read_newest_run(storage, layout)
    return PublishReport(
        edition=layout.name,
        run=record.run,
        status=record.status,
        before=before.edition,
        newer_run=newest.run if newest and newest.run != record.run else "",
        changed=changed,
    )
