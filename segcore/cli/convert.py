"""segcore convert: any checkpoint that segcore reads -> safetensors with its metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segcore.cli.console import print_text
from segcore.text import plural, printable

EPILOG = """
[bold]Examples[/bold]

  segcore convert yolo11n-seg.pt yolo11n-seg.safetensors

  segcore convert best.pt best.safetensors --licence CC0-1.0

Nothing in SOURCE is executed, whatever it contains.
"""


def command(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A known name, or a .pt, .pth or .safetensors.")
    ],
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", help="The .safetensors file to write.")
    ],
    licence: Annotated[
        str | None,
        typer.Option(
            "--licence",
            "--license",
            help="Licence of the weights. Default: the one stated in SOURCE.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace TARGET.")] = False,
) -> None:
    """Convert a checkpoint to safetensors; tensors, classes and thresholds stay the same."""
    from segcore.errors import UsageError
    from segcore.models.checkpoints import save_safetensors
    from segcore.models.registry import load_checkpoint, load_model

    if target.suffix != ".safetensors":
        raise UsageError(f"{target} must end in .safetensors.")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} already exists.", "Add --overwrite to replace it.")
    if not target.parent.is_dir():
        raise UsageError(f"The folder {target.parent} does not exist.")
    checkpoint = load_checkpoint(source)
    meta = checkpoint.meta.model_dump(mode="json")
    if licence is not None:
        meta["licence"] = licence
    save_safetensors(target, checkpoint.state_dict, meta)
    info = load_model(str(target)).info  # proves that the written file can be loaded
    classes = plural(len(info.categories), "class", "classes")
    print_text(printable(f"{target}: {info.architecture}, {classes}, {info.licence}"))
