"""Layers that both layouts of Mask R-CNN are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FixedNorm(nn.Module):
    """Batch norm with fixed statistics, of the second layout; the network is never trained here."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """The shape is kept."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


class FrozenNorm(FixedNorm):
    """Batch norm of the first layout: the same affine map, rounded as in the published network."""

    def forward(self, x: Tensor) -> Tensor:
        """The shape is kept; changes `x`."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        bias = self.bias - self.running_mean * scale
        return x.mul_(scale[:, None, None]).add_(bias[:, None, None])


Norm = Callable[[int], FixedNorm]  # makes the norm for a number of channels


def conv_norm(c_in: int, c_out: int, kernel: int, norm: Norm | None, relu: bool) -> nn.Sequential:
    """Convolution ("same" padding, a bias if there is no norm), norm and ReLU, in this order."""
    conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=norm is None)
    layers: list[nn.Module] = [conv]
    if norm is not None:
        layers.append(norm(c_out))
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
