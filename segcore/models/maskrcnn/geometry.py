"""Sizes and boxes: how an image becomes the network's input, and the way back for boxes.

Boxes are x1, y1, x2, y2 in float32. As the published models do it, to the last bit: the image is
normalised, then resized bilinearly so that its shorter side has `min_size` pixels unless the longer
would exceed `max_size`, then padded with zeros at the right and the bottom. The padding depends on
the image alone, never on the other images of its batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

MEAN = (0.485, 0.456, 0.406)  # RGB in [0, 1], of ImageNet
STD = (0.229, 0.224, 0.225)
SIZE_DIVISOR = 32  # pixels
_MAX_LOG_RATIO = math.log(1000.0 / 16)  # of a predicted box to its anchor


class Frame(NamedTuple):
    """Sizes of one image in pixels: the original, and as the network sees it without padding."""

    height: int
    width: int
    resized_height: int
    resized_width: int

    @classmethod
    def fit(cls, height: int, width: int, min_size: int, max_size: int) -> Frame:
        """Sizes for an image of (height, width), both at least 1. Fractions are truncated."""
        scale = min(min_size / min(height, width), max_size / max(height, width))
        # At least one pixel, so that something of very long images is visible.
        return cls(height, width, max(1, int(height * scale)), max(1, int(width * scale)))

    @property
    def padded(self) -> tuple[int, int]:
        """(H, W) of the network's input: multiples of 32."""
        return _round_up(self.resized_height), _round_up(self.resized_width)


def _round_up(side: int) -> int:
    return -(-side // SIZE_DIVISOR) * SIZE_DIVISOR


def to_input(image: np.ndarray, frame: Frame, device: torch.device) -> Tensor:
    """(H, W, 3) uint8 RGB -> (1, 3, *frame.padded) float32 on `device`."""
    pixels = torch.from_numpy(image).to(device).permute(2, 0, 1).contiguous().float().div_(255)
    mean = torch.tensor(MEAN, device=device)[:, None, None]
    std = torch.tensor(STD, device=device)[:, None, None]
    pixels = pixels.sub_(mean).div_(std)
    size = (frame.resized_height, frame.resized_width)
    resized = F.interpolate(pixels[None], size=size, mode="bilinear", align_corners=False)
    padded_height, padded_width = frame.padded
    return F.pad(resized, (0, padded_width - size[1], 0, padded_height - size[0]))


def decode_boxes(
    deltas: Tensor, anchors: Tensor, weights: tuple[float, float, float, float]
) -> Tensor:
    """Regression outputs -> boxes (Girshick et al., arXiv:1311.2524, appendix C).

    Args:
        deltas: (N, K, 4) dx, dy, dw, dh.
        anchors: (N, 4) boxes that the deltas are relative to.
        weights: What the network's dx, dy, dw, dh are divided by.

    Returns:
        (N, K, 4) boxes, not clipped.
    """
    width = (anchors[:, 2] - anchors[:, 0])[:, None]
    height = (anchors[:, 3] - anchors[:, 1])[:, None]
    centre_x = anchors[:, 0, None] + 0.5 * width
    centre_y = anchors[:, 1, None] + 0.5 * height
    dx, dy, dw, dh = (delta / w for delta, w in zip(deltas.unbind(-1), weights, strict=True))
    x = dx * width + centre_x
    y = dy * height + centre_y
    half_width = 0.5 * (dw.clamp(max=_MAX_LOG_RATIO).exp() * width)
    half_height = 0.5 * (dh.clamp(max=_MAX_LOG_RATIO).exp() * height)
    return torch.stack((x - half_width, y - half_height, x + half_width, y + half_height), dim=-1)


def clip_boxes(boxes: Tensor, frame: Frame) -> Tensor:
    """Boxes (..., 4) clipped to the resized image."""
    x = boxes[..., 0::2].clamp(min=0, max=frame.resized_width)
    y = boxes[..., 1::2].clamp(min=0, max=frame.resized_height)
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1)


def is_large(boxes: Tensor, min_side: float) -> Tensor:
    """(..., 4) -> (...) bool: both sides have at least `min_side` pixels."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return (sides >= min_side).all(dim=-1)


def boxes_to_image(boxes: Tensor, frame: Frame) -> Tensor:
    """Boxes (N, 4) on the resized image -> on the original image."""
    original = torch.tensor([frame.width, frame.height] * 2, dtype=torch.float32)
    resized = torch.tensor([frame.resized_width, frame.resized_height] * 2, dtype=torch.float32)
    return boxes * (original / resized).to(boxes.device)
