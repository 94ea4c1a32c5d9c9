"""segcore compact: few large files in place of many small ones."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from segcore.cli.console import (
    JsonFlag,
    PublishedEdition,
    RunOutput,
    StorageSets,
    notify,
    open_storage,
    print_json,
    print_text,
    unit_progress,
)
from segcore.errors import UsageError

EPILOG = """
[bold]Examples[/bold]

  segcore compact out/

  segcore compact s3://bucket/masks --grace 7d --json

  segcore compact out/ --sort category,score --dry-run

Readers change to the new files all at once. The old ones are deleted by a later call, once the
grace period is over. A compaction that was killed goes on when the same command is run again.

Exit codes: 0 done, or nothing to do; 1 a lease is held, storage failed, or a run has to end first;
2 usage error; 130 interrupted.
"""
_SIZE_UNITS = {"MB": 1000**2, "MiB": 1 << 20, "GB": 1000**3, "GiB": 1 << 30}
_TIME_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_FILE_BYTES = (1_000_000, 1 << 30)  # smallest and largest; a file is held in memory


def command(
    output: RunOutput,
    edition: PublishedEdition = None,
    file_size: Annotated[
        str,
        typer.Option(
            metavar="SIZE", help="Files end once they are as large as this; 128MB to 512MB is good."
        ),
    ] = "256MB",
    sort: Annotated[
        str,
        typer.Option(
            metavar="ORDER",
            help="Order of the masks: 'image', or 'category,score' within each file.",
        ),
    ] = "image",
    grace: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="How long files that are not needed any more are kept for readers that have "
            "opened them, such as 90m, 24h or 7d; 0 deletes them at once.",
        ),
    ] = "24h",
    min_pending: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Do nothing while fewer units than this are new, replaced or withdrawn: all "
            "files are written anew.",
        ),
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what there is to do; change nothing.")
    ] = False,
    sets: StorageSets = None,
    as_json: JsonFlag = False,
) -> None:
    """Put the results of many units into few large files, and let readers use these."""
    from segcore.run.compact import CompactOptions, compact

    if sort not in ("image", "category,score"):
        raise UsageError(f"--sort {sort[:40]!r} is no order.", "Use 'image' or 'category,score'.")
    options = CompactOptions(
        file_bytes=_parse_size(file_size),
        sort="image" if sort == "image" else "category,score",
        grace_s=_parse_time(grace),
        min_pending=min_pending,
    )
    report = compact(
        open_storage(sets),
        output,
        edition,
        options,
        dry_run=dry_run,
        notify=notify,
        progress=unit_progress("copied"),
    )
    print_json(report.to_dict()) if as_json else print_text(report.summary())
    notify(*report.edition_notes)
    if report.units_outside and not report.dry_run:
        notify(
            "Some units are read from their own parts; `segcore.open_results(...).sql(...)` gives "
            "a query for all."
        )


def _parse_size(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,9})(MB|MiB|GB|GiB)", text.strip())
    n_bytes = int(match.group(1)) * _SIZE_UNITS[match.group(2)] if match else 0
    if not _FILE_BYTES[0] <= n_bytes <= _FILE_BYTES[1]:
        raise UsageError(
            f"--file-size {text[:40]!r} is not a size from 1MB to 1GiB.", "For example 256MB."
        )
    return n_bytes


def _parse_time(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,6})([smhd])|0", text.strip())
    if match is None:
        raise UsageError(f"--grace {text[:40]!r} is not a time.", "For example 90m, 24h, 7d or 0.")
    return float(match.group(1)) * _TIME_UNITS_S[match.group(2)] if match.group(1) else 0.0
