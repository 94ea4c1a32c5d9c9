"""From trained weights to a checkpoint that people load, with its card."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from segcore.evaluation.average_precision import Scores
from segcore.models.checkpoints import save_safetensors
from segcore.training.card import write_card
from segcore.training.config import TrainConfig
from segcore.training.data import read_coco
from segcore.training.validate import LabelledSet, categories_meta, measure_accuracy, short


@dataclass(frozen=True)
class Exported:
    """What came out of a training run."""

    checkpoint: Path
    card: Path
    scores: Scores


def shrink(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convolution kernels as float16, everything else (norm statistics, biases) as it is."""
    return {name: t.half() if t.ndim > 1 else t for name, t in weights.items()}


def export_checkpoint(
    config: TrainConfig, weights: dict[str, Tensor], labelled: LabelledSet, config_file: str
) -> Exported:
    """Write `<output>/<name>.safetensors` and its card; measured as stored, not as trained.

    Args:
        config: The run's configuration.
        weights: State dict to export.
        labelled: The validation set.
        config_file: Named in the card.
    """
    small = shrink(weights)
    stored = {name: t.float() for name, t in small.items()}
    scores = measure_accuracy(config, stored, labelled)
    v = config.validation
    meta = {
        "architecture": config.architecture,
        "categories": categories_meta(
            sorted(labelled.document["categories"], key=lambda c: c["id"])
        ),
        "name": config.name,
        "licence": config.licence,
        "imgsz": v.imgsz,
        "conf": config.conf,
        "iou": v.iou,
        "max_det": v.max_det,
    }
    folder = Path(config.output)
    checkpoint = folder / f"{config.name}.safetensors"
    save_safetensors(checkpoint, small, meta)
    card = folder / f"{config.name}.md"
    write_card(card, config, _facts(config, checkpoint, weights, labelled, scores, config_file))
    return Exported(checkpoint, card, scores)


def _facts(
    config: TrainConfig,
    checkpoint: Path,
    weights: dict[str, Tensor],
    labelled: LabelledSet,
    scores: Scores,
    config_file: str,
) -> dict[str, Any]:
    data = checkpoint.read_bytes()
    train = read_coco(config.data.train)
    names = [c["name"] for c in labelled.document["categories"]]
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return {
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data) / 1e6,
        "parameters": sum(t.numel() for k, t in weights.items() if not k.endswith(buffers)),
        "classes": f"{len(names)} class{'es' if len(names) > 1 else ''} "
        f"({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})",
        "train_images": len(train["images"]),
        "train_instances": len(train["annotations"]),
        "val_images": scores.n_images,
        "val_instances": scores.n_ground_truth,
        "config_file": config_file,
        **short(scores),
    }
