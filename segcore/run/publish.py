"""Publishing an edition: its tables in a lakehouse first, then the pointer that readers follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from segcore.lakehouse.publish import TablesReport, describe_other_tables, publish_tables
from segcore.lakehouse.target import TableTarget, parse_target
from segcore.lease.hold import heartbeat_options, hold_lease
from segcore.output.completeness import find_complete_run
from segcore.output.editions import choose_edition
from segcore.output.latest import publish, read_published
from segcore.output.layout import EditionLayout, OutputLayout
from segcore.output.run_records import RunRecord, read_newest_run
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
        tables: The tables that were asked for; None without.
        other_tables: A sentence about tables that now lag; "" if there are none.
    """

    edition: str
    run: str
    status: str
    before: str
    newer_run: str
    changed: bool
    tables: TablesReport | None = None
    other_tables: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def summary(self) -> str:
        """For people, a sentence or two."""
        instead = f", in place of {self.before}" if self.before not in ("", self.edition) else ""
        sentence = f"Edition {self.edition} is published{instead}."
        if not self.changed:
            sentence = f"Edition {self.edition} was published already."
        return f"{sentence} {self.tables.summary()}" if self.tables else sentence


def publish_edition(
    storage: Storage,
    output: str,
    edition: str,
    notify: Notify = lambda text: None,
    *,
    to: str | None = None,
) -> PublishReport:
    """Let ``latest.json`` point to an edition if it is complete.

    Args:
        output: What a run was given as output.
        edition: Name of the edition.
        to: URL of tables that are to hold it before that; see `segcore.lakehouse.target`.

    Raises:
        UsageError: There is no such edition, or the tables cannot hold it.
        TableError: The tables cannot be reached; ``latest.json`` is as it was.
        NotComplete: It lacks results; nothing was changed.
        LeaseHeld: Another process publishes, prunes or compacts in this output.
    """
    target = parse_target(to) if to is not None else None
    layout = choose_edition(storage, output, edition).layout
    whole = OutputLayout(normalize(output))
    heartbeats = Storage(heartbeat_options(storage.options, LEASE_TTL_S))
    folder = whole.lease_folder
    with hold_lease(storage, folder, LEASE_TTL_S, notify, heartbeats, what="output") as lease:
        record = find_complete_run(storage, layout)
        before = read_published(storage, whole)
        changed = before != (layout.name, record.run)
        tables = None
        if target is not None:
            tables = publish_to_tables(storage, layout, record, target, lease.check, notify)
        lease.check()
        if changed:
            publish(storage, layout, record.run, record.status)
        newest = read_newest_run(storage, layout)
        others = describe_other_tables(storage, target, whole)
    return PublishReport(
        edition=layout.name,
        run=record.run,
        status=record.status,
        before=before.edition,
        newer_run=newest.run if newest and newest.run != record.run else "",
        changed=changed,
        tables=tables,
        other_tables=others,
    )


def publish_to_tables(
    storage: Storage,
    layout: EditionLayout,
    record: RunRecord,
    target: TableTarget,
    check_output_lease: Callable[[], None],
    notify: Notify,
) -> TablesReport:
    """Bring an edition into its tables; the lease of the output must be held.

    That of the edition is taken, too: no run may make or delete parts while they are registered.

    Raises:
        SegcoreError: It did not come so far; the next call goes on.
    """
    heartbeats = Storage(heartbeat_options(storage.options, LEASE_TTL_S))
    with hold_lease(storage, layout.lease_folder, LEASE_TTL_S, notify, heartbeats) as lease:

        def check() -> None:
            check_output_lease()
            lease.check()

        return publish_tables(storage, layout, record, target, check)
