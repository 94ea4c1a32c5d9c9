"""A Mask R-CNN of torchvision with random weights that detect something in real images."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.misc import FrozenBatchNorm2d

from segcore.models.maskrcnn.network import V1, V2

PASSING_SHARE = 0.6  # of the proposals, with a class over the threshold
OLDER_NAMES = (  # of the tensors in the published file of the first layout
    (r"^rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
    (r"^(backbone\.fpn\.\w+_blocks\.\d)\.0\.", r"\1."),
    (
        r"^roi_heads\.mask_head\.(\d)\.0\.",
        lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}.",
    ),
)


def to_tensor(image: np.ndarray) -> Tensor:
    """What torchvision takes: (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1).contiguous().float().div(255)


def make_peer(architecture: str, images: list[np.ndarray], size: int) -> MaskRCNN:
    """A network of torchvision that gives varied detections."""
    torch.manual_seed(5)
    sizes = {"min_size": size, "max_size": round(size * 1333 / 800)}
    if architecture == V2:
        peer = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, **sizes)
    else:
        backbone = resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, norm_layer=nn.BatchNorm2d
        )
        peer = MaskRCNN(backbone, 91, **sizes)
    with torch.inference_mode():
        calibrate(peer.eval(), images)
    if architecture == V1:
        backbone = resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d
        )
        frozen = MaskRCNN(backbone, 91, **sizes)
        frozen.load_state_dict(peer.state_dict(), strict=False)
        overwrite_eps(frozen, 0.0)
        peer = frozen
    return peer.eval()


def calibrate(peer: MaskRCNN, images: list[np.ndarray]) -> None:
    """Sets the statistics of norms, then spread and level of the outputs, stage by stage."""
    inputs, _ = peer.transform([to_tensor(image) for image in images])
    features = collect_statistics(peer.backbone, inputs.tensors)
    head = peer.rpn.head
    maps = [head.conv(level) for level in features.values()]
    rescale(head.bbox_pred, maps, 0.3)
    rescale(head.cls_logits, maps, 1.0)
    # No score may round to 1: how torchvision orders equal scores is not defined.
    peak = max(float(head.cls_logits(x).max()) for x in maps)
    rescale(head.cls_logits, maps, 5 / peak)
    proposals, _ = peer.rpn(inputs, features)
    heads = peer.roi_heads
    pooled = heads.box_roi_pool(features, proposals, inputs.image_sizes)
    vectors = collect_statistics(heads.box_head, pooled)
    rescale(heads.box_predictor.cls_score, [vectors], 3.0)
    rescale(heads.box_predictor.bbox_pred, [vectors], 0.8)
    set_background(heads.box_predictor.cls_score, vectors)
    pooled = heads.mask_roi_pool(features, [p[:100] for p in proposals], inputs.image_sizes)
    maps = collect_statistics(heads.mask_head, pooled)
    predictor = heads.mask_predictor
    rescale(predictor.mask_fcn_logits, [predictor.conv5_mask(maps).relu()], 2.0)


def collect_statistics(module: nn.Module, x: Tensor) -> Tensor:
    """Gives the norms of a module the statistics of this input; returns its output."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None  # cumulative average
    module.train()(x)
    return module.eval()(x)


def rescale(layer: nn.Module, inputs: list[Tensor], spread: float) -> None:
    """Makes each output channel's mean 0 and the outputs' standard deviation `spread`."""
    layer.bias.zero_()
    outputs = torch.cat([layer(x).transpose(0, 1).flatten(1) for x in inputs], dim=1)
    means = outputs.mean(dim=1)
    gain = spread / (outputs - means[:, None]).std()
    layer.weight *= gain
    layer.bias -= means * gain


def set_background(layer: nn.Linear, vectors: Tensor) -> None:
    """Sets the background so that `PASSING_SHARE` of the proposals have a class over 0.05."""
    logits = layer(vectors)
    low, high = -20.0, 20.0
    for _ in range(30):
        middle = (low + high) / 2
        logits[:, 0] = middle
        share = (logits.softmax(1)[:, 1:].amax(1) > 0.05).float().mean()
        low, high = (middle, high) if share > PASSING_SHARE else (low, middle)
    layer.weight[0] = 0
    layer.bias[0] = low


def save_state_dict(peer: MaskRCNN, architecture: str, path: Path) -> None:
    """Writes the state dict; for the first layout, with the names of the published file."""
    state = peer.state_dict()
    if architecture == V1:
        for pattern, older_name in OLDER_NAMES:
            state = {re.sub(pattern, older_name, name): value for name, value in state.items()}
    torch.save(state, path)
