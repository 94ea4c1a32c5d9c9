"""The training loop: optimise, average, validate, save; a stopped run can be resumed."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from segcore.errors import UsageError
from segcore.logs.records import KEPT_ONLY
from segcore.models.registry import load_checkpoint
from segcore.models.yolo.model import pick_device
from segcore.models.yolo.network import YOLO11Seg, build_network
from segcore.output.edition_changes import describe_differences
from segcore.text import format_duration, redact
from segcore.training.config import TrainConfig
from segcore.training.data import CropDataset, collate, label_images
from segcore.training.files import EpochResult, RunFiles
from segcore.training.labelled_images import read_labelled_set
from segcore.training.loss import SegmentationLoss
from segcore.training.optimizer import average_weights, build_optimizer, learning_rate
from segcore.training.targets import Targets

Validate = Callable[[dict[str, Tensor]], dict[str, float]]
Progress = Callable[[int, int, int, float], None]

_LOGGER = logging.getLogger(__name__)
_MIN_SHARED_TENSORS = 0.9  # share of tensors that a checkpoint of the same architecture has


class Trainer:
    """One training run, with its files in `config.output`.

    Args:
        config: The whole configuration.
        validate: Averaged weights -> scores; the score `mask_ap` chooses the best epoch. None: the
            last epoch counts as the best.
        progress: Called after each step with epoch (from 0), step, steps of the epoch, loss.

    Attributes:
        starting_scores: Those of the weights that training starts from; empty where some of
            them are random, because there is no `init` or its classes are others.
        changes: Options that were others when the state was saved that was resumed, in words.
    """

    def __init__(
        self,
        config: TrainConfig,
        validate: Validate | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.config = config
        self.validate = validate if config.validation.every else None
        self.progress = progress
        self.device = pick_device(config.device)
        torch.manual_seed(config.seed)
        self.labelled = read_labelled_set(config.data.train, config.data)
        images = label_images(self.labelled)
        self.dataset = CropDataset(
            images, config.augment, config.samples_per_epoch or len(images), config.seed
        )
        self.model, self._is_pretrained = build_model(config, len(self.labelled.truth.categories))
        self.model.to(self.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged_model = average_weights(self.model, config.optimizer)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.loss = SegmentationLoss(config.loss)
        self.files = RunFiles(Path(config.output))
        self.epoch = 0  # complete epochs
        self.step = 0  # optimizer steps done
        self.minutes = 0.0  # spent on steps
        self.best_score = -1.0
        self.starting_scores: dict[str, float] = {}
        self.changes: list[str] = []

    def run(self) -> dict[str, Tensor]:
        """Train to the end; returns the averaged weights of the best epoch.

        The state is saved after each epoch; `resume` restores it.
        """
        if self.epoch == 0 and self._is_pretrained and self.validate is not None:
            _LOGGER.info("Measuring the starting weights ...")
            self.starting_scores = self.validate(self.averaged_weights())
            _LOGGER.info("The starting weights: %s", self.starting_scores, extra=KEPT_ONLY)
            _LOGGER.info("Starting weights: %s", _describe_score(self.starting_scores))
        began, progress = time.monotonic(), self.schedule_progress
        while not self.finished:
            losses = self.train_one_epoch()
            scores = self.validate_epoch()
            done = f"epoch {self.epoch} of {self.config.epochs}: {losses} {scores}"
            _LOGGER.info("Done with %s.", done, extra=KEPT_ONLY)
            self.save_if_best(scores)
            self.save()
            pace = (self.schedule_progress - progress) / (time.monotonic() - began)
            self._tell_epoch(losses, scores, (1 - self.schedule_progress) / pace)
            lr = self.optimizer.param_groups[0]["lr"]
            self.files.append_log(
                EpochResult(self.epoch, self.step, self.minutes, lr, losses, scores)
            )
        return self.files.load_best()

    def _tell_epoch(
        self, losses: dict[str, float], scores: dict[str, float], seconds_left: float
    ) -> None:
        """One line for people; the log in the output has all losses and scores."""
        parts = [f"loss {sum(losses.values()):.3f}"]
        if scores:
            parts.insert(0, _describe_score(scores))
        if not self.finished:
            parts.append(f"about {format_duration(seconds_left)} left")
        _LOGGER.info("Epoch %d of %d: %s", self.epoch, self.config.epochs, ", ".join(parts))

    def train_one_epoch(self) -> dict[str, float]:
        """One pass over the data set, or what is left of the schedule; means of the losses."""
        self.model.train()
        self.dataset.epoch = self.epoch
        loader = DataLoader(
            self.dataset,
            batch_size=self.config.batch_size,
            collate_fn=collate,
            num_workers=self.config.workers,
            drop_last=len(self.dataset) >= self.config.batch_size,
        )
        sums: dict[str, float] = defaultdict(float)
        n_steps = 0
        started = time.monotonic() - self.minutes * 60
        for images, targets in loader:
            losses = self.train_step(images, targets)
            n_steps += 1
            self.minutes = (time.monotonic() - started) / 60
            for name, value in losses.items():
                sums[name] += value
            if self.progress:
                self.progress(self.epoch, n_steps, len(loader), sum(losses.values()))
            if self.finished:
                break
        self.epoch += 1
        return {name: round(value / n_steps, 5) for name, value in sums.items()}

    def train_step(self, images: Tensor, targets: Targets) -> dict[str, float]:
        """One step of the optimizer on a batch; the parts of its loss.

        Args:
            images: (B, 3, S, S) uint8 RGB.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config.optimizer, self.step, self.schedule_progress)
        batch = images.to(self.device, memory_format=torch.channels_last).float() / 255
        use_bfloat16 = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=use_bfloat16):
            heads = self.model(batch)
        loss, losses = self.loss(heads, targets.to(self.device))
        if not math.isfinite(float(loss.detach())):
            raise UsageError(
                f"the loss became {float(loss.detach())} at step {self.step}",
                "Lower optimizer.lr, or use precision: float32.",
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        self.optimizer.step()
        self.averaged_model.update_parameters(self.model)
        self.step += 1
        return losses

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimizer in one epoch."""
        return max(1, len(self.dataset) // self.config.batch_size)

    @property
    def schedule_progress(self) -> float:
        """How much of the schedule is done, 0 to 1: by epochs or by minutes, whichever is more."""
        progress = self.step / (self.config.epochs * self.steps_per_epoch)
        if self.config.max_minutes:
            progress = max(progress, self.minutes / self.config.max_minutes)
        return min(1.0, progress)

    @property
    def finished(self) -> bool:
        """Whether the schedule is complete."""
        return self.schedule_progress >= 1.0

    @property
    def counts(self) -> tuple[int, int]:
        """Images and instances of the training set."""
        images = self.dataset.images
        return len(images), sum(len(image.classes) for image in images)

    def validate_epoch(self) -> dict[str, float]:
        """Scores of the averaged weights; empty where this epoch is not validated."""
        is_due = self.finished or self.epoch % (self.config.validation.every or 1) == 0
        if self.validate is None or not is_due:
            return {}
        return self.validate(self.averaged_weights())

    def averaged_weights(self) -> dict[str, Tensor]:
        """State dict of the averaged model; it changes with each step."""
        return dict(self.averaged_model.module.state_dict())

    def save_if_best(self, scores: dict[str, float]) -> None:
        """Save the averaged weights where they are the best so far."""
        if self.validate is None:
            self.files.save_best(self.averaged_weights())
        elif scores and scores.get("mask_ap", math.inf) > self.best_score:
            self.best_score = scores.get("mask_ap", self.best_score)
            self.files.save_best(self.averaged_weights())

    def save(self) -> None:
        """Save everything that `resume` needs."""
        self.files.save_state(
            {
                "architecture": self.config.architecture,
                "model": self.model.state_dict(),
                "average": self.averaged_weights(),
                "optimizer": self.optimizer.state_dict(),
                "epoch": self.epoch,
                "step": self.step,
                "minutes": self.minutes,
                "best": self.best_score,
                "starting_scores": self.starting_scores,
                "config": _what_is_trained(self.config),
            }
        )

    def resume(self) -> bool:
        """Restore the state in the output folder; returns whether there is one.

        Raises:
            UsageError: It is of another architecture.
        """
        state = self.files.load_state(self.device)
        if state is None:
            return False
        if state["architecture"] != self.config.architecture:
            raise UsageError(
                f"{self.files.state} is a {state['architecture']}, but the configuration asks for "
                f"{self.config.architecture}",
                "Use another output folder, or delete this one.",
            )
        self.model.load_state_dict(state["model"])
        self.averaged_model.module.load_state_dict(state["average"])
        self.averaged_model.n_averaged.fill_(state["step"] + 1)  # see `average_weights`
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.minutes, self.best_score = state["minutes"], state["best"]
        self.starting_scores = state.get("starting_scores", {})  # which older states lack
        if "config" in state:
            self.changes = describe_differences(state["config"], _what_is_trained(self.config))
        return True

    def discard(self) -> int:
        """Remove what an earlier run left in the output folder; returns its epochs."""
        n_epochs = self.files.n_epochs
        self.files.remove()
        return n_epochs


def _what_is_trained(config: TrainConfig) -> dict[str, Any]:
    """The options that decide about the weights, as JSON without secrets."""
    without_effect = {"log", "output", "device", "workers"}
    options = config.model_dump(mode="json", exclude=without_effect)
    return options | {"init": config.init and redact(config.init)}


def _describe_score(scores: dict[str, float]) -> str:
    return f"mask AP50-95 {scores.get('mask_ap', math.nan):.3f}"


def build_model(config: TrainConfig, n_classes: int) -> tuple[YOLO11Seg, bool]:
    """The network to train, and whether all of its weights are those of `config.init`."""
    model = build_network(config.architecture, n_classes)
    model.head.initialize_biases()
    is_pretrained = config.init is not None and load_matching_weights(model, config.init)
    return model, is_pretrained


def load_matching_weights(model: YOLO11Seg, checkpoint: str) -> bool:
    """Copy the tensors of a model that have the same shape; returns whether all have.

    Class heads keep their initial weights where the classes differ.

    Raises:
        CheckpointError: There is no such model, or it cannot be read.
        UsageError: It is of another architecture.
    """
    source = load_checkpoint(checkpoint)
    own = model.state_dict()
    matching = {
        name: tensor.to(own[name].dtype)
        for name, tensor in source.state_dict.items()
        if name in own and tensor.shape == own[name].shape
    }
    if len(matching) < len(own) * _MIN_SHARED_TENSORS:
        raise UsageError(
            f"{checkpoint} is a {source.meta.architecture}; only {len(matching)} of {len(own)} "
            "tensors fit.",
            "Set `architecture` to that of the checkpoint, or leave `init` out.",
        )
    model.load_state_dict(matching, strict=False)
    return len(matching) == len(own)
