"""The training loop: optimise, average, measure, save, go on after a stop."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from segcore.errors import UsageError
from segcore.models.registry import read_checkpoint
from segcore.models.yolo.model import pick_device
from segcore.models.yolo.network import YOLO11Seg, build_network
from segcore.training.config import OptimizerConfig, TrainConfig
from segcore.training.data import CropDataset, collate, load_images
from segcore.training.loss import SegmentationLoss


@dataclass
class EpochResult:
    """One line of `log.jsonl`."""

    epoch: int
    step: int
    minutes: float
    lr: float
    losses: dict[str, float]
    scores: dict[str, float] = field(default_factory=dict)


class WeightAverage:
    """Exponential moving average of parameters and buffers (Polyak averaging)."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.config = config
        self.tensors = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model; faster in the first steps, when weights are still far off."""
        decay = self.config.ema_decay * (1 - math.exp(-(step + 1) / self.config.ema_ramp_steps))
        for name, value in model.state_dict().items():
            mine = self.tensors[name]
            if mine.dtype.is_floating_point:
                mine.lerp_(value, 1 - decay)
            else:
                mine.copy_(value)


def start_from(model: YOLO11Seg, checkpoint: str) -> int:
    """Take over the tensors of a checkpoint file that have the same shape; returns how many.

    The class heads of another set of classes are left as they are.

    Raises:
        CheckpointError: The file cannot be read.
        UsageError: It is of another architecture.
    """
    given = read_checkpoint(checkpoint)
    mine = model.state_dict()
    fitting = {
        name: tensor.to(mine[name].dtype)
        for name, tensor in given.state_dict.items()
        if name in mine and tensor.shape == mine[name].shape
    }
    if len(fitting) < len(mine) * 0.9:
        raise UsageError(
            f"{checkpoint} is a {given.meta.architecture}; only {len(fitting)} of {len(mine)} "
            "tensors fit.",
            "Set `architecture` to that of the checkpoint, or leave `init` out.",
        )
    model.load_state_dict(fitting, strict=False)
    return len(fitting)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for convolution kernels only; none for norms and biases."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


Validate = Callable[[dict[str, Tensor]], dict[str, float]]
Progress = Callable[[int, int, int, float], None]


class Trainer:
    """State of one training run in `config.output`.

    Args:
        config: The whole configuration.
        validate: Averaged weights -> scores; the score `mask_ap` chooses the best epoch.
        progress: Called after each step with epoch (from 0), step, steps of the epoch, loss.
    """

    def __init__(
        self,
        config: TrainConfig,
        validate: Validate | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.config = config
        self.validate = validate
        self.progress = progress
        self.device = pick_device(config.device)
        torch.manual_seed(config.seed)
        images, self.class_names = load_images(config.data.train, config.data.images)
        self.dataset = CropDataset(
            images, config.augment, config.samples_per_epoch or len(images), config.seed
        )
        self.model = self._model().to(self.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = WeightAverage(self.model, config.optimizer)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, config.optimizer.weight_decay), lr=config.optimizer.lr
        )
        self.loss = SegmentationLoss(config.loss)
        self.epoch = self.step = 0
        self.minutes = 0.0
        self.best = -1.0
        self.folder = Path(config.output)
        self.folder.mkdir(parents=True, exist_ok=True)

    def _model(self) -> YOLO11Seg:
        model = build_network(self.config.architecture, len(self.class_names))
        model.head.initialize_biases()
        if self.config.init:
            start_from(model, self.config.init)
        return model

    def resume(self) -> bool:
        """Take up the last state in the output folder, if there is one."""
        path = self.folder / "last.pt"
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["architecture"] != self.config.architecture:
            raise UsageError(
                f"{path} is a {state['architecture']}, the configuration asks for "
                f"{self.config.architecture}",
                "Use another output folder, or delete this one.",
            )
        self.model.load_state_dict(state["model"])
        self.average.tensors = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("epoch", "step", "minutes", "best"):
            setattr(self, name, state[name])
        return True

    def discard(self) -> None:
        """Remove what an earlier run left in the output folder."""
        for name in ("last.pt", "best.pt", "log.jsonl"):
            (self.folder / name).unlink(missing_ok=True)

    def save(self) -> None:
        """Write the state so that a stop at any moment leaves a whole file."""
        state = {
            "architecture": self.config.architecture,
            "model": self.model.state_dict(),
            "average": self.average.tensors,
            "optimizer": self.optimizer.state_dict(),
            **{name: getattr(self, name) for name in ("epoch", "step", "minutes", "best")},
        }
        _replace(self.folder / "last.pt", partial(torch.save, state))

    def run(self) -> dict[str, Tensor]:
        """Train to the end; returns the averaged weights of the best epoch.

        Resumable: state is saved after each epoch, and `resume` takes it up.
        """
        while not self.finished:
            losses = self._epoch()
            scores = self._measure()
            if scores.get("mask_ap", math.inf) > self.best and (scores or not self.measures):
                self.best = scores.get("mask_ap", self.best)
                _replace(self.folder / "best.pt", partial(torch.save, self.average.tensors))
            self.save()
            lr = self.optimizer.param_groups[0]["lr"]
            result = EpochResult(self.epoch, self.step, self.minutes, lr, losses, scores)
            with (self.folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(asdict(result)) + "\n")
        return torch.load(self.folder / "best.pt", map_location="cpu", weights_only=True)

    @property
    def measures(self) -> bool:
        """Whether epochs are compared at all; if not, the last one counts as the best."""
        return self.validate is not None and self.config.validation.every > 0

    def _measure(self) -> dict[str, float]:
        if not self.measures or self.validate is None:
            return {}
        if self.epoch % self.config.validation.every and not self.finished:
            return {}
        return self.validate(self.average.tensors)

    @property
    def share(self) -> float:
        """How much of the schedule is done, 0 to 1: by epochs or by minutes, whichever is more."""
        per_epoch = max(1, self.config.samples_per_epoch or len(self.dataset)) / max(
            1, self.config.batch_size
        )
        share = self.step / (self.config.epochs * max(1, int(per_epoch)))
        if self.config.max_minutes:
            share = max(share, self.minutes / self.config.max_minutes)
        return min(1.0, share)

    @property
    def finished(self) -> bool:
        """Whether the schedule is over."""
        return self.share >= 1.0

    def _set_lr(self) -> None:
        o = self.config.optimizer
        warm = min(1.0, (self.step + 1) / max(1, o.warmup_steps))
        decay = o.final_lr + (1 - o.final_lr) * (1 + math.cos(math.pi * self.share)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = o.lr * warm * decay

    def _epoch(self) -> dict[str, float]:
        self.dataset.epoch = self.epoch
        loader = DataLoader(
            self.dataset,
            batch_size=self.config.batch_size,
            collate_fn=collate,
            num_workers=self.config.workers,
            drop_last=len(self.dataset) >= self.config.batch_size,
        )
        self.model.train()
        sums: dict[str, float] = {}
        started = time.monotonic() - self.minutes * 60
        for i, (images, targets) in enumerate(loader):
            self._set_lr()
            parts = self._step(images, targets)
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value
            self.minutes = (time.monotonic() - started) / 60
            if self.progress:
                self.progress(self.epoch, i + 1, len(loader), sum(parts.values()))
            if self.finished:
                break
        self.epoch += 1
        return {name: round(value / (i + 1), 5) for name, value in sums.items()}

    def _step(self, images: Tensor, targets: Any) -> dict[str, float]:
        x = images.to(self.device, memory_format=torch.channels_last).float() / 255
        reduced = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=reduced):
            heads = self.model(x)
        loss, parts = self.loss(heads, targets.to(self.device))
        if not math.isfinite(float(loss.detach())):
            raise UsageError(
                f"the loss became {float(loss.detach())} at step {self.step}",
                "Lower optimizer.lr, or use precision: float32.",
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        self.optimizer.step()
        self.step += 1
        self.average.update(self.model, self.step)
        return parts


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside `path`, then move into place."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)
