"""The model card: what a checkpoint was trained on, how, and how good it is."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from segcore.text import plural, redact_link
from segcore.training.config import TrainConfig
from segcore.training.files import read_log

_CARD = """# {name}

{architecture}, {parameters:,} parameters, {classes}. {bytes:.1f} MB as safetensors (kernels stored
in float16).

| | |
|---|---|
| licence of the weights | {licence} |
| sha256 | `{sha256}` |
| command | `segcore train {config_file}` |
| seed | {seed} |
| started from | {init} |
| training images / instances | {train_images} / {train_instances} |
| measured on | {val_images} images, {val_instances} instances; not trained on, chose the epoch |
| weights | of epoch {best_epoch} of {epochs} |
| steps, batch, crop | {steps}, {batch_size}, {crop} px |
| time | {minutes:.0f} minutes on {hardware} |
| software | torch {torch}, Python {python} |

## Results

COCO protocol, all areas, at most {max_det} detections an image, input {imgsz} px, conf {conf},
NMS IoU {iou}:

| | AP50-95 | AP50 | AP75 |
|---|---|---|---|
| mask | {mask_ap:.3f} | {mask_ap50:.3f} | {mask_ap75:.3f} |
| box | {box_ap:.3f} | {box_ap50:.3f} | {box_ap75:.3f} |
{start}
## Curves

Losses are means over the epoch; scores are of the averaged weights after it.

| epoch | minutes | cls | box | dfl | mask | mask AP50-95 | mask AP50 |
|---|---|---|---|---|---|---|---|
{curves}
"""


def describe_machine() -> str:
    """Name of the device, without the name of the host."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"{plural(torch.get_num_threads(), 'CPU thread')} ({platform.machine()})"


def best_epoch(log: list[dict[str, Any]]) -> int:
    """The epoch whose weights are kept: the first with the highest score, else the last one."""
    measured = [line for line in log if line["scores"]]
    best = max(measured or log[-1:], key=lambda line: line["scores"].get("mask_ap", 0.0))
    return int(best["epoch"])


def curve_rows(log: list[dict[str, Any]], max_rows: int = 40) -> str:
    """Rows of the curve table: evenly spaced epochs of long runs, always with the last one."""
    spacing = max(1, -(-len(log) // max_rows))
    shown = [line for i, line in enumerate(log) if i % spacing == 0 or i == len(log) - 1]
    rows = []
    for line in shown:
        losses, scores = line["losses"], line["scores"]
        cells = [str(line["epoch"]), f"{line['minutes']:.0f}"]
        cells += [f"{losses[part]:.3f}" for part in ("cls", "box", "dfl", "mask")]
        cells += [f"{scores[k]:.3f}" if k in scores else "" for k in ("mask_ap", "mask_ap50")]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def start_rows(scores: dict[str, float]) -> str:
    """Rows of the table of results for the weights that training started from; "" if unknown."""
    return "".join(
        f"| {kind}, before training | "
        + " | ".join(f"{scores[f'{kind}_{name}']:.3f}" for name in ("ap", "ap50", "ap75"))
        + " |\n"
        for kind in ("mask", "box")
        if scores
    )


def write_card(path: Path, config: TrainConfig, facts: dict[str, Any]) -> None:
    """Write the card beside a checkpoint.

    Args:
        path: The Markdown file.
        config: The run's configuration.
        facts: The other fields of the card: sha256, bytes, parameters, classes, counts of images
            and instances, scores, starting_scores, config_file.
    """
    log = read_log(Path(config.output))
    text = _CARD.format(
        name=config.name,
        architecture=config.architecture,
        licence=config.licence,
        seed=config.seed,
        init=redact_link(config.init) if config.init else "random weights",
        steps=log[-1]["step"],
        best_epoch=best_epoch(log),
        epochs=log[-1]["epoch"],
        minutes=log[-1]["minutes"],
        batch_size=config.batch_size,
        crop=config.augment.crop,
        hardware=describe_machine(),
        torch=torch.__version__,
        python=platform.python_version(),
        max_det=config.validation.max_det,
        imgsz=config.validation.imgsz,
        conf=config.validation.conf,
        iou=config.validation.iou,
        curves=curve_rows(log),
        start=start_rows(facts.pop("starting_scores")),
        **facts,
    )
    path.write_text(text)
