"""YOLO11-seg (n, s, m, l, x) as plain PyTorch modules.

The published architecture, with the parameter names of the official checkpoints
(`model.0.conv.weight` ... `model.23.proto.cv3.conv.weight`), so that their tensors load as they
are. Sources: the YOLO11 architecture description (Jocher and Qiu, 2024), CSP bottlenecks (Wang et
al., CSPNet, arXiv:1911.11929), SPPF (He et al., SPP, arXiv:1406.4729), distribution focal boxes
(Li et al., arXiv:2006.04388), prototype masks (Bolya et al., YOLACT, arXiv:1904.02689).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segcore.models.yolo.blocks import C2PSA, SPPF, C3k2, Conv, Integral, Proto

STRIDES = (8, 16, 32)
REG_MAX = 16  # bins of the distance distribution for each box side
NUM_PROTOTYPES = 32
PROTO_STRIDE = 4  # prototypes are at a quarter of the input size


class Scale(NamedTuple):
    """Compound scaling of one size.

    Attributes:
        depth: Factor of the repeats.
        width: Factor of the channels.
        max_channels: Limit of the channels, before `width`.
        c3k_everywhere: Whether all C3k2 blocks are made of C3k blocks.
    """

    depth: float
    width: float
    max_channels: int
    c3k_everywhere: bool


SCALES = {
    "n": Scale(0.50, 0.25, 1024, False),
    "s": Scale(0.50, 0.50, 1024, False),
    "m": Scale(0.50, 1.00, 512, True),
    "l": Scale(1.00, 1.00, 512, True),
    "x": Scale(1.00, 1.50, 512, True),
}
ARCHITECTURES = tuple(f"yolo11{size}-seg" for size in SCALES)


class HeadOutputs(NamedTuple):
    """Raw head outputs; the A anchors are all cells of strides 8, 16, 32 in this order, row-major.

    Attributes:
        distances: (B, A, 4 * REG_MAX) logits of the left, top, right, bottom distributions.
        class_logits: (B, A, num_classes) before the sigmoid.
        coefficients: (B, A, 32) mask coefficients.
        prototypes: (B, 32, S/4, S/4).
    """

    distances: Tensor
    class_logits: Tensor
    coefficients: Tensor
    prototypes: Tensor

    def boxes(self, anchors: Tensor | None = None) -> Tensor:
        """Boxes (B, N, 4) x1 y1 x2 y2 float32 in input pixels, whatever the precision.

        Args:
            anchors: (B, N) int64, the anchors whose boxes are computed; None: all. A box does not
                depend, to the last bit, on which other boxes are computed with it.
        """
        distances = self.distances
        if anchors is not None:
            index = anchors.unsqueeze(-1).expand(-1, -1, distances.shape[-1])
            distances = distances.gather(1, index)
        distances = distances.float()
        height, width = (PROTO_STRIDE * side for side in self.prototypes.shape[-2:])
        centres, strides = anchor_grid(height, width, distances)
        if anchors is not None:
            centres, strides = centres[anchors], strides[anchors]
        return decode_boxes(expected_distances(distances), centres, strides)


def anchor_grid(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (A, 2) in input pixels and strides (A, 1) of all anchors of an input of this size."""
    centres, strides = [], []
    for stride in STRIDES:
        rows, columns = height // stride, width // stride
        y = (torch.arange(rows, device=like.device, dtype=like.dtype) + 0.5) * stride
        x = (torch.arange(columns, device=like.device, dtype=like.dtype) + 0.5) * stride
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        centres.append(torch.stack((grid_x, grid_y), dim=-1).reshape(-1, 2))
        strides.append(
            torch.full((rows * columns, 1), stride, device=like.device, dtype=like.dtype)
        )
    return torch.cat(centres), torch.cat(strides)


