"""ResNet-50 with a feature pyramid.

Sources: He et al., arXiv:1512.03385 (the stride is in the 3x3 convolution, as in the published
weights); Lin et al., Feature Pyramid Networks, arXiv:1612.03144.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from segcore.models.maskrcnn.layers import Norm, conv_norm

CHANNELS = 256  # of every pyramid level
STRIDES = (4, 8, 16, 32)  # input pixels; of the levels that regions are read from


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a residual connection; gives four times its width."""

    def __init__(self, c_in: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        c_out = 4 * width
        self.conv1 = nn.Conv2d(c_in, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, c_out, 1, bias=False)
        self.bn3 = norm(c_out)
        self.downsample: nn.Module | None = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride, bias=False), norm(c_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, 4 * width, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class ResNet50(nn.Module):
    """The four stages; attribute names are those in the published state dicts."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = norm(64)
        self.layer1 = _stage(64, 64, 3, 1, norm)
        self.layer2 = _stage(256, 128, 4, 2, norm)
        self.layer3 = _stage(512, 256, 6, 2, norm)
        self.layer4 = _stage(1024, 512, 3, 2, norm)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps of strides 4, 8, 16, 32 with 256, 512, 1024, 2048 channels."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.max_pool2d(x, 3, 2, padding=1)
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps


def _stage(c_in: int, width: int, blocks: int, stride: int, norm: Norm) -> nn.Sequential:
    first = Bottleneck(c_in, width, stride, norm)
    rest = (Bottleneck(4 * width, width, 1, norm) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


class FeaturePyramid(nn.Module):
    """Top-down pathway with lateral connections, and a fifth level by subsampling the fourth."""

    def __init__(self, norm: Norm | None) -> None:
        super().__init__()
        self.inner_blocks = nn.ModuleList(
            conv_norm(c, CHANNELS, 1, norm, relu=False) for c in (256, 512, 1024, 2048)
        )
        self.layer_blocks = nn.ModuleList(
            conv_norm(CHANNELS, CHANNELS, 3, norm, relu=False) for _ in STRIDES
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Backbone maps, finest first -> five levels of 256 channels, strides 4 to 64."""
        levels: list[Tensor] = []
        coarser: Tensor | None = None
        for x, inner, layer in zip(
            reversed(maps), reversed(self.inner_blocks), reversed(self.layer_blocks), strict=True
        ):
            merged = inner(x)
            if coarser is not None:
                merged = merged + F.interpolate(coarser, size=x.shape[-2:], mode="nearest")
            coarser = merged
            levels.insert(0, layer(merged))
        return [*levels, F.max_pool2d(levels[-1], 1, 2)]


class Backbone(nn.Module):
    """`body` and `fpn`.

    Args:
        norm: Makes the norms of the body.
        pyramid_norm: Makes those of the pyramid; None: it has none, as in the first layout.
    """

    def __init__(self, norm: Norm, pyramid_norm: Norm | None) -> None:
        super().__init__()
        self.body = ResNet50(norm)
        self.fpn = FeaturePyramid(pyramid_norm)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W), H and W multiples of 32 -> five pyramid levels, finest first."""
        return list(self.fpn(self.body(x)))
