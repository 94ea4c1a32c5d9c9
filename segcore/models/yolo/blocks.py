"""Building blocks of YOLO11-seg; attribute names are those in the official state dicts."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv(nn.Module):
    """Convolution without bias, batch norm, SiLU (or no activation); "same" padding."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(c_out)
        self.act = nn.SiLU(inplace=True) if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H / stride, W / stride)."""
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """Two 3x3 convolutions with a residual connection."""

    def __init__(self, channels: int, expansion: float) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.cv1 = Conv(channels, hidden, 3)
        self.cv2 = Conv(hidden, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """The shape is kept."""
        return x + self.cv2(self.cv1(x))


class C3k(nn.Module):
    """CSP block: two 1x1 branches, one of which goes through two bottlenecks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 2
        self.cv1 = Conv(channels, hidden)
        self.cv2 = Conv(channels, hidden)
        self.cv3 = Conv(2 * hidden, channels)
        self.m = nn.Sequential(Bottleneck(hidden, 1.0), Bottleneck(hidden, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """The shape is kept."""
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), dim=1))


class C3k2(nn.Module):
    """CSP block that concatenates the outputs of all of its `n` inner blocks."""

    def __init__(self, c_in: int, c_out: int, n: int, c3k: bool, expansion: float = 0.5) -> None:
        super().__init__()
        hidden = int(c_out * expansion)
        self.cv1 = Conv(c_in, 2 * hidden)
        self.cv2 = Conv((2 + n) * hidden, c_out)
        self.m = nn.ModuleList(C3k(hidden) if c3k else Bottleneck(hidden, 0.5) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H, W)."""
        outputs = list(self.cv1(x).chunk(2, dim=1))
        for block in self.m:
            outputs.append(block(outputs[-1]))
        return self.cv2(torch.cat(outputs, dim=1))


class SPPF(nn.Module):
    """Spatial pyramid pooling: three 5x5 max pools in a row, concatenated with their input."""

    def __init__(self, c_in: int, c_out: int, activation: bool) -> None:
        super().__init__()
        hidden = c_in // 2
        self.cv1 = Conv(c_in, hidden, activation=activation)
        self.cv2 = Conv(4 * hidden, c_out)
        self.m = nn.MaxPool2d(5, stride=1, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H, W)."""
        outputs = [self.cv1(x)]
        for _ in range(3):
            outputs.append(self.m(outputs[-1]))
        return self.cv2(torch.cat(outputs, dim=1))


class Attention(nn.Module):
    """Multi-head self-attention over positions; keys are half as wide as values."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = channels // num_heads
        self.key_dim = self.head_dim // 2
        self.qkv = Conv(channels, channels + 2 * self.key_dim * num_heads, activation=False)
        self.proj = Conv(channels, channels, activation=False)
        self.pe = Conv(channels, channels, 3, groups=channels, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        """The shape is kept."""
        b, c, h, w = x.shape
        qkv = self.qkv(x).view(b, self.num_heads, 2 * self.key_dim + self.head_dim, h * w)
        q, k, v = qkv.split((self.key_dim, self.key_dim, self.head_dim), dim=2)
        weights = ((q.transpose(-2, -1) @ k) * self.key_dim**-0.5).softmax(dim=-1)
        mixed = (v @ weights.transpose(-2, -1)).view(b, c, h, w)
        return self.proj(mixed + self.pe(v.reshape(b, c, h, w)))


class PSABlock(nn.Module):
    """Attention and a two-layer feed-forward part, each with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attn = Attention(channels, num_heads=channels // 64)
        self.ffn = nn.Sequential(
            Conv(channels, 2 * channels), Conv(2 * channels, channels, activation=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The shape is kept."""
        x = x + self.attn(x)
        return x + self.ffn(x)


class C2PSA(nn.Module):
    """Half of the channels go through `n` attention blocks, the others bypass them."""

    def __init__(self, channels: int, n: int) -> None:
        super().__init__()
        hidden = channels // 2
        self.cv1 = Conv(channels, 2 * hidden)
        self.cv2 = Conv(2 * hidden, channels)
        self.m = nn.Sequential(*(PSABlock(hidden) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        """The shape is kept."""
        bypass, attended = self.cv1(x).chunk(2, dim=1)
        return self.cv2(torch.cat((bypass, self.m(attended)), dim=1))


class Proto(nn.Module):
    """Mask prototypes at twice the resolution of its input."""

    def __init__(self, c_in: int, hidden: int, num_prototypes: int) -> None:
        super().__init__()
        self.cv1 = Conv(c_in, hidden, 3)
        self.upsample = nn.ConvTranspose2d(hidden, hidden, 2, stride=2)
        self.cv2 = Conv(hidden, hidden, 3)
        self.cv3 = Conv(hidden, num_prototypes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, num_prototypes, 2H, 2W)."""
        return self.cv3(self.cv2(self.upsample(self.cv1(x))))


class Integral(nn.Module):
    """The bins of the distance distributions, as in official state dicts.

    They are the integers from 0, so `segcore.models.yolo.network.expected_distances` needs no
    weights.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        # `torch.arange` on the device "meta" imports torch's compiler: a second, and 70 MB.
        self.conv.weight.data[:] = torch.tensor([[[[float(value)]] for value in range(bins)]])