class SegmentHead(nn.Module):
    """Boxes, classes and mask coefficients for each anchor, and the prototypes of the image."""

    def __init__(self, num_classes: int, proto_channels: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.num_classes = num_classes
        c_box = max(16, channels[0] // 4, 4 * REG_MAX)
        c_class = max(channels[0], min(num_classes, 100))
        c_coefficient = max(channels[0] // 4, NUM_PROTOTYPES)
        self.cv2 = nn.ModuleList(_tower(c, c_box, 4 * REG_MAX) for c in channels)
        self.cv3 = nn.ModuleList(
            nn.Sequential(
                nn.Sequential(Conv(c, c, 3, groups=c), Conv(c, c_class, 1)),
                nn.Sequential(Conv(c_class, c_class, 3, groups=c_class), Conv(c_class, c_class, 1)),
                nn.Conv2d(c_class, num_classes, 1),
            )
            for c in channels
        )
        self.dfl = Integral(REG_MAX)
        self.proto = Proto(channels[0], proto_channels, NUM_PROTOTYPES)
        self.cv4 = nn.ModuleList(_tower(c, c_coefficient, NUM_PROTOTYPES) for c in channels)

    def forward(self, features: list[Tensor]) -> HeadOutputs:
        """Three feature maps (strides 8, 16, 32) -> raw outputs."""

        def per_anchor(towers: nn.ModuleList) -> Tensor:
            """Outputs of the towers (B, A, C), level after level."""
            maps = [tower(x) for tower, x in zip(towers, features, strict=True)]
            # In channels-last memory each is a view.
            return torch.cat([m.permute(0, 2, 3, 1).flatten(1, 2) for m in maps], dim=1)

        return HeadOutputs(
            per_anchor(self.cv2),
            per_anchor(self.cv3),
            per_anchor(self.cv4),
            self.proto(features[0]),
        )

    def initialize_biases(self) -> None:
        """Biases for training from scratch: small boxes, rare objects (arXiv:1708.02002, 4.1)."""
        for box_tower, class_tower, stride in zip(self.cv2, self.cv3, STRIDES, strict=True):
            # 5 objects in an image of 640 x 640 pixels, of all classes together.
            class_prior = math.log(5 / self.num_classes / (640 / stride) ** 2)
            for tower, value in ((box_tower, 1.0), (class_tower, class_prior)):
                assert isinstance(tower, nn.Sequential)
                output_layer = tower[-1]
                assert isinstance(output_layer, nn.Conv2d)
                assert output_layer.bias is not None
                nn.init.constant_(output_layer.bias, value)


def _tower(c_in: int, c_mid: int, c_out: int) -> nn.Sequential:
    """Two 3x3 convolutions and a 1x1 convolution that gives the outputs."""
    return nn.Sequential(Conv(c_in, c_mid, 3), Conv(c_mid, c_mid, 3), nn.Conv2d(c_mid, c_out, 1))


class YOLO11Seg(nn.Module):
    """The network.

    Args:
        size: One of n, s, m, l, x.
        num_classes: Number of classes.
        sppf_activation: Whether the first convolution of SPPF ends in SiLU. Releases of the
            official weights differ in this; the checkpoint says which it is.
    """

    def __init__(self, size: str, num_classes: int, sppf_activation: bool = False) -> None:
        super().__init__()
        scale = SCALES[size]
        self.size = size
        self.num_classes = num_classes
        self.sppf_activation = sppf_activation

        def c(channels: int) -> int:
            return math.ceil(min(channels, scale.max_channels) * scale.width / 8) * 8

        n = max(round(2 * scale.depth), 1)
        c3k = scale.c3k_everywhere
        self.model = nn.ModuleList(
            [
                Conv(3, c(64), 3, 2),
                Conv(c(64), c(128), 3, 2),
                C3k2(c(128), c(256), n, c3k, expansion=0.25),
                Conv(c(256), c(256), 3, 2),
                C3k2(c(256), c(512), n, c3k, expansion=0.25),
                Conv(c(512), c(512), 3, 2),
                C3k2(c(512), c(512), n, True),
                Conv(c(512), c(1024), 3, 2),
                C3k2(c(1024), c(1024), n, True),
                SPPF(c(1024), c(1024), activation=sppf_activation),
                C2PSA(c(1024), n),
                nn.Upsample(scale_factor=2.0, mode="nearest"),
                nn.Identity(),  # 12: concatenation with 6
                C3k2(c(1024) + c(512), c(512), n, c3k),
                nn.Upsample(scale_factor=2.0, mode="nearest"),
                nn.Identity(),  # 15: concatenation with 4
                C3k2(c(512) + c(512), c(256), n, c3k),
                Conv(c(256), c(256), 3, 2),
                nn.Identity(),  # 18: concatenation with 13
                C3k2(c(256) + c(512), c(512), n, c3k),
                Conv(c(512), c(512), 3, 2),
                nn.Identity(),  # 21: concatenation with 10
                C3k2(c(512) + c(1024), c(1024), n, True),
                SegmentHead(num_classes, c(256), (c(256), c(512), c(1024))),
            ]
        )
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = 1e-3, 0.03

    @property
    def head(self) -> SegmentHead:
        """The last module."""
        head = self.model[23]
        assert isinstance(head, SegmentHead)
        return head

    def forward(self, x: Tensor) -> HeadOutputs:
        """(B, 3, H, W) float RGB in [0, 1], H and W multiples of 32 -> raw head outputs."""
        m = self.model
        p3 = m[4](m[3](m[2](m[1](m[0](x)))))
        p4 = m[6](m[5](p3))
        p5 = m[10](m[9](m[8](m[7](p4))))
        n4 = m[13](torch.cat((m[11](p5), p4), dim=1))
        n3 = m[16](torch.cat((m[14](n4), p3), dim=1))
        n4 = m[19](torch.cat((m[17](n3), n4), dim=1))
        n5 = m[22](torch.cat((m[20](n4), p5), dim=1))
        return self.head([n3, n4, n5])


def expected_distances(logits: Tensor) -> Tensor:
    """Expected values of the distance distributions (arXiv:2006.04388, section 3.2).

    Args:
        logits: (..., 4 * REG_MAX).

    Returns:
        (..., 4) in units of the stride.
    """
    bins = torch.arange(REG_MAX, device=logits.device, dtype=logits.dtype)
    weighted = logits.unflatten(-1, (4, REG_MAX)).softmax(dim=-1) * bins
    # Halves are added to halves: the order in which a matrix product adds depends on the number of
    # boxes.
    while weighted.shape[-1] > 1:
        low, high = weighted.chunk(2, dim=-1)
        weighted = low + high
    return weighted.squeeze(-1)


def decode_boxes(distances: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """Distances (..., A, 4) l t r b in units of the stride -> boxes x1 y1 x2 y2 in input pixels."""
    left_top, right_bottom = distances.chunk(2, dim=-1)
    # In units of the stride first: the order of operations with which the published weights are
    # evaluated.
    points = centres / strides
    return torch.cat((points - left_top, points + right_bottom), dim=-1) * strides


def build_network(architecture: str, num_classes: int, sppf_activation: bool = False) -> YOLO11Seg:
    """The network of an architecture name such as ``yolo11n-seg``.

    Raises:
        ValueError: The name is not in `ARCHITECTURES`, or there is no class.
    """
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"unknown architecture {architecture!r}; known are {known}")
    if num_classes < 1:
        raise ValueError(f"a model needs at least one class, got {num_classes}")
    return YOLO11Seg(architecture[len("yolo11")], num_classes, sppf_activation)
