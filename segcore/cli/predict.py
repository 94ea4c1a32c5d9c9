"""segcore predict: one image through a model, and a picture of what it found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from segcore.cli.console import ConfigSets, JsonFlag, notify, print_json, print_text
from segcore.cli.option_help import command_class

EPILOG = """
[bold]Examples[/bold]

  segcore predict photo.jpg

  segcore predict https://example.com/photo.jpg --model yolo11n-seg --out found.png

  segcore predict photo.jpg --set model.conf=0.5 --json
"""
KEYS = {"model": "model.name", "device": "model.device"}
Command = command_class(KEYS)


def command(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="Path, s3:// URI or https:// link of an image.")
    ],
    model: Annotated[str | None, typer.Option(show_default=False)] = None,
    device: Annotated[str | None, typer.Option(show_default=False)] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the picture goes. Default: NAME-masks.png in this folder.",
            show_default=False,
        ),
    ] = None,
    sets: ConfigSets = None,
    as_json: JsonFlag = False,
) -> None:
    """Segment one image; print what was found, and write a picture of it."""
    from segcore.config import Config, load_config
    from segcore.errors import ImageError, StorageError
    from segcore.prediction import load_model

    config: Config = load_config(
        sets=sets or (),
        flags={"--model": ("model.name", model), "--device": ("model.device", device)},
    )
    options = config.model.options().model_dump()
    predictor = load_model(
        config.model.name, decode=config.decode, storage=config.storage, **options
    )
    try:
        prediction = predictor.predict(image)
    except ImageError as error:
        raise StorageError(f"The model failed on {image}: {error.message}.") from None
    target = out or default_picture(image)
    try:
        prediction.save_plot(target)
    except (OSError, ValueError) as error:  # ValueError: Pillow knows no such format
        raise StorageError(f"{target} cannot be written: {error}.") from None
    if as_json:
        size = {"width": prediction.instances.width, "height": prediction.instances.height}
        found = prediction.to_dicts()
        print_json({"model": predictor.info.name, **size, "plot": str(target), "instances": found})
    else:
        print_text(str(prediction))
    notify(f"Wrote {target}.")


def default_picture(image: str) -> Path:
    """The file for the picture of an image: its name without suffix, in the working directory."""
    path = urlsplit(image).path if "://" in image else image
    stem = Path(path).stem or "image"
    return Path(f"{stem}-masks.png")
