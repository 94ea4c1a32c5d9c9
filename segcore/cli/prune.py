"""segcore prune: delete old editions of an output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from segcore.cli.console import (
    JsonFlag,
    RunOutput,
    StorageSets,
    notify,
    open_storage,
    print_json,
    print_table,
    print_text,
    safe_cell,
)

if TYPE_CHECKING:
    from segcore.run.prune import PruneReport

EPILOG = """
[bold]Examples[/bold]

  segcore prune out/

  segcore prune s3://bucket/masks --keep 1 --yes

Never deleted: the published edition, one with a run at work, and one with files that a table
outside of segcore refers to. A call that was killed goes on when it is run again.

Exit codes: 0 done; 1 the lease of the output is held, or storage failed; 2 usage error;
130 interrupted.
"""


def command(
    output: RunOutput,
    keep: Annotated[
        int,
        typer.Option(min=0, metavar="K", help="Newest editions to keep besides the published one."),
    ] = 2,
    yes: Annotated[
        bool, typer.Option("--yes", help="Delete. Without this flag nothing is changed.")
    ] = False,
    sets: StorageSets = None,
    as_json: JsonFlag = False,
) -> None:
    """Delete all editions but the published one and the newest; only say which without --yes."""
    from segcore.run.prune import prune

    report = prune(open_storage(sets), output, keep, dry_run=not yes, notify=notify)
    print_json(report.to_dict()) if as_json else _print_report(report)


def _print_report(report: PruneReport) -> None:
    from rich import box
    from rich.table import Table

    from segcore.text import format_bytes

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("edition", overflow="fold")
    table.add_column("")
    table.add_column("why", overflow="fold")
    table.add_column("size", justify="right")
    verb = "delete" if report.dry_run else "deleted"
    for edition in report.editions:
        table.add_row(
            safe_cell(edition.edition),
            verb if edition.deleted else "keep",
            safe_cell(edition.reason),
            format_bytes(edition.bytes),
        )
    print_table(table)
    print_text(report.summary())
