"""segcore import: corrections from annotation tools as COCO ground truth."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from segcore.cli.console import (
    JsonFlag,
    StorageSets,
    notify,
    open_storage,
    print_json,
    print_text,
)

EPILOG = """
[bold]Examples[/bold]

  segcore import labelme-export/ truth.json

  segcore import task_12.zip truth.json --dest cvat/

  segcore import project-3.json s3://bucket/truth.json --dest s3://bucket/tasks

The ground truth is what `segcore evaluate` and `segcore train` take. Images that the corrections
lack are not in it.
"""


def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DEST_OR_FILE",
            help="The DEST of an export whose files were edited, or what the tool exported: a "
            "file, a folder, or a zip of CVAT.",
        ),
    ],
    truth: Annotated[
        str, typer.Argument(metavar="TRUTH", help="The COCO file to write. Local or s3://.")
    ],
    dest: Annotated[
        str | None,
        typer.Option(
            help="The DEST of `segcore export`. Default: DEST_OR_FILE, or the folder it is in.",
            show_default=False,
        ),
    ] = None,
    form: Annotated[
        Literal["auto", "coco", "yolo-seg", "cvat", "label-studio", "labelme"],
        typer.Option("--format", help="Format of the corrections; auto: found out."),
    ] = "auto",
    file_names: Annotated[
        Literal["archive", "export"],
        typer.Option(
            help="Names of the images in TRUTH: their paths in the archive, or those that the "
            "export gave them (with --images copy or link the files in DEST/images)."
        ),
    ] = "archive",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace TRUTH.")] = False,
    sets: StorageSets = None,
    as_json: JsonFlag = False,
) -> None:
    """Read corrections from annotation tools into COCO ground truth of the archive."""
    from segcore.corrections.import_corrections import import_corrections

    report = import_corrections(
        open_storage(sets),
        source,
        truth,
        dest=dest,
        form=form,
        file_names=file_names,
        overwrite=overwrite,
    )
    print_json(report.to_dict()) if as_json else print_text(report.text())
    notify(*report.notes)
