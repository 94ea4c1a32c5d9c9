"""Checkpoints of YOLO11-seg: recognised by their tensors, described, and made into the network."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from segcore.errors import CheckpointError
from segcore.models.checkpoints import CategoryMeta, Checkpoint, CheckpointFile, CheckpointMeta
from segcore.models.checks import check_tensors
from segcore.models.families import PublishedModel
from segcore.models.pickles import Stub, child_modules
from segcore.models.yolo.network import ARCHITECTURES, YOLO11Seg, build_network
from segcore.text import plural

_RELEASE = "https://github.com/ultralytics/assets/releases/download/v8.3.0"
PUBLISHED = tuple(
    PublishedModel(f"yolo11{size}-seg", f"{_RELEASE}/yolo11{size}-seg.pt", "AGPL-3.0", ap)
    for size, ap in (("n", 32.0), ("s", 37.8), ("m", 41.5), ("l", 42.9), ("x", 43.8))
)
_CLASS_BIAS = "model.23.cv3.0.2.bias"
_PROTOTYPES = "model.23.proto.cv3.conv.weight"
# Relatives that cannot be used, by a tensor that they have; the first that matches counts.
_UNSUPPORTED = {
    "model.23.cv2.0.2.weight": "a YOLO11 model for detection, not for instance segmentation",
    "model.22.proto.cv3.conv.weight": "a YOLOv8-seg model, which is not supported",
}
_DEFAULT_IMGSZ = 640  # pixels
_MAX_LICENCE = 200  # characters that are kept


def recognises(names: Collection[str]) -> bool:
    """Whether tensors with these names are a YOLO model, of whatever generation and task."""
    return any(name in names for name in (_CLASS_BIAS, _PROTOTYPES, *_UNSUPPORTED))


def describe(file: CheckpointFile) -> CheckpointMeta:
    """Metadata of an official checkpoint (a pickled module) or of a plain state dict.

    Raises:
        CheckpointError: It is another model, or its class names cannot be used.
    """
    _check_is_segmentation(file.tensors, file.source)
    num_classes = file.tensors[_CLASS_BIAS].numel()
    architecture = _find_architecture(file.tensors, num_classes, file.source)
    module = file.pickled_module
    class_names = None if module is None else vars(module).get("names")
    # Official weights are under the licence of their publisher, which the file may state.
    licence = file.pickled_dict.get("license")
    try:
        return CheckpointMeta(
            architecture=architecture,
            categories=_categories(class_names, num_classes, file.source),
            licence=licence[:_MAX_LICENCE] if isinstance(licence, str) else "unknown",
            imgsz=_trained_size(file.pickled_dict.get("train_args")),
            shape="rect",  # as their publisher uses them
            sppf_activation=_has_sppf_activation(module),
        )
    except ValidationError as error:
        raise CheckpointError(
            f"{file.source} has invalid class names: {error.errors()[0]['msg']}."
        ) from None


def load_network(checkpoint: Checkpoint) -> YOLO11Seg:
    """The network with these weights: float32, on the CPU, in eval mode.

    Raises:
        CheckpointError: The architecture is unknown, tensors do not belong to it, or they are not
            finite.
    """
    meta = checkpoint.meta
    num_classes = len(meta.categories)
    try:
        network = build_network(meta.architecture, num_classes, meta.sppf_activation)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.source} cannot be loaded: {error}.") from None
    expected = f"{meta.architecture} with {plural(num_classes, 'class', 'classes')}"
    check_tensors(checkpoint.state_dict, network.state_dict(), checkpoint.source, expected)
    network.load_state_dict(checkpoint.state_dict)  # casts to float32
    return network.eval().requires_grad_(False)


def _check_is_segmentation(names: Collection[str], source: str) -> None:
    if _PROTOTYPES in names and _CLASS_BIAS in names:
        return
    kinds = (kind for name, kind in _UNSUPPORTED.items() if name in names)
    raise CheckpointError(
        f"{source} is {next(kinds, 'not a YOLO11-seg model')}.",
        "Use a YOLO11-seg checkpoint (names end in -seg.pt).",
    )


def _find_architecture(tensors: Mapping[str, Tensor], num_classes: int, source: str) -> str:
    """The architecture whose tensors have these names and shapes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for architecture in ARCHITECTURES:
        with torch.device("meta"):
            expected = build_network(architecture, max(1, num_classes)).state_dict()
        if {name: tuple(tensor.shape) for name, tensor in expected.items()} == shapes:
            return architecture
    raise CheckpointError(
        f"{source} has a YOLO-seg head, but its {plural(len(shapes), 'tensor')} do not match any "
        f"of {', '.join(ARCHITECTURES)}."
    )


def _categories(names: Any, num_classes: int, source: str) -> tuple[CategoryMeta, ...]:
    """Classes from the names of a pickled module (list or dict by index); ids are the indices."""
    if names is None:
        return tuple(CategoryMeta(id=i, name=f"class {i}") for i in range(num_classes))
    by_index = dict(enumerate(names)) if isinstance(names, list | tuple) else names
    if not isinstance(by_index, dict):
        raise CheckpointError(f"{source} holds class names that are not a list.")
    if len(by_index) != num_classes or set(by_index) != set(range(num_classes)):
        raise CheckpointError(
            f"{source} names {plural(len(by_index), 'class', 'classes')}, but its tensors are for "
            f"{num_classes}."
        )
    return tuple(CategoryMeta(id=i, name=str(by_index[i])) for i in range(num_classes))


def _has_sppf_activation(module: Stub | None) -> bool:
    """Whether the pickled SPPF ends its first convolution in an activation; see `YOLO11Seg`."""
    for name in ("model", "9", "cv1", "act"):
        if module is None:
            break
        module = child_modules(module).get(name)
    if module is None:
        return True  # a plain state dict: the releases that published weights have it
    return not module.stub_name.endswith(".Identity")


def _trained_size(train_args: Any) -> int:
    """`imgsz` of the training arguments, if it is one that can be used; else 640."""
    size = train_args.get("imgsz") if isinstance(train_args, dict) else None
    if isinstance(size, int) and 32 <= size <= 8192 and size % 32 == 0:
        return size
    return _DEFAULT_IMGSZ
