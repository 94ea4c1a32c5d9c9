"""segcore segment: read an archive of images, write tables of masks."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from segcore.cli import stderr_log
from segcore.cli.console import (
    ConfigSets,
    JsonFlag,
    notify,
    own_command,
    print_json,
    print_text,
)
from segcore.cli.option_help import command_class
from segcore.cli.stderr_log import LogFormat, LogLevel, Quiet, log_flags, show_log
from segcore.exit_codes import EXIT_CODES, ExitCode

if TYPE_CHECKING:
    from segcore.bench.estimate import Estimate
    from segcore.output.preview import Preview

EPILOG = f"""
[bold]Examples[/bold]

  segcore segment photos/ out/

  segcore segment s3://bucket/shards/ s3://bucket/masks/ --set model.conf=0.4

  segcore segment --config configs/segment.yaml --dry-run --bench bench.json

  segcore segment photos/ out/ --retry-failed

  segcore segment photos/ out/ --allow-shrunk-listing --remove-unlisted

Rerun the same command to resume a run that was stopped.

{EXIT_CODES}
"""

# The options that parameters of `command` set; their texts are the help of these.
KEYS = {
    "input": "input",
    "output": "output",
    "model": "model.name",
    "device": "model.device",
    "address": "ray.address",
    "allow_shrunk_listing": "source.allow_shrunk_listing",
    "publish": "run.publish",
    "metrics_file": "metrics.file",
    **stderr_log.KEYS,
}
Command = command_class(KEYS)


def command(
    input: Annotated[
        str | None,
        typer.Argument(metavar="INPUT", show_default=False),
    ] = None,
    output: Annotated[
        str | None,
        typer.Argument(metavar="OUTPUT", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(show_default=False),
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="YAML file with any of the options.", show_default=False)
    ] = None,
    sets: ConfigSets = None,
    device: Annotated[str | None, typer.Option(show_default=False)] = None,
    actors: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Workers, each with its own copy of the model. Default: one per core or GPU.",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(show_default=False),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the plan and what is already done; start nothing."),
    ] = False,
    bench: Annotated[
        str | None,
        typer.Option(
            metavar="BENCH.json",
            help="With --dry-run: also say how long the rest takes on a machine like the one that "
            "`segcore bench INPUT --json` wrote this file on.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Delete this edition's results first and start over."),
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Also segment the images that failed before."),
    ] = False,
    allow_shrunk_listing: Annotated[
        bool,
        typer.Option("--allow-shrunk-listing"),
    ] = False,
    remove_unlisted: Annotated[
        bool,
        typer.Option(
            "--remove-unlisted",
            help="At the end, delete the results of images that INPUT lacks; by default they stay.",
        ),
    ] = False,
    publish: Annotated[
        bool | None,
        typer.Option("--publish/--no-publish", show_default=False),
    ] = None,
    exit_99: Annotated[
        bool,
        typer.Option(
            "--exit-99-if-nothing-to-do",
            help="Exit with 99 instead of 0 if everything was done before, for schedulers that "
            "skip what comes next.",
        ),
    ] = False,
    metrics_file: Annotated[str | None, typer.Option(metavar="PATH", show_default=False)] = None,
    log_level: LogLevel = None,
    quiet: Quiet = False,
    log_format: LogFormat = None,
    as_json: JsonFlag = False,
) -> None:
    """Segment an archive of images; write masks as Parquet with COCO RLE.

    Results go to OUTPUT/<model>-<fingerprint>/: images/*.parquet with one row per input image,
    and instances/*.parquet with one row per mask.
    """
    from segcore.bench.estimate import estimate_job, read_bench
    from segcore.config import Config, load_config
    from segcore.distributed.pool import describe_growth
    from segcore.errors import UsageError
    from segcore.run.segment import preview, segment
    from segcore.storage import Storage

    flags: dict[str, tuple[str | tuple[str, ...], object]] = {
        "INPUT": (KEYS["input"], input),
        "OUTPUT": (KEYS["output"], output),
        "--model": (KEYS["model"], model),
        "--device": (KEYS["device"], device),
        "--actors": (("ray.min_actors", "ray.max_actors"), actors),
        "--address": (KEYS["address"], address),
        "--allow-shrunk-listing": (KEYS["allow_shrunk_listing"], allow_shrunk_listing or None),
        "--publish": (KEYS["publish"], publish),
        "--metrics-file": (KEYS["metrics_file"], metrics_file),
        **log_flags(log_level, quiet, log_format),
    }
    job_config: Config = load_config(config, sets or (), flags)
    show_log(job_config.log)
    if bench is not None and not dry_run:
        raise UsageError("--bench is for --dry-run.")
    if dry_run:
        measured = None if bench is None else read_bench(Storage(job_config.storage), bench)
        planned = preview(
            job_config,
            overwrite=overwrite,
            retry_failed=retry_failed,
            remove_unlisted=remove_unlisted,
        )
        estimate = None if measured is None else estimate_job(planned, measured)
        _show_plan(planned, estimate, describe_growth(job_config.ray, planned.units_left), as_json)
        sys.exit(ExitCode.NOTHING_TO_DO if planned.nothing_to_do and exit_99 else ExitCode.DONE)
    report = segment(
        job_config,
        overwrite=overwrite,
        retry_failed=retry_failed,
        remove_unlisted=remove_unlisted,
    )
    if as_json:
        print_json(report.to_dict())
    elif not job_config.log.quiet:
        print_text(report.summary())
    notify(*report.advice(), level=logging.ERROR if report.exit_code else logging.INFO)
    command = own_command("--publish", without="--no-publish")
    if report.may_be_published and command:
        notify(f"To publish it: {command}")
    if report.nothing_to_do and exit_99 and report.exit_code == ExitCode.DONE:
        sys.exit(ExitCode.NOTHING_TO_DO)
    sys.exit(report.exit_code)


def _show_plan(
    planned: Preview, estimate: Estimate | None, growth: list[str], as_json: bool
) -> None:
    if as_json:
        print_json(
            planned.to_dict() | {"estimate": None if estimate is None else estimate.to_dict()}
        )
    else:
        print_text(planned.summary())
    notify(*planned.notes(), *growth, *([] if estimate is None else [estimate.summary()]))
