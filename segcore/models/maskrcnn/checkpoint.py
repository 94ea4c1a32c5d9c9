"""State dicts of Mask R-CNN: what they are for, and the network that they make.

Two layouts are published. Files of the first also exist with the names of older releases (the
published one is such a file); they are renamed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from segcore.errors import CheckpointError
from segcore.models.maskrcnn.categories import category_names
from segcore.models.maskrcnn.network import V1, V2, MaskRCNN, NetworkShape
from segcore.models.tensors import check_tensors

# Thresholds and size that the published weights are evaluated with.
DEFAULTS: dict[str, Any] = {"imgsz": 800, "conf": 0.05, "iou": 0.5, "max_det": 100}
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
_MARKS = {V1: "roi_heads.box_head.fc6.weight", V2: "roi_heads.box_head.5.weight"}
_CLASSES = "roi_heads.box_predictor.cls_score.weight"
_MASK_HIDDEN = "roi_heads.mask_predictor.conv5_mask.weight"


def is_maskrcnn(names: Mapping[str, Any]) -> bool:
    """Whether tensors of these names are meant to be a Mask R-CNN."""
    return "backbone.body.conv1.weight" in names and any(
        name.startswith("roi_heads.mask_") for name in names
    )


def describe(state_dict: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Metadata (fields of `CheckpointMeta`) of a state dict that comes without.

    `norm_eps` is among them. It is not in state dicts: the first layout was published with
    networks that add nothing to the variance in their norms, which is how files with the older
    names are evaluated; all others add 1e-5.

    Raises:
        CheckpointError: It is another model.
    """
    shape = _shape(state_dict, source, norm_eps=0.0 if _is_older(state_dict) else 1e-5)
    names = category_names(shape.num_labels)
    return {
        **DEFAULTS,
        "architecture": shape.architecture,
        "categories": [{"id": label, "name": name} for label, name in enumerate(names, 1)],
        "norm_eps": shape.norm_eps,
    }


def build_network(state_dict: Mapping[str, Tensor], source: str, norm_eps: float) -> MaskRCNN:
    """The network with these weights: float32, on the CPU, in eval mode.

    Args:
        state_dict: Tensors under the published names.
        source: The file, for messages.
        norm_eps: See `describe`.

    Raises:
        CheckpointError: Tensors do not belong to the architecture, or are not finite.
    """
    shape = _shape(state_dict, source, norm_eps)
    with torch.device("meta"):
        network = MaskRCNN(shape)
    tensors = _current_names(state_dict)
    check_tensors(tensors, network.state_dict(), source, shape.architecture)
    network.load_state_dict({k: v.float() for k, v in tensors.items()}, assign=True)
    return network.eval().requires_grad_(False)


def _is_older(names: Mapping[str, Any]) -> bool:
    return any(pattern.match(name) for name in names for pattern, _ in _OLDER_NAMES)


def _current_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in state_dict.items():
        for pattern, replacement in _OLDER_NAMES:
            name = pattern.sub(replacement, name)
        if not name.endswith(".num_batches_tracked"):  # of use in training only
            found[name] = tensor
    return found


def _shape(state_dict: Mapping[str, Tensor], source: str, norm_eps: float) -> NetworkShape:
    architecture = next((a for a, mark in _MARKS.items() if mark in state_dict), None)
    if architecture is None:
        raise CheckpointError(
            f"{source} is a Mask R-CNN, but of a layout that is unknown.",
            f"Known are {V1} and {V2}, as torchvision saves them.",
        )
    for name, dimensions in ((_CLASSES, 2), (_MASK_HIDDEN, 4)):
        if name not in state_dict or state_dict[name].ndim != dimensions:
            raise CheckpointError(f"{source} does not fit {architecture}: {name} is missing.")
    labels, hidden = state_dict[_CLASSES].shape[0], state_dict[_MASK_HIDDEN].shape[1]
    if labels < 2:
        raise CheckpointError(f"{source} finds {labels - 1} classes; a model needs at least one.")
    return NetworkShape(architecture, labels, hidden, norm_eps)
