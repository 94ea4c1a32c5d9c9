"""segcore verify: whether an output is complete and correct."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from segcore.cli.console import (
    IncludeUnlisted,
    JsonFlag,
    NewestEdition,
    RunOutput,
    StorageSets,
    notify,
    open_storage,
    print_json,
    print_text,
)

EPILOG = """
[bold]Examples[/bold]

  segcore verify out/

  segcore verify s3://bucket/masks --json

  segcore verify out/ --input

Exit codes: 0 no problems; 1 problems, each of them named; 2 usage error; 130 interrupted.
"""
_PROGRESS_INTERVAL_S = 10.0


def command(
    output: RunOutput,
    edition: NewestEdition = None,
    threads: Annotated[int, typer.Option(min=1, help="Units to check at once.")] = 8,
    include_unlisted: IncludeUnlisted = False,
    check_input: Annotated[
        bool,
        typer.Option(
            "--input",
            help="Also look into tar shards that an older version of segcore has read, for images "
            "that it left unread; the next run of `segcore segment` does such shards again.",
        ),
    ] = False,
    sets: StorageSets = None,
    as_json: JsonFlag = False,
) -> None:
    """Check every part, row and mask of an output, and that the counts balance with the plan."""
    from segcore.inspection.verify import verify_output

    last_shown = time.monotonic()

    def show_progress(done: int, total: int) -> None:
        nonlocal last_shown
        if time.monotonic() - last_shown > _PROGRESS_INTERVAL_S:
            last_shown = time.monotonic()
            notify(f"{done:,} of {total:,} units checked.")

    report = verify_output(
        open_storage(sets),
        output,
        edition,
        threads=threads,
        include_unlisted=include_unlisted,
        check_input=check_input,
        progress=show_progress,
    )
    print_json(report.to_dict()) if as_json else print_text(report.summary())
    notify(*report.edition_notes)
    sys.exit(report.exit_code)
