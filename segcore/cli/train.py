"""segcore train: labelled images in, a checkpoint with its card and curves out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segcore.cli.console import notify

if TYPE_CHECKING:
    from segcore.training.config import TrainConfig
    from segcore.training.export import Exported

EPILOG = """
[bold]Examples[/bold]

  segcore train configs/train-nuclei.yaml

  segcore train my.yaml --set epochs=200 --set device=cuda

A run that was stopped goes on where its last epoch ended; --restart begins anew.
"""


def command(
    config: Annotated[str, typer.Argument(help="YAML file; see configs/train-nuclei.yaml.")],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one key. Repeatable."),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, replacing what the output holds.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Train YOLO11-seg on a COCO data set; measure each epoch; keep the best."""
    from segcore.config import load_config
    from segcore.training.config import TrainConfig
    from segcore.training.export import export_checkpoint
    from segcore.training.loop import Trainer
    from segcore.training.validate import load_validation, measure_accuracy, short

    run = load_config(config, sets or (), schema=TrainConfig)
    labelled = load_validation(run.data)
    with _progress(run) as advance:
        trainer = Trainer(
            run, lambda weights: short(measure_accuracy(run, weights, labelled)), advance
        )
        if restart:
            trainer.discard()
        elif trainer.resume():
            notify(f"Going on after epoch {trainer.epoch} of {run.output}.")
        weights = trainer.run()
    result = export_checkpoint(run, weights, labelled, config)
    _show(result, as_json)


def _progress(run: TrainConfig):  # type: ignore[no-untyped-def]
    """Context: one line on stderr with epoch, loss, and time left in the epoch."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    @contextmanager
    def line():  # type: ignore[no-untyped-def]
        console = Console(stderr=True)
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=None, epoch="-", loss=0.0)

            def advance(epoch: int, step: int, steps: int, loss: float) -> None:
                progress.update(
                    task, total=steps, completed=step, epoch=f"{epoch + 1}/{run.epochs}", loss=loss
                )
                if step == steps and not console.is_terminal:
                    notify(f"epoch {epoch + 1}/{run.epochs}: last loss {loss:.3f}")

            yield advance

    return line()


def _show(result: Exported, as_json: bool) -> None:
    document = {
        "checkpoint": str(result.checkpoint),
        "card": str(result.card),
        "scores": result.scores.to_dict(),
    }
    if as_json:
        print(json.dumps(document, indent=2))
        return
    mask, box = result.scores.mask, result.scores.box
    print(f"mask AP50-95 {mask.ap:.3f}, AP50 {mask.ap50:.3f}, AP75 {mask.ap75:.3f}")
    print(f"box  AP50-95 {box.ap:.3f}, AP50 {box.ap50:.3f}, AP75 {box.ap75:.3f}")
    print(f"checkpoint {result.checkpoint}")
    print(f"card       {result.card}")
    notify(f"Use it: segcore segment INPUT OUTPUT --model {Path(result.checkpoint)}")
