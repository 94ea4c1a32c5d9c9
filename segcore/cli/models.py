"""segcore models: what `--model` can name, under which licence, and what is on this machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from segcore.cli.console import notify

EPILOG = """
[bold]Examples[/bold]

  segcore models

  segcore models --json

Beside these names, --model takes the path or https:// or s3:// link of a checkpoint, and
package.module:Class.
"""


def command(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """List the known models: licence of the weights, published accuracy, what is cached."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from segcore.models.catalogue import catalogue
    from segcore.models.downloads import cache_dir

    entries = catalogue()
    if as_json:
        print(json.dumps([entry.to_dict() for entry in entries], indent=2))
        return
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("model", "licence", "COCO AP", "here"):
        table.add_column(column, justify="right" if column.endswith("AP") else "left", no_wrap=True)
    for entry in entries:
        size = f"{entry.bytes / 1e6:.1f} MB" if entry.bytes is not None else "-"
        here = f"bundled, {size}" if entry.source == "bundled" else size
        ap = f"{entry.published_ap:.1f}" if entry.published_ap else "-"
        table.add_row(entry.name, entry.licence, ap, here)
    Console().print(table)
    notify(
        "COCO AP: mask AP50-95 on val2017 in percent, as published, not measured by us.",
        f"Weights that are not here are fetched on first use into {cache_dir()}; --json names "
        "each file and link.",
    )
