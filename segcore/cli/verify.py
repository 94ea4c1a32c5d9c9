"""segcore verify: whether an output is whole and right."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated

import typer

from segcore.cli.console import notify

EPILOG = """
[bold]Examples[/bold]

  segcore verify out/

  segcore verify s3://bucket/masks --json

Exit codes: 0 fine; 1 problems, each named; 2 wrong use.
"""
_EVERY_S = 10.0


def command(
    output: Annotated[
        str, typer.Argument(help="What the run was given as OUTPUT. Local or s3://.")
    ],
    edition: Annotated[
        str | None,
        typer.Option(help="Edition in OUTPUT. [the one with the newest run]", show_default=False),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Units checked at once.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Check every part, row and mask of an output, and that the counts balance with the plan."""
    from segcore.inspection.verify import verify_output
    from segcore.storage import Storage

    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > _EVERY_S:
            last = time.monotonic()
            notify(f"{done:,} of {total:,} units checked.")

    found = verify_output(Storage(), output, edition, threads=threads, progress=progress)
    print(json.dumps(found.to_dict(), indent=2) if as_json else found.summary())
    sys.exit(found.exit_code)
