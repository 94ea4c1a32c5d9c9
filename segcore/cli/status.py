"""segcore status: where a run stands, from its output alone."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from segcore.cli.console import (
    JsonFlag,
    NewestEdition,
    RunOutput,
    StorageSets,
    notify,
    open_storage,
    print_json,
    print_text,
)
from segcore.exit_codes import ExitCode

EPILOG = """
[bold]Examples[/bold]

  segcore status out/

  segcore status s3://bucket/masks --json

Works on any machine that can read the output, while the job runs elsewhere or after it died.
"""


def command(
    output: RunOutput,
    edition: NewestEdition = None,
    sets: StorageSets = None,
    as_exit_code: Annotated[
        bool,
        typer.Option(
            "--exit-code",
            help="Exit with 0 if the run is complete, 1 if it is not and nobody works on it, 3 if "
            "too many images failed, 5 while it runs. Without this flag: 0.",
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what is done, what is left, what failed and why, and how long the rest will take."""
    from segcore.inspection.status import DIED, STOPPED, read_status

    status = read_status(open_storage(sets), output, edition)
    print_json(status.to_dict()) if as_json else print_text(status.summary())
    notify(*status.edition_notes)
    if status.state in (DIED, STOPPED):
        notify("No run is active; rerun the same `segcore segment` command to resume.")
    if status.unreadable:
        notify("Some parts cannot be read; `segcore verify` says why.")
    if as_exit_code:
        sys.exit(_exit_code(status.state))


def _exit_code(state: str) -> ExitCode:
    from segcore.output.report import RUNNING, SUCCESS, TOO_MANY_FAILED

    codes = {
        SUCCESS: ExitCode.DONE,
        TOO_MANY_FAILED: ExitCode.TOO_MANY_FAILED,
        RUNNING: ExitCode.RUNNING,
    }
    return codes.get(state, ExitCode.INCOMPLETE)
