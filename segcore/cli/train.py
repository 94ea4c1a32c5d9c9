"""segcore train: train on labelled images, write a checkpoint with its card and curves."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from segcore.cli import stderr_log
from segcore.cli.console import (
    ConfigSets,
    JsonFlag,
    ProgressInterval,
    notify,
    print_json,
    print_text,
)
from segcore.cli.option_help import command_class
from segcore.cli.stderr_log import LogFormat, LogLevel, Quiet, log_flags, show_log
from segcore.text import printable, redact

if TYPE_CHECKING:
    from segcore.training.config import TrainConfig

EPILOG = """
[bold]Examples[/bold]

  segcore train configs/train-nuclei.yaml

  segcore train my.yaml --set epochs=200 --set device=cuda

Rerun the same command to resume after the last finished epoch; --restart starts over.
"""
Command = command_class(stderr_log.KEYS)


def command(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="YAML file; `segcore config train` prints one.")
    ],
    sets: ConfigSets = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start over; replace what the output holds.")
    ] = False,
    log_level: LogLevel = None,
    quiet: Quiet = False,
    log_format: LogFormat = None,
    as_json: JsonFlag = False,
) -> None:
    """Train YOLO11-seg on a COCO data set; measure each epoch; keep the best."""
    from segcore.config import load_config
    from segcore.training.config import TrainConfig
    from segcore.training.train import train

    flags = log_flags(log_level, quiet, log_format)
    train_config = load_config(config, sets or (), flags, schema=TrainConfig)
    show_log(train_config.log)
    with progress_bar(train_config) as advance:
        arguments = _without_secrets(config, sets or ())
        report = train(train_config, restart=restart, config_file=arguments, progress=advance)
    if as_json:
        print_json(report.to_dict())
    elif not train_config.log.quiet:
        print_text(report.summary())
    advice = report.advice()
    notify(*advice, level=logging.WARNING)
    use_it = "To use it all the same" if advice else "To use it"
    notify(f"{use_it}: segcore segment INPUT OUTPUT --model {report.checkpoint}")


def _without_secrets(config: str, sets: Sequence[str]) -> str:
    """The arguments of the command for the card; a link to a model may hold a password."""
    words = [config]
    for assignment in sets:
        key, separator, value = assignment.partition("=")
        words += ["--set", f"{key}{separator}{redact(value)}"]
    return printable(shlex.join(words))


@contextmanager
def progress_bar(config: TrainConfig) -> Iterator[Callable[[int, int, int, float], None]]:
    """Show one line on stderr: the epoch, the loss, and the time left in the epoch.

    Where stderr is no terminal, or the log is JSON, there is a message now and then instead.

    Yields:
        What to call after each step with epoch (from 0), step, steps of the epoch, loss.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    is_bar = console.is_terminal and config.log.format == "text" and not config.log.quiet
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
    )
    with Progress(*columns, console=console, disable=not is_bar) as progress:
        interval = ProgressInterval()
        task = progress.add_task("", total=None, epoch="-", loss=0.0)

        def advance(epoch: int, step: int, steps: int, loss: float) -> None:
            epoch_of_all = f"{epoch + 1}/{config.epochs}"
            progress.update(task, total=steps, completed=step, epoch=epoch_of_all, loss=loss)
            if not is_bar and interval.is_over():
                notify(f"Epoch {epoch_of_all}: step {step} of {steps}, loss {loss:.3f}")

        yield advance
