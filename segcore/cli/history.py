"""segcore history: what ran into an output, and how each execution ended."""

from __future__ import annotations

from typing import Annotated

import typer

from segcore.cli.console import (
    JsonFlag,
    RunOutput,
    StorageSets,
    notify,
    open_storage,
    print_json,
    print_text,
)

EPILOG = """
[bold]Examples[/bold]

  segcore history out/

  segcore history s3://bucket/masks --count 100 --json

Exit codes: 0 done; 1 storage failed; 2 usage error; 130 interrupted.
"""


def command(
    output: RunOutput,
    count: Annotated[
        int, typer.Option(min=1, max=10_000, help="How many executions, the newest first.")
    ] = 20,
    sets: StorageSets = None,
    as_json: JsonFlag = False,
) -> None:
    """List the executions of all editions of an output, newest first, and how each ended."""
    from segcore.inspection.history import read_history

    history = read_history(open_storage(sets), output, count)
    if as_json:
        print_json({"executions": [past.to_dict() for past in history]})
        return
    if not history:
        notify("Nothing has been executed yet.")
        return
    print_text("\n".join(f"{past.execution.summary()}  [{past.edition}]" for past in history))
