"""Checkpoints of Mask R-CNN: recognised by their tensors, described, and made into the network.

They are state dicts in one of two published layouts. Files of the first layout also exist with the
tensor names of older releases (the published file is one of these); they are renamed here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from segcore.errors import CheckpointError
from segcore.models.checkpoints import CategoryMeta, Checkpoint, CheckpointFile, CheckpointMeta
from segcore.models.checks import check_tensors
from segcore.models.families import PublishedModel
from segcore.models.maskrcnn.categories import category_names
from segcore.models.maskrcnn.layers import FixedNorm
from segcore.models.maskrcnn.network import V1, V2, MaskRCNN, NetworkShape
from segcore.models.wrappers import Mark
from segcore.text import plural

_DOWNLOADS = "https://download.pytorch.org/models"
PUBLISHED = tuple(
    # The names of torchvision's files end in the first eight digits of their sha256.
    PublishedModel(name, f"{_DOWNLOADS}/{file}.pth", "BSD-3-Clause", ap, sha256=file[-8:])
    for name, file, ap in (
        (V1, "maskrcnn_resnet50_fpn_coco-bf2d0c1e", 34.6),
        (V2, "maskrcnn_resnet50_fpn_v2_coco-73cbd019", 41.8),
    )
)
# Thresholds and size (of the shorter side, pixels) that the published weights are evaluated with.
_DEFAULTS: dict[str, Any] = {"imgsz": 800, "conf": 0.05, "iou": 0.5, "max_det": 100}
_NORM_EPS = 1e-5  # added to the variance, where a file does not say otherwise
_OLDER_NAMES = (
    (re.compile(r"^rpn\.head\.conv\.(weight|bias)$"), r"rpn.head.conv.0.0.\1"),
    (
        re.compile(r"^backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(weight|bias)$"),
        r"backbone.fpn.\1_blocks.\2.0.\3",
    ),
    (
        re.compile(r"^roi_heads\.mask_head\.mask_fcn([1-4])\.(weight|bias)$"),
        lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0.{m[2]}",
    ),
)
MARKS = (Mark("backbone.body.conv1.weight"),)  # of the detectors of torchvision, all of them
_MASK_PREFIX = "roi_heads.mask_"
# A tensor that only this layout has.
_LAYOUT_MARKS = {V1: "roi_heads.box_head.fc6.weight", V2: "roi_heads.box_head.5.weight"}
_CLASS_SCORES = "roi_heads.box_predictor.cls_score.weight"
_MASK_HIDDEN = "roi_heads.mask_predictor.conv5_mask.weight"


def describe(file: CheckpointFile) -> CheckpointMeta:
    """Metadata of a state dict.

    `norm_eps` is among it. State dicts do not hold it: the first layout was published with
    networks that add nothing to the variance in their norms, which is how files with the older
    names are evaluated; all others add 1e-5.

    Raises:
        CheckpointError: It is another model.
    """
    if not any(name.startswith(_MASK_PREFIX) for name in file.tensors):
        raise CheckpointError(
            f"{file.source} is a torchvision model without masks.",
            f"Supported are {V1} and {V2}.",
        )
    norm_eps = 0.0 if _has_older_names(file.tensors) else _NORM_EPS
    shape = _read_shape(file.tensors, file.source, norm_eps)
    names = category_names(shape.num_labels)
    return CheckpointMeta(
        **_DEFAULTS,
        architecture=shape.architecture,
        categories=tuple(CategoryMeta(id=label, name=name) for label, name in enumerate(names, 1)),
        norm_eps=shape.norm_eps,
    )


def load_network(checkpoint: Checkpoint) -> MaskRCNN:
    """The network with these weights: float32, on the CPU, in eval mode.

    Category k of the checkpoint's list belongs to label k + 1 of the network.

    Raises:
        CheckpointError: Tensors do not belong to the architecture or are not finite, or the
            metadata does not fit them.
    """
    meta, source = checkpoint.meta, checkpoint.source
    shape = _read_shape(checkpoint.state_dict, source, _norm_eps(checkpoint))
    with torch.device("meta"):
        network = MaskRCNN(shape)
    tensors = _with_current_names(checkpoint.state_dict)
    check_tensors(tensors, network.state_dict(), source, shape.architecture)
    num_classes = shape.num_labels - 1
    if len(meta.categories) != num_classes or meta.architecture != shape.architecture:
        raise CheckpointError(
            f"{source} says that it is {meta.architecture} with "
            f"{plural(len(meta.categories), 'class', 'classes')}, but its tensors are "
            f"{shape.architecture} with {num_classes}."
        )
    network.load_state_dict({k: v.float() for k, v in tensors.items()}, assign=True)
    for name, module in network.named_modules():
        if isinstance(module, FixedNorm) and not bool((module.running_var + module.eps > 0).all()):
            raise CheckpointError(f"{source} is damaged: {name}.running_var holds 0.")
    return network.eval().requires_grad_(False)


def _norm_eps(checkpoint: Checkpoint) -> float:
    eps = (checkpoint.meta.model_extra or {}).get("norm_eps", _NORM_EPS)
    if not isinstance(eps, int | float) or not 0 <= eps <= 1:
        raise CheckpointError(f"{checkpoint.source} has invalid metadata: norm_eps is {eps!r}.")
    return float(eps)


def _has_older_names(names: Collection[str]) -> bool:
    return any(pattern.match(name) for name in names for pattern, _ in _OLDER_NAMES)


def _with_current_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state_dict.items():
        for pattern, replacement in _OLDER_NAMES:
            name = pattern.sub(replacement, name)
        if not name.endswith(".num_batches_tracked"):  # used in training only
            renamed[name] = tensor
    return renamed


def _read_shape(state_dict: Mapping[str, Tensor], source: str, norm_eps: float) -> NetworkShape:
    """What the tensors say about the network."""
    layouts = (layout for layout, mark in _LAYOUT_MARKS.items() if mark in state_dict)
    architecture = next(layouts, None)
    if architecture is None:
        raise CheckpointError(
            f"{source} is a Mask R-CNN, but its layout is unknown.",
            f"Known are {V1} and {V2}, as torchvision saves them.",
        )
    for name, dimensions in ((_CLASS_SCORES, 2), (_MASK_HIDDEN, 4)):
        if name not in state_dict or state_dict[name].ndim != dimensions:
            raise CheckpointError(f"{source} does not fit {architecture}: {name} is missing.")
    num_labels, mask_hidden = state_dict[_CLASS_SCORES].shape[0], state_dict[_MASK_HIDDEN].shape[1]
    if num_labels < 2:
        raise CheckpointError(f"{source} has no class besides the background.")
    return NetworkShape(architecture, num_labels, mask_hidden, norm_eps)
