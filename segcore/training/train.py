"""One training run from its configuration to a checkpoint with its card."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from segcore.errors import Interrupted, SegcoreError, describe_error
from segcore.evaluation.average_precision import Scores
from segcore.logs.records import KEPT_ONLY
from segcore.output.execution_log import ExecutionLog, collect_log
from segcore.output.executions import new_execution_id
from segcore.text import plural
from segcore.training.config import TrainConfig
from segcore.training.data import training_notes
from segcore.training.defaults import with_defaults
from segcore.training.export import export_checkpoint
from segcore.training.loop import Progress, Trainer
from segcore.training.validate import load_validation, measure_accuracy, summarize_scores

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainReport:
    """What a training run made.

    Attributes:
        checkpoint: The ``.safetensors`` file that `load_model` takes.
        card: Markdown: where the weights come from, and how good they are.
        scores: Of the checkpoint as it is stored, on the validation set.
        starting_scores: Of the weights that training started from, by ``mask_ap``, ``mask_ap50``,
            ..., ``box_ap75``; empty where some of them were random.
    """

    checkpoint: Path
    card: Path
    scores: Scores
    starting_scores: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "checkpoint": str(self.checkpoint),
            "card": str(self.card),
            "scores": self.scores.to_dict(),
            "starting_scores": self.starting_scores,
        }

    def advice(self) -> list[str]:
        """What to know before the checkpoint is used."""
        before = self.starting_scores.get("mask_ap")
        if before is None or self.scores.mask.ap > before:
            return []
        return [
            "The masks are no better than those of the starting weights "
            f"(AP50-95 {before:.3f}, now {self.scores.mask.ap:.3f}).",
            "Train for longer (more epochs, with --restart) or with another optimizer.lr, or check "
            "that the starting weights had not seen these images.",
        ]

    def summary(self) -> str:
        """The result for people, a few aligned lines."""
        mask, box = self.scores.mask, self.scores.box
        start = self.starting_scores
        before = (
            f"before   AP50-95 {start['mask_ap']:.3f}, AP50 {start['mask_ap50']:.3f}, "
            f"AP75 {start['mask_ap75']:.3f} (masks of the starting weights)\n"
            if start
            else ""
        )
        return (
            f"{before}"
            f"mask AP50-95 {mask.ap:.3f}, AP50 {mask.ap50:.3f}, AP75 {mask.ap75:.3f}\n"
            f"box  AP50-95 {box.ap:.3f}, AP50 {box.ap50:.3f}, AP75 {box.ap75:.3f}\n"
            f"checkpoint {self.checkpoint}\n"
            f"card       {self.card}"
        )


def train(
    config: TrainConfig,
    *,
    restart: bool = False,
    config_file: str = "CONFIG",
    notify: Callable[[str], None] = lambda message: None,
    progress: Progress | None = None,
) -> TrainReport:
    """Train YOLO11-seg on a COCO data set; an interrupted run resumes after its last epoch.

    Args:
        config: The whole configuration; ``load_config(path, schema=TrainConfig)`` reads one.
        restart: Start over; replace what ``config.output`` holds.
        config_file: Named in the card as what reproduces the run, with options if there were some.
        notify: Takes messages for people while the run goes on.
        progress: Called after each step with epoch (from 0), step, steps of the epoch, loss.

    Raises:
        SegcoreError: The configuration, the labels or the images cannot be used.
        Interrupted: Ctrl-C or SIGTERM.
    """
    with collect_log(config.log) as log, _errors_in_log():
        config = with_defaults(config)
        return _train(config, log, restart, config_file, _log_and_tell(notify), progress)


def _train(
    config: TrainConfig,
    log: ExecutionLog,
    restart: bool,
    config_file: str,
    notify: Callable[[str], None],
    progress: Progress | None,
) -> TrainReport:
    trainer = Trainer(
        config,
        lambda weights: summarize_scores(measure_accuracy(config, weights, labelled)),
        progress,
    )
    log.open(partial(trainer.files.write_messages, new_execution_id(), config.log.format))
    labelled = load_validation(config.data, trainer.labelled.truth)
    for note in dict.fromkeys((*training_notes(trainer.labelled), *labelled.notes)):
        notify(note)
    _begin(trainer, restart, notify)
    if not trainer.finished:
        n_images, n_objects = trainer.counts
        notify(
            f"Training on {plural(n_images, 'image')} with {plural(n_objects, 'object')}: "
            f"{plural(config.epochs, 'epoch')} of {plural(trainer.steps_per_epoch, 'step')}, "
            f"measured on {plural(len(labelled.images), 'image')}."
        )
    weights = _run(trainer)
    start = trainer.starting_scores
    exported = export_checkpoint(config, weights, labelled, config_file, trainer.counts, start)
    _LOGGER.info("Wrote %s.", exported.checkpoint, extra=KEPT_ONLY)
    return TrainReport(exported.checkpoint, exported.card, exported.scores, start)


def _begin(trainer: Trainer, restart: bool, notify: Callable[[str], None]) -> None:
    """Take up what the output holds, or discard it, and say so."""
    output = trainer.config.output
    if restart:
        if n_done := trainer.discard():
            notify(f"Starting over: {plural(n_done, 'epoch')} in {output} are discarded.")
    elif trainer.resume():
        if trainer.changes:
            notify(f"Changed since the last start: {', '.join(trainer.changes)}.")
        if trainer.finished:
            notify(
                f"All epochs in {output} are done: measuring and writing the checkpoint again. "
                "--restart trains anew."
            )
        else:
            notify(f"Resuming {output} after epoch {trainer.epoch}.")


def _run(trainer: Trainer) -> dict[str, Tensor]:
    """Train to the end; an interrupt becomes an error that says how to resume."""
    try:
        return trainer.run()
    except KeyboardInterrupt:
        raise Interrupted.after(trainer.epoch, plural(trainer.config.epochs, "epoch")) from None


def _log_and_tell(notify: Callable[[str], None]) -> Callable[[str], None]:
    def tell(sentence: str) -> None:
        _LOGGER.info("%s", sentence)
        notify(sentence)

    return tell


@contextmanager
def _errors_in_log() -> Iterator[None]:
    """The log ends with what ended the run; of a bug it has the traceback."""
    try:
        yield
    except BaseException as error:
        is_expected = isinstance(error, SegcoreError | KeyboardInterrupt)
        _LOGGER.error(
            "Ended early: %s",
            describe_error(error),
            exc_info=None if is_expected else error,
            extra=KEPT_ONLY,
        )
        raise
