"""segcore publish: let readers of an output find an edition."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from segcore.cli.console import (
    JsonFlag,
    RunOutput,
    StorageSets,
    notify,
    open_storage,
    print_json,
    print_text,
)

EPILOG = """
[bold]Examples[/bold]

  segcore publish out/ nuclei-yolo11n-0123456789ab

  segcore publish out/ nuclei-yolo11n-0123456789ab --to iceberg://prod/vision.nuclei

  segcore publish out/ nuclei-yolo11n-0123456789ab --to delta

`segcore editions` lists the editions. An edition that lacks results is refused. To go back to an
earlier edition, publish that one.

With --to, two tables hold this edition before latest.json names it. Of Iceberg, they are
vision.nuclei_instances and vision.nuclei_images: the files stay where they are and are registered.
Of Delta, they are out/delta/instances and out/delta/images: the files are linked there or, on S3,
copied by the server.

Exit codes: 0 done, or published already; 1 the edition is not complete, the tables or their catalog
cannot be used, or a lease is held; 2 usage error; 130 interrupted.
"""


def command(
    output: RunOutput,
    edition: Annotated[
        str, typer.Argument(metavar="EDITION", help="Name of the edition in OUTPUT.")
    ],
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="URL",
            help="Tables to publish it to as well: iceberg://CATALOG/NAMESPACE.NAME, or delta.",
        ),
    ] = None,
    sets: StorageSets = None,
    as_json: JsonFlag = False,
) -> None:
    """Let latest.json name an edition, if that is complete; readers find it from then on."""
    from segcore.run.publish import publish_edition

    report = publish_edition(open_storage(sets), output, edition, notify, to=to)
    print_json(report.to_dict()) if as_json else print_text(report.summary())
    if report.other_tables:
        notify(report.other_tables, level=logging.WARNING)
    if report.newer_run:
        notify(f"Its newest run, {report.newer_run}, is not complete: readers find the one before.")
