"""RoIAlign over all pyramid levels at once (He et al., Mask R-CNN, arXiv:1703.06870, section 3).

Each output bin is a weighted sum of 16 feature vectors: 2 x 2 sampling points with four neighbours
each. So the levels are laid out as one table of vectors, and the pooling is one weighted
`embedding_bag`, which never holds the samples themselves.

Conventions of the published models (`aligned=False`): coordinates are scaled without a half-pixel
shift, regions have at least one cell on each side, and a sampling point that is more than one cell
outside of its map counts as zero.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

SAMPLES = 2  # sampling points of a bin along each axis
_CANONICAL_SIDE = 224.0  # input pixels: regions with sides of this length are read from ...
_CANONICAL_LEVEL = 4  # ... this level (stride 16)


class Pyramid(NamedTuple):
    """Feature maps as one table.

    Attributes:
        table: (sum of h * w, C) feature vectors, row-major, level after level.
        heights, widths: (L,) int64, of the levels, cells.
        offsets: (L,) int64, row of the first cell of each level in the table.
        scales: (L,) float32, 1 / stride.
        first_level: log2 of the first level's stride.
    """

    table: Tensor
    heights: Tensor
    widths: Tensor
    offsets: Tensor
    scales: Tensor
    first_level: int

    @classmethod
    def from_levels(cls, levels: list[Tensor], strides: tuple[int, ...]) -> Pyramid:
        """Maps (1, C, h, w), finest first, with their strides (consecutive powers of two)."""
        device = levels[0].device
        table = torch.cat([level[0].flatten(1).t() for level in levels])
        heights = torch.tensor([level.shape[2] for level in levels], device=device)
        widths = torch.tensor([level.shape[3] for level in levels], device=device)
        cells = heights * widths
        scales = torch.tensor([1 / stride for stride in strides], device=device)
        first_level = strides[0].bit_length() - 1
        return cls(table, heights, widths, cells.cumsum(0) - cells, scales, first_level)

    def level_of(self, boxes: Tensor) -> Tensor:
        """(N, 4) boxes in input pixels -> (N,) index of the level from which each is read."""
        sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        # The small addend prevents exact powers of two from being rounded down.
        level = torch.floor(_CANONICAL_LEVEL + torch.log2(sides / _CANONICAL_SIDE) + 1e-6)
        last = self.first_level + self.heights.numel() - 1
        return level.clamp(self.first_level, last).long() - self.first_level


def roi_align(pyramid: Pyramid, boxes: Tensor, size: int) -> Tensor:
    """Features of regions.

    Args:
        pyramid: Features of one image.
        boxes: (N, 4) x1, y1, x2, y2 in input pixels.
        size: Bins along each side of the output.

    Returns:
        (N, C, size, size), contiguous.
    """
    level = pyramid.level_of(boxes)
    scaled = boxes * pyramid.scales[level, None]
    columns, x_weights = _sample_axis(scaled[:, 0], scaled[:, 2], pyramid.widths[level], size)
    rows, y_weights = _sample_axis(scaled[:, 1], scaled[:, 3], pyramid.heights[level], size)
    rows = rows * pyramid.widths[level, None, None] + pyramid.offsets[level, None, None]
    index = rows[:, :, None, :, None] + columns[:, None, :, None, :]
    weights = y_weights[:, :, None, :, None] * x_weights[:, None, :, None, :]
    pooled = F.embedding_bag(
        index.reshape(-1, 4 * SAMPLES**2),
        pyramid.table,
        mode="sum",
        per_sample_weights=weights.reshape(-1, 4 * SAMPLES**2) / SAMPLES**2,
    )
    return pooled.view(-1, size, size, pooled.shape[1]).permute(0, 3, 1, 2).contiguous()


def _sample_axis(start: Tensor, end: Tensor, cells: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Neighbours of the sampling points along one axis.

    Args:
        start, end: (N,) of the regions, in cells.
        cells: (N,) cells of the level.
        size: Number of bins.

    Returns:
        (N, size, 2 * SAMPLES) int64 cells, and their float32 weights: for each bin and sampling
        point the two neighbours.
    """
    step = ((end - start).clamp(min=1) / size)[:, None, None]
    bins = torch.arange(size, device=start.device)[None, :, None]
    samples = torch.arange(SAMPLES, device=start.device)[None, None, :] + 0.5
    position = start[:, None, None] + bins * step + samples * step / SAMPLES
    last = (cells - 1)[:, None, None]
    inside = (position >= -1) & (position <= last + 1)
    position = position.clamp(min=0)
    low = torch.minimum(position.long(), last)
    high = torch.minimum(low + 1, last)
    fraction = torch.where(low == last, 0.0, position - low)
    weights = torch.stack((1 - fraction, fraction), dim=-1) * inside[..., None]
    return torch.stack((low, high), dim=-1).flatten(2), weights.flatten(2)
