"""AdamW, its learning rate, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from segcore.training.config import OptimizerConfig

# Of the schedule: a short one, as in fine-tuning on few images, would end before its warm-up.
_MAX_WARMUP_SHARE = 0.1


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with weight decay for convolution kernels only; none for norms and biases."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr)


def learning_rate(config: OptimizerConfig, step: int, progress: float) -> float:
    """Linear warm-up, cosine decay.

    A function and not a scheduler of torch, because a run may be limited in minutes, and then the
    decay depends on the clock.

    Args:
        step: Steps done so far.
        progress: How much of the schedule is done, 0 to 1.
    """
    warmup = min(1.0, max((step + 1) / max(1, config.warmup_steps), progress / _MAX_WARMUP_SHARE))
    decay = config.final_lr + (1 - config.final_lr) * (1 + math.cos(math.pi * progress)) / 2
    return config.lr * warmup * decay


def average_weights(model: nn.Module, config: OptimizerConfig) -> AveragedModel:
    """Exponential moving average of parameters and buffers (Polyak averaging).

    Its decay rises from 0 to `ema_decay`, so that it moves faster in the first steps, when weights
    are still far off. `n_averaged` is the number of steps plus one: the start counts.
    """

    @torch.no_grad()
    def update(
        averages: Sequence[Tensor], values: Sequence[Tensor], n_averaged: Tensor | int
    ) -> None:
        if not averages[0].is_floating_point():  # counters of batches; a call has one dtype
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)
            return
        ramp = 1 - math.exp(-(int(n_averaged) + 1) / config.ema_ramp_steps)
        decay = config.ema_decay * ramp
        for average, value in zip(averages, values, strict=True):
            average.lerp_(value, 1 - decay)

    averaged = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    averaged.update_parameters(model)  # the first call only copies
    return averaged
