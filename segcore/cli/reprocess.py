"""segcore reprocess: what a scheduler calls every night."""

from __future__ import annotations

import logging
import re
import sys
from typing import Annotated, Any

import typer

from segcore.cli import stderr_log
from segcore.cli.console import ConfigSets, JsonFlag, notify, print_json, print_text
from segcore.cli.option_help import command_class
from segcore.cli.stderr_log import LogFormat, LogLevel, Quiet, log_flags, show_log
from segcore.errors import UsageError
from segcore.exit_codes import ExitCode

EPILOG = """
[bold]Examples[/bold]

  segcore reprocess configs/reprocess.yaml --set input=photos/ --set output=out/

  segcore reprocess nightly.yaml --logical-date 2026-11-01 --exit-99-if-nothing-to-do --json

Safe to call twice, late, and beside another call. A call that died is finished by the next one.

Exit codes: 0 done: published, nothing to do, or the budget of this call is used up; 1 work left,
infrastructure failed, or another call is at work; 2 usage error; 4 refused by a gate; 99 nothing
to do, with --exit-99-if-nothing-to-do; 130 interrupted.
"""


def schema() -> Any:
    """The schema of its configuration; importing it takes a while."""
    from segcore.config.reprocess import ReprocessConfig

    return ReprocessConfig


KEYS = {"metrics_file": "metrics.file", **stderr_log.KEYS}
Command = command_class(KEYS, schema)


def command(
    config: Annotated[
        str,
        typer.Argument(metavar="CONFIG", help="YAML file; `segcore config reprocess` prints one."),
    ],
    sets: ConfigSets = None,
    logical_date: Annotated[
        str,
        typer.Option(metavar="DATE", help="The date that the scheduler means; only recorded."),
    ] = "",
    exit_0_if_refused: Annotated[
        bool,
        typer.Option(
            "--exit-0-if-refused",
            help="Exit with 0 instead of 4 if a gate refuses, for schedulers that repeat whatever "
            "does not end with 0.",
        ),
    ] = False,
    exit_99: Annotated[
        bool,
        typer.Option(
            "--exit-99-if-nothing-to-do",
            help="Exit with 99 instead of 0 if nothing has changed since the last call.",
        ),
    ] = False,
    metrics_file: Annotated[str | None, typer.Option(metavar="PATH", show_default=False)] = None,
    log_level: LogLevel = None,
    quiet: Quiet = False,
    log_format: LogFormat = None,
    as_json: JsonFlag = False,
) -> None:
    """Segment what is new, compare with what is published, and publish it or say why not."""
    from segcore.config import load_config
    from segcore.run.reprocess import reprocess
    from segcore.run.reprocess_report import NOTHING_TO_DO, REFUSED

    if logical_date and not re.fullmatch(r"[\w.:+\-]{1,64}", logical_date, re.ASCII):
        raise UsageError(
            f"--logical-date {logical_date[:70]!r} is no date.", "For example 2026-11-01."
        )
    flags = {
        "--metrics-file": (KEYS["metrics_file"], metrics_file),
        **log_flags(log_level, quiet, log_format),
    }
    options = load_config(config, sets or (), flags, schema=schema())
    show_log(options.log)
    report = reprocess(options, logical_date=logical_date)
    if as_json:
        print_json(report.to_dict())
    elif not options.log.quiet:
        print_text(report.summary())
    notify(*report.notes, level=logging.WARNING)
    if report.status == REFUSED and report.edition:
        notify(
            f"Nothing was published. To publish it all the same: segcore publish {report.output} "
            f"{report.edition}",
            level=logging.WARNING,
        )
    if report.status == REFUSED and exit_0_if_refused:
        sys.exit(ExitCode.DONE)
    if report.status == NOTHING_TO_DO and exit_99:
        sys.exit(ExitCode.NOTHING_TO_DO)
    sys.exit(report.exit_code)
