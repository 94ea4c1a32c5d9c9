"""segcore prelabel: from images to the files of an annotation tool in one command."""

from __future__ import annotations

import logging
import sys
from typing import Annotated, Any

import typer

from segcore.cli import stderr_log
from segcore.cli.console import ConfigSets, JsonFlag, notify, print_json, print_text
from segcore.cli.export import (
    LIST_KEYS,
    Categories,
    Exclude,
    Form,
    ImageList,
    Images,
    Include,
    LabelConfig,
    MinScores,
    RankingName,
    Renames,
    Top,
    Workers,
    common_flags,
    cores,
)
from segcore.cli.option_help import command_class
from segcore.cli.stderr_log import LogFormat, LogLevel, Quiet, log_flags, show_log
from segcore.exit_codes import EXIT_CODES

EPILOG = f"""
[bold]Examples[/bold]

  segcore prelabel photos/ tasks/ --format label-studio --model yolo11m-seg.pt

  segcore prelabel s3://bucket/shards cvat/ --format cvat --images copy --min-score 0.5

  segcore prelabel photos/ tasks/ --format cvat --ranking diverse --top 200

--ranking uncertain, crowded, diverse, random or stratified ranks the images as `segcore rank` does,
if there is no such ranking yet or it is of an older state; any other name must be there already.

The tables of masks go to DEST-masks unless --output says otherwise; they are what `segcore export`
reads. Rerun the same command to resume, or to add the images by which the archive has grown.

{EXIT_CODES}
"""

KEYS = {
    **LIST_KEYS,
    **stderr_log.KEYS,
    "input": "input",
    "dest": "dest",
    "output": "output",
    "model": "model.name",
    "device": "model.device",
    "form": "export.format",
    "images": "export.images",
    "label_config": "export.label_config",
    "ranking": "export.ranking",
    "top": "export.top",
    "workers": "export.workers",
}


def schema() -> Any:
    """The schema of its configuration; importing it takes a while."""
    from segcore.config.exports import PrelabelConfig

    return PrelabelConfig


Command = command_class(KEYS, schema)


def command(
    input: Annotated[str | None, typer.Argument(metavar="INPUT", show_default=False)] = None,
    dest: Annotated[str | None, typer.Argument(metavar="DEST", show_default=False)] = None,
    form: Form = None,
    model: Annotated[str | None, typer.Option(show_default=False)] = None,
    output: Annotated[str | None, typer.Option(show_default=False)] = None,
    device: Annotated[str | None, typer.Option(show_default=False)] = None,
    images: Images = None,
    label_config: LabelConfig = None,
    categories: Categories = None,
    renames: Renames = None,
    min_scores: MinScores = None,
    include: Include = None,
    exclude: Exclude = None,
    image_list: ImageList = None,
    ranking: RankingName = None,
    top: Top = None,
    workers: Workers = None,
    config: Annotated[
        str | None, typer.Option(help="YAML file with any of the options.", show_default=False)
    ] = None,
    sets: ConfigSets = None,
    log_level: LogLevel = None,
    quiet: Quiet = False,
    log_format: LogFormat = None,
    as_json: JsonFlag = False,
) -> None:
    """Segment an archive and write the masks as files that an annotation tool imports."""
    from segcore.config import load_config
    from segcore.config.exports import PrelabelConfig
    from segcore.run.prelabel import prelabel

    flags: dict[str, tuple[str | tuple[str, ...], object]] = {
        "INPUT": ("input", input),
        "DEST": ("dest", dest),
        "--model": ("model.name", model),
        "--output": ("output", output),
        "--device": ("model.device", device),
        "--images": ("export.images", images),
        "--label-config": ("export.label_config", label_config),
        "--ranking": ("export.ranking", ranking),
        "--top": ("export.top", top),
        "--workers": ("export.workers", workers),
        **common_flags(form, categories, renames, min_scores, include, exclude, image_list),
        **log_flags(log_level, quiet, log_format),
    }
    options = load_config(config, sets or (), flags, schema=PrelabelConfig)
    show_log(options.log)
    if options.export.workers is None:
        chosen = options.export.model_copy(update={"workers": cores()})
        options = options.model_copy(update={"export": chosen})
    report = prelabel(options)
    if as_json:
        print_json(report.to_dict())
    elif not options.log.quiet:
        print_text(report.text())
    notify(*report.run.advice(), level=logging.ERROR if report.exit_code else logging.INFO)
    if report.export is not None:
        notify(*report.export.notes)
    sys.exit(report.exit_code)
