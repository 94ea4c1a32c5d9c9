"""Trained weights -> a checkpoint that people load, with its card."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from segcore.evaluation.average_precision import Scores
from segcore.evaluation.remarks import shorten
from segcore.models.checkpoints import save_safetensors
from segcore.text import plural
from segcore.training.card import write_card
from segcore.training.config import TrainConfig
from segcore.training.labelled_images import LabelledSet
from segcore.training.validate import (
    checkpoint_categories,
    measure_accuracy,
    summarize_scores,
)

_MAX_CLASS_NAMES = 5  # in the card


@dataclass(frozen=True)
class ExportedModel:
    """The result of a training run: the files to publish, and the scores of the checkpoint."""

    checkpoint: Path
    card: Path
    scores: Scores


def halve_kernels(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convolution kernels as float16, everything else (norm statistics, biases) unchanged."""
    return {name: t.half() if t.ndim > 1 else t for name, t in weights.items()}


def export_checkpoint(
    config: TrainConfig,
    weights: dict[str, Tensor],
    labelled: LabelledSet,
    config_file: str,
    train_counts: tuple[int, int],
    starting_scores: dict[str, float],
) -> ExportedModel:
    """Write `<output>/<name>.safetensors` and its card.

    The scores are those of the weights as stored, in float16.

    Args:
        config: The run's configuration.
        weights: State dict to export.
        labelled: The validation set.
        config_file: Path of the configuration, for the card.
        train_counts: Images and instances that were trained on, for the card.
        starting_scores: Of the weights that training started from, for the card; {} if unknown.
    """
    stored = halve_kernels(weights)
    scores = measure_accuracy(config, {name: t.float() for name, t in stored.items()}, labelled)
    meta = {
        "architecture": config.architecture,
        "categories": checkpoint_categories(labelled.truth),
        "name": config.name,
        "licence": config.licence,
        "imgsz": config.validation.imgsz,
        "conf": config.conf,
        "iou": config.validation.iou,
        "max_det": config.validation.max_det,
    }
    folder = Path(config.output)
    checkpoint = folder / f"{config.name}.safetensors"
    save_safetensors(checkpoint, stored, meta)
    card = folder / f"{config.name}.md"
    data = checkpoint.read_bytes()
    facts = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data) / 1e6,
        "parameters": _count_parameters(weights),
        "classes": _describe_classes([c.name for c in labelled.truth.categories]),
        "train_images": train_counts[0],
        "train_instances": train_counts[1],
        "val_images": scores.n_images,
        "val_instances": scores.n_ground_truth,
        "config_file": config_file,
        "starting_scores": starting_scores,
        **summarize_scores(scores),
    }
    write_card(card, config, facts)
    return ExportedModel(checkpoint, card, scores)


def _count_parameters(weights: dict[str, Tensor]) -> int:
    """Without the buffers of batch normalisation."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return sum(t.numel() for name, t in weights.items() if not name.endswith(buffers))


def _describe_classes(names: list[str]) -> str:
    more = ", ..." if len(names) > _MAX_CLASS_NAMES else ""
    names_text = ", ".join(_markdown_text(name) for name in names[:_MAX_CLASS_NAMES])
    return f"{plural(len(names), 'class', 'classes')} ({names_text}{more})"


def _markdown_text(name: str) -> str:
    """A name as Markdown shows it, whatever characters it has."""
    return re.sub(r"([\\`*_\[\]<>|&#])", r"\\\1", shorten(name))
