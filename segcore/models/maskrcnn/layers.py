"""Layers that both layouts of Mask R-CNN are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FixedNorm(nn.Module):
    """Batch norm with fixed statistics: the network here only ever infers.

    Stands for the frozen batch norm of the first layout as well as for the ordinary one of the
    second: in inference they are the same affine map of each channel.
    """

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
        """Shape is kept."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


def conv_norm(
    c_in: int, c_out: int, kernel: int, norm: bool, relu: bool, eps: float = 1e-5
) -> nn.Sequential:
    """ "Same" convolution (with a bias where no norm follows), norm, ReLU; children 0, 1, 2."""
    layers: list[nn.Module] = [nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=not norm)]
    if norm:
        layers.append(FixedNorm(c_out, eps))
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
