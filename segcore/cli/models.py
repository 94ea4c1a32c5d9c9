"""segcore models: the names that `--model` takes, their licences, and what is on this machine."""

from __future__ import annotations

from segcore.cli.console import JsonFlag, notify, print_json, print_table, safe_cell

EPILOG = """
[bold]Examples[/bold]

  segcore models

  segcore models --json

Besides these names, --model takes the path or the https:// or s3:// link of a checkpoint, and
package.module:Class.
"""


def command(as_json: JsonFlag = False) -> None:
    """List the known models: licence of the weights, published accuracy, what is cached."""
    from rich import box
    from rich.table import Table

    from segcore.errors import UsageError
    from segcore.models.catalogue import catalogue
    from segcore.models.downloads import cache_dir

    entries = catalogue()
    if as_json:
        print_json([entry.to_dict() for entry in entries])
        return
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("model", "licence", "COCO AP", "here"):
        table.add_column(column, justify="right" if column == "COCO AP" else "left", no_wrap=True)
    for entry in entries:
        size = f"{entry.bytes / 1e6:.1f} MB" if entry.bytes is not None else "-"
        here = f"bundled, {size}" if entry.source == "bundled" else size
        ap = f"{entry.published_ap:.1f}" if entry.published_ap else "-"
        table.add_row(safe_cell(entry.name), safe_cell(entry.licence), ap, here)
    print_table(table)
    try:
        where = f"Weights that are not here are downloaded on first use into {cache_dir()};"
    except UsageError as error:
        where = f"{error.message} {error.hint}"
    notify(
        "COCO AP: mask AP50-95 on val2017 in percent, as published; we have not measured it.",
        f"{where} --json lists each file and link.",
    )
