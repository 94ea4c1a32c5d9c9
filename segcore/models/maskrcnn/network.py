"""Mask R-CNN with a ResNet-50 feature pyramid, in both published layouts.

Parameter names are those of the published state dicts, so that their tensors load as they are.
Sources: He et al., Mask R-CNN, arXiv:1703.06870; Li et al., Benchmarking detection transfer
learning with vision transformers, arXiv:2111.11429 (the second layout adds norms everywhere, a
deeper proposal head and a convolutional box head).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segcore.models.checks import check_finite
from segcore.models.maskrcnn.backbone import STRIDES, Backbone
from segcore.models.maskrcnn.geometry import Frame
from segcore.models.maskrcnn.heads import (
    BOX_BINS,
    MASK_BINS,
    MASK_SIDE,
    BoxPredictor,
    MaskPredictor,
    RegionDetections,
    Thresholds,
    TwoLayerHead,
    conv_box_head,
    mask_head,
    select_detections,
)
from segcore.models.maskrcnn.layers import FixedNorm, FrozenNorm, Norm
from segcore.models.maskrcnn.roi_align import Pyramid, roi_align
from segcore.models.maskrcnn.rpn import RPN

V1, V2 = "maskrcnn-resnet50-fpn", "maskrcnn-resnet50-fpn-v2"
ARCHITECTURES = (V1, V2)
_MASKS_PER_CHUNK = 128  # bounds the memory of the mask head


class NetworkShape(NamedTuple):
    """The properties of the network that a checkpoint decides.

    Attributes:
        architecture: One of `ARCHITECTURES`.
        num_labels: Number of classes, with the background.
        mask_hidden: Channels before the mask logits.
        norm_eps: Added to the variance in every norm.
    """

    architecture: str
    num_labels: int = 91
    mask_hidden: int = 256
    norm_eps: float = 1e-5


class RegionHeads(nn.Module):
    """The modules of the second stage, with their published names."""

    def __init__(self, shape: NetworkShape, norm: Norm | None) -> None:
        super().__init__()
        self.box_head = TwoLayerHead() if norm is None else conv_box_head(norm)
        self.box_predictor = BoxPredictor(shape.num_labels)
        self.mask_head = mask_head(norm)
        self.mask_predictor = MaskPredictor(shape.mask_hidden, shape.num_labels)


class MaskRCNN(nn.Module):
    """The network for inference on one image at a time.

    Convolution libraries choose their algorithm by batch size. With one image at a time, the result
    for an image is the same to the last bit whatever else is in its batch. At the usual 800 x 1333
    pixels one image keeps a device busy.
    """

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        is_v2 = shape.architecture == V2
        body_norm = partial(FixedNorm if is_v2 else FrozenNorm, eps=shape.norm_eps)
        other_norm = body_norm if is_v2 else None
        self.shape = shape
        self.backbone = Backbone(body_norm, other_norm)
        self.rpn = RPN(depth=2 if is_v2 else 1)
        self.roi_heads = RegionHeads(shape, other_norm)

    def forward(
        self, x: Tensor, frame: Frame, thresholds: Thresholds
    ) -> tuple[RegionDetections, Tensor]:
        """One image.

        Args:
            x: (1, 3, *frame.padded), made by `geometry.to_input`.
            frame: Sizes of the image.
            thresholds: What becomes a detection.

        Returns:
            Detections, and their mask probabilities (N, 28, 28) over each box.
        """
        levels = self.backbone(x)
        proposals = self.rpn(levels, frame)
        pyramid = Pyramid.from_levels(levels[: len(STRIDES)], STRIDES)
        heads = self.roi_heads
        if proposals.numel() == 0:
            detections = _no_detections(x)
        else:
            features = heads.box_head(roi_align(pyramid, proposals, BOX_BINS))
            logits, deltas = heads.box_predictor(features)
            check_finite("scores or boxes", logits, deltas)
            detections = select_detections(logits, deltas, proposals, frame, thresholds)
        return detections, self._masks(pyramid, detections)

    def _masks(self, pyramid: Pyramid, detections: RegionDetections) -> Tensor:
        """(N, 28, 28) mask probabilities of the detections, each for its label."""
        masks = [detections.boxes.new_zeros((0, MASK_SIDE, MASK_SIDE))]
        for start in range(0, detections.labels.numel(), _MASKS_PER_CHUNK):
            chunk = slice(start, start + _MASKS_PER_CHUNK)
            pooled = roi_align(pyramid, detections.boxes[chunk], MASK_BINS)
            logits = self.roi_heads.mask_predictor(self.roi_heads.mask_head(pooled))
            index = torch.arange(logits.shape[0], device=logits.device)
            masks.append(logits[index, detections.labels[chunk]].sigmoid())
        return torch.cat(masks)


def _no_detections(like: Tensor) -> RegionDetections:
    return RegionDetections(
        boxes=like.new_zeros((0, 4)),
        scores=like.new_zeros(0),
        labels=torch.zeros(0, dtype=torch.int64, device=like.device),
    )
