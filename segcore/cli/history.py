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
    """List the executions and calls of reprocess in an output, newest first, and how each ended."""
    from segcore.inspection.history import read_history, read_past_calls

    storage = open_storage(sets)
    history = read_history(storage, output, count)
    calls = read_past_calls(storage, output, count)
    if as_json:
        print_json(
            {
                "executions": [past.to_dict() for past in history],
                "calls": [call.to_dict() for call in calls],
            }
        )
        return
    if not (history or calls):
        notify("Nothing has been executed yet.")
        return
    lines = {past.execution.execution: f"{past.execution.summary()}  [{past.edition}]"
             for past in history}  # fmt: skip
    lines |= {call.call: call.summary() for call in calls}
    newest = sorted(lines, reverse=True)[:count]  # ids begin with the time
    print_text("\n".join(lines[name] for name in newest))
