"""Checkpoints of YOLO11-seg: recognised by their tensors, described, and made into the network."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from pydantic import ValidationError

from segcore.errors import CheckpointError
from segcore.models.checkpoints import CategoryMeta, Checkpoint, CheckpointFile, CheckpointMeta
from segcore.models.checks import check_tensors
from segcore.models.families import PublishedModel
from segcore.models.pickles import child_modules
from segcore.models.wrappers import Mark
from segcore.models.yolo.network import ARCHITECTURES, YOLO11Seg, build_network
from segcore.text import plural, printable

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
# Of YOLO models of whatever generation and task.
MARKS = tuple(
    Mark(name.removeprefix("model."), root="model.")
    for name in (_CLASS_BIAS, _PROTOTYPES, *_UNSUPPORTED)
)
_STEM = "model.0.conv.weight"
_SPPF = "model.9.cv1.conv.weight"
_DEFAULT_IMGSZ = 640  # pixels
_MAX_LICENCE = 200  # characters that are kept


def describe(file: CheckpointFile) -> CheckpointMeta:
    """Metadata of an official checkpoint (a pickled module) or of a plain state dict.

    Raises:
        CheckpointError: It is another model, or its class names cannot be used.
    """
    _check_is_segmentation(file)
    num_classes = file.tensors[_CLASS_BIAS].numel()
    architecture = _find_architecture(file, num_classes)
    # Official weights are under the licence of their publisher, which the file may state.
    licence = file.pickled_dict.get("license")
    try:
        return CheckpointMeta(
            architecture=architecture,
            categories=_categories(_class_names(file), num_classes, file.source),
            licence=licence[:_MAX_LICENCE] if isinstance(licence, str) else "unknown",
            imgsz=_trained_size(file.pickled_dict.get("train_args")),
            shape="rect",  # as their publisher uses them
            sppf_activation=_has_sppf_activation(file),
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


def _check_is_segmentation(file: CheckpointFile) -> None:
    if _PROTOTYPES in file.tensors and _CLASS_BIAS in file.tensors:
        return
    kinds = (kind for name, kind in _UNSUPPORTED.items() if name in file.tensors)
    raise CheckpointError(
        f"{file.source} is {next(kinds, 'not a YOLO11-seg model')}: {file.summary()}.",
        "Use a YOLO11-seg checkpoint (names end in -seg.pt).",
    )


def _find_architecture(file: CheckpointFile, num_classes: int) -> str:
    """The architecture whose tensors have these names and shapes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    differences = {}
    for architecture in ARCHITECTURES:
        expected = _shapes(architecture, max(1, num_classes))
        if expected == shapes:
            return architecture
        names = sorted(expected.keys() | shapes.keys())
        differences[architecture] = [n for n in names if expected.get(n) != shapes.get(n)]
    closest = min(differences, key=lambda architecture: len(differences[architecture]))
    names = differences[closest]
    example = printable(file.names_in_file.get(names[0], names[0]))[:200]
    raise CheckpointError(
        f"{file.source} has a YOLO-seg head, but its {plural(len(shapes), 'tensor')} do not match "
        f"any of {', '.join(ARCHITECTURES)}: {plural(len(names), 'difference')} to {closest}, "
        f"e.g. {example}."
    )


@lru_cache(maxsize=32)
def _shapes(architecture: str, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Of the tensors of a network, by name."""
    with torch.device("meta"):
        network = build_network(architecture, num_classes)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _class_names(file: CheckpointFile) -> Any:
    """What the modules around the network call its classes, or else the file; None: nothing."""
    for module in reversed(file.modules_of(_STEM)):
        if module.attributes.get("names") is not None:
            return module.attributes["names"]
    return file.pickled_dict.get("names")


def _categories(names: Any, num_classes: int, source: str) -> tuple[CategoryMeta, ...]:
    """Classes from their names: a list, or a dict by number or by the number as text.

    Numbers may begin at 1, as in annotation files. Ids are the channels, which begin at 0.
    """
    if names is None:
        return tuple(CategoryMeta(id=i, name=f"class {i}") for i in range(num_classes))
    by_number = dict(enumerate(names)) if isinstance(names, list | tuple) else names
    if not isinstance(by_number, dict):
        raise CheckpointError(f"{source} holds class names that are not a list.")
    if len(by_number) != num_classes:
        raise CheckpointError(
            f"{source} names {plural(len(by_number), 'class', 'classes')}, but its tensors are for "
            f"{num_classes}."
        )
    numbers = {_class_number(key): name for key, name in by_number.items()}
    first = 1 if 0 not in numbers else 0
    if set(numbers) != set(range(first, first + num_classes)):
        keys = ", ".join(printable(repr(key))[:30] for key in list(by_number)[:10])
        raise CheckpointError(
            f"{source} does not number its {plural(num_classes, 'class', 'classes')} from 0 or 1 "
            f"without gaps: the names have the numbers {keys}."
        )
    return tuple(
        CategoryMeta(id=i, name=_class_name(numbers[first + i], i, source))
        for i in range(num_classes)
    )


def _class_number(key: Any) -> int:
    """The number of a class that is written as a number or as text; -1: neither."""
    if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10:
        return int(key)
    return key if isinstance(key, int) else -1


def _class_name(name: Any, number: int, source: str) -> str:
    if name is None:
        return f"class {number}"
    if not isinstance(name, str | int | float) or (isinstance(name, int) and abs(name) >= 1 << 63):
        raise CheckpointError(f"{source} holds a name of class {number} that is not text.")
    return str(name)


def _has_sppf_activation(file: CheckpointFile) -> bool:
    """Whether the pickled SPPF ends its first convolution in an activation; see `YOLO11Seg`."""
    for module in file.modules_of(_SPPF)[-2:-1]:
        if activation := child_modules(module).get("act"):
            return not activation.stub_name.endswith(".Identity")
    return True  # a plain state dict: the releases that published weights have it


def _trained_size(train_args: Any) -> int:
    """`imgsz` of the training arguments, if it is one that can be used; else 640."""
    size = train_args.get("imgsz") if isinstance(train_args, dict) else None
    if isinstance(size, int) and 32 <= size <= 8192 and size % 32 == 0:
        return size
    return _DEFAULT_IMGSZ
