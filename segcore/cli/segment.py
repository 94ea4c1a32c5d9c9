"""segcore segment: an archive of images in, tables of masks out."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from segcore.cli.console import notify

EPILOG = """
[bold]Examples[/bold]

  segcore segment photos/ out/

  segcore segment s3://bucket/shards/ s3://bucket/masks/ --set model.conf=0.4

  segcore segment --config configs/segment.yaml --dry-run

  segcore segment photos/ out/ --retry-failed

The same command again goes on where it stopped.

Exit codes: 0 done; 1 work left, or infrastructure failed; 2 wrong use; 3 too many images failed;
130 interrupted.
"""


def command(
    input: Annotated[
        str | None,
        typer.Argument(
            help="Folder or prefix of images, tar or Parquet shards, a manifest, or a COCO json. "
            "Local or s3://. May stand in --config.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Argument(
            help="Folder or prefix for the tables. May stand in --config.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Bundled name, checkpoint path, or package.module:Class. Default: nuclei-yolo11n.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="YAML file with any of the options.", show_default=False)
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One option by its key; repeatable."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu or cuda. Default: auto.", show_default=False)
    ] = None,
    actors: Annotated[
        int | None,
        typer.Option(min=1, help="Workers, each with the model. Default: one per core or GPU."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster to use. Default: a local Ray, only for this run.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and what is done; start nothing.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Delete this edition's results first and start anew."),
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Segment failed images again, besides what is left."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Segment an archive of images; write masks as Parquet with COCO RLE.

    Results go to OUTPUT/<model>-<fingerprint>/: images/*.parquet with one row per input image,
    and instances/*.parquet with one row per mask.
    """
    from segcore.config import Config, load_config
    from segcore.run.segment import preview, segment

    flags: dict[str, tuple[str, object]] = {
        "INPUT": ("input", input),
        "OUTPUT": ("output", output),
        "--model": ("model.name", model),
        "--device": ("model.device", device),
        "--actors": ("ray.min_actors", actors),
        "--actors ": ("ray.max_actors", actors),
        "--address": ("ray.address", address),
    }
    settings: Config = load_config(config, set_ or (), flags)
    if dry_run:
        planned = preview(settings, overwrite=overwrite)
        print(json.dumps(planned.to_dict(), indent=2) if as_json else planned.summary())
        return
    report = segment(settings, overwrite=overwrite, retry_failed=retry_failed, notify=notify)
    print(json.dumps(report.to_dict(), indent=2) if as_json else report.summary())
    notify(*report.advice())
    sys.exit(report.exit_code)
