"""Region proposals (Ren et al., Faster R-CNN, arXiv:1506.01497) on a feature pyramid."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segcore.models.checks import check_finite
from segcore.models.maskrcnn.backbone import CHANNELS
from segcore.models.maskrcnn.geometry import Frame, clip_boxes, decode_boxes, is_large
from segcore.models.maskrcnn.layers import conv_norm
from segcore.models.nms import suppress

ANCHOR_SIDES = (32, 64, 128, 256, 512)  # square root of the area, input pixels; by level
ASPECT_RATIOS = (0.5, 1.0, 2.0)  # height to width
MAX_CANDIDATES = 1000  # of a level, best first; the others take no part in the suppression
MAX_PROPOSALS = 1000  # of one image
IOU = 0.7  # a proposal is dropped if it overlaps a better one of its level by more than this
MIN_SIDE = 1e-3  # input pixels
_DELTA_WEIGHTS = (1.0, 1.0, 1.0, 1.0)  # of `decode_boxes`


class RPNHead(nn.Module):
    """Objectness and box deltas for each anchor. `depth`: number of 3x3 convolutions."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *(conv_norm(CHANNELS, CHANNELS, 3, norm=None, relu=True) for _ in range(depth))
        )
        self.cls_logits = nn.Conv2d(CHANNELS, len(ASPECT_RATIOS), 1)
        self.bbox_pred = nn.Conv2d(CHANNELS, 4 * len(ASPECT_RATIOS), 1)

    def forward(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 256, H, W) -> objectness logits (A,) and deltas (A, 4); A = H x W x 3, row-major."""
        x = self.conv(level)
        objectness = self.cls_logits(x).permute(0, 2, 3, 1).reshape(-1)
        return objectness, self.bbox_pred(x).permute(0, 2, 3, 1).reshape(-1, 4)


class RPN(nn.Module):
    """Pyramid levels of one image -> its proposals."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.head = RPNHead(depth)

    def forward(self, levels: list[Tensor], frame: Frame) -> Tensor:
        """Five levels (1, 256, h, w) -> (N, 4) boxes on the resized image, best first, N <= 1000.

        If logits are equal, the anchor of the finer level and then of the lower index comes first.
        """
        device = levels[0].device
        boxes = torch.zeros((len(levels), MAX_CANDIDATES, 4), device=device)
        scores = torch.full((len(levels), MAX_CANDIDATES), -torch.inf, device=device)
        for k, (level, side) in enumerate(zip(levels, ANCHOR_SIDES, strict=True)):
            logits, deltas = self.head(level)
            sorted_logits, indices = torch.sort(logits, descending=True, stable=True)
            best = indices[:MAX_CANDIDATES]
            n = best.numel()
            anchors = anchor_grid(level.shape[-2:], frame.padded, side, device)[best]
            boxes[k, :n] = decode_boxes(deltas[best, None], anchors, _DELTA_WEIGHTS)[:, 0]
            scores[k, :n] = sorted_logits[:n].sigmoid()
        check_finite("proposals", boxes, scores.clamp(min=0))
        boxes = clip_boxes(boxes, frame)
        valid = is_large(boxes, MIN_SIDE) & (scores >= 0)
        kept = suppress(boxes, valid, IOU, MAX_CANDIDATES)
        order = torch.sort(scores[kept], descending=True, stable=True).indices[:MAX_PROPOSALS]
        return boxes[kept][order]


def anchor_grid(
    cells: tuple[int, int] | torch.Size, padded: tuple[int, int], side: int, device: torch.device
) -> Tensor:
    """Anchors of one level.

    Args:
        cells: (h, w) of the level.
        padded: (H, W) of the network's input.
        side: Square root of the anchors' area, input pixels.
        device: Where to make them.

    Returns:
        (h * w * 3, 4) boxes in input pixels, centred on the cells' top-left corners; row-major,
        then in the order of `ASPECT_RATIOS`.
    """
    ratios = torch.tensor(ASPECT_RATIOS, device=device).sqrt()
    heights, widths = ratios * side, (1 / ratios) * side
    shapes = (torch.stack((-widths, -heights, widths, heights), dim=1) / 2).round()
    y = torch.arange(cells[0], device=device) * (padded[0] // cells[0])
    x = torch.arange(cells[1], device=device) * (padded[1] // cells[1])
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    corners = torch.stack((grid_x, grid_y, grid_x, grid_y), dim=-1).reshape(-1, 1, 4)
    return (corners + shapes).reshape(-1, 4)
