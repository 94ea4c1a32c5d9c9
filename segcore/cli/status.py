"""segcore status: where a run stands, from its output alone."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from segcore.cli.console import notify

EPILOG = """
[bold]Examples[/bold]

  segcore status out/

  segcore status s3://bucket/masks --json

Works from any machine that can read the output, while the job runs elsewhere or after it died.
"""


def command(
    output: Annotated[
        str, typer.Argument(help="What the run was given as OUTPUT. Local or s3://.")
    ],
    edition: Annotated[
        str | None,
        typer.Option(help="Edition in OUTPUT. [the one with the newest run]", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Say what is done, what is left, what failed and why, and how long it will take."""
    from segcore.inspection.status import DIED, STOPPED, read_status
    from segcore.storage import Storage

    found = read_status(Storage(), output, edition)
    print(json.dumps(found.to_dict(), indent=2) if as_json else found.summary())
    if found.state in (DIED, STOPPED):
        notify("Nobody is at work on it; the same `segcore segment` again goes on from here.")
    if found.unreadable:
        notify("Some parts cannot be read: `segcore verify` tells why.")
