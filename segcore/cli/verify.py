"""segcore verify: whether an output is complete and correct."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from segcore.cli.console import (
    IncludeUnlisted,
    JsonFlag,
    NewestEdition,
    ProgressInterval,
    RunOutput,
    notify,
    print_json,
    print_text,
)
from segcore.errors import UsageError
from segcore.text import format_duration, plural, redact

EPILOG = """
[bold]Examples[/bold]

  segcore verify out/

  segcore verify s3://bucket/masks --json

  segcore verify out/ --input

  segcore verify s3://bucket/masks --address auto --set storage.region=eu-west-1

Exit codes: 0 no problems; 1 problems, each of them named; 2 usage error; 130 interrupted.
"""


class _ProgressLines:
    """Says on stderr how far a long check has come."""

    def __init__(self) -> None:
        self._interval = ProgressInterval()

    def __call__(self, done: int, total: int, instances: int) -> None:
        if not self._interval.is_over():
            return
        seconds = self._interval.seconds
        left = format_duration(seconds / done * (total - done))
        pace = f"{instances / seconds:,.0f} instances/s"
        notify(f"{done:,} of {plural(total, 'unit')} checked, {pace}, about {left} left.")


def _keys_of(sets: list[str] | None, *groups: str) -> list[str]:
    """The values of --set, all of them in these groups of keys.

    Raises:
        UsageError: One is not.
    """
    for assignment in sets or ():
        key = assignment.partition("=")[0].strip()
        if key.partition(".")[0] not in groups:
            raise UsageError(
                f"--set {redact(key)}: `segcore verify` takes keys of {' and '.join(groups)} only."
            )
    return sets or []


def command(
    output: RunOutput,
    edition: NewestEdition = None,
    threads: Annotated[
        int, typer.Option(min=1, help="Units to check at once; on Ray, in each task.")
    ] = 8,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster whose CPUs check the units; `local`: processes of this machine. "
            "Default: threads of this process.",
            show_default=False,
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="How object stores and Ray are used: keys of storage and ray, as for segment. "
            "Repeatable.",
        ),
    ] = None,
    include_unlisted: IncludeUnlisted = False,
    check_input: Annotated[
        bool,
        typer.Option(
            "--input",
            help="Also look into tar shards that an older version of segcore has read, for images "
            "that it left unread; the next run of `segcore segment` does such shards again.",
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check every part, row and mask of an output, and that the counts balance with the plan."""
    from segcore.config import Config, load_config
    from segcore.run.verify import verify

    config: Config = load_config(
        None, _keys_of(sets, "storage", "ray"), {"--address": ("ray.address", address)}
    )
    report = verify(
        config,
        output,
        edition,
        threads=threads,
        include_unlisted=include_unlisted,
        check_input=check_input,
        progress=_ProgressLines(),
    )
    print_json(report.to_dict()) if as_json else print_text(report.summary())
    notify(*report.edition_notes)
    sys.exit(report.exit_code)
