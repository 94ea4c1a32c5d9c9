"""Ground truth of a batch, as the loss needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class GroundTruth(NamedTuple):
    """Objects of B images, padded to G each.

    Attributes:
        boxes: (B, G, 4) float32 x1 y1 x2 y2, input pixels.
        classes: (B, G) int64 class indices.
        valid: (B, G) bool, False for padding.
    """

    boxes: Tensor
    classes: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Targets:
    """Objects of a batch and their masks.

    Attributes:
        truth: The objects.
        labels: (B, H, W) int32; pixel value g + 1 belongs to object g of the image, 0 to none.
    """

    truth: GroundTruth
    labels: Tensor

    def to(self, device: torch.device) -> Targets:
        """The same on another device."""
        truth = GroundTruth(*(tensor.to(device, non_blocking=True) for tensor in self.truth))
        return Targets(truth, self.labels.to(device, non_blocking=True))
