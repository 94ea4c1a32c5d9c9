"""One training run from its configuration to a checkpoint with its card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segcore.evaluation.average_precision import Scores
from segcore.training.config import TrainConfig
from segcore.training.data import training_notes
from segcore.training.export import export_checkpoint
from segcore.training.loop import Progress, Trainer
from segcore.training.validate import load_validation, measure_accuracy, summarize_scores


@dataclass(frozen=True)
class TrainReport:
    """What a training run made.

    Attributes:
        checkpoint: The ``.safetensors`` file that `load_model` takes.
        card: Markdown: where the weights come from, and how good they are.
        scores: Of the checkpoint as it is stored, on the validation set.
    """

    checkpoint: Path
    card: Path
    scores: Scores

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "checkpoint": str(self.checkpoint),
            "card": str(self.card),
            "scores": self.scores.to_dict(),
        }

    def summary(self) -> str:
        """The result for people, a few aligned lines."""
        mask, box = self.scores.mask, self.scores.box
        return (
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
        config_file: Named in the card as what reproduces the run.
        notify: Takes messages for people while the run goes on.
        progress: Called after each step with epoch (from 0), step, steps of the epoch, loss.

    Raises:
        SegcoreError: The configuration, the labels or the images cannot be used.
    """
    trainer = Trainer(
        config,
        lambda weights: summarize_scores(measure_accuracy(config, weights, labelled)),
        progress,
    )
    labelled = load_validation(config.data, trainer.labelled.truth)
    for note in dict.fromkeys((*training_notes(trainer.labelled), *labelled.notes)):
        notify(note)
    if restart:
        trainer.discard()
    elif trainer.resume():
        notify(f"Resuming {config.output} after epoch {trainer.epoch}.")
    exported = export_checkpoint(config, trainer.run(), labelled, config_file, trainer.counts)
    return TrainReport(exported.checkpoint, exported.card, exported.scores)
