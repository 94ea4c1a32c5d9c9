"""Checkpoint files -> weights and what is known about them. Nothing of a file is ever executed.

Read here: safetensors with our metadata (key ``segcore``, a JSON `CheckpointMeta`), and what
`torch.save` wrote: official checkpoints (pickled modules) or plain state dicts of YOLO11-seg, and
state dicts of Mask R-CNN.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from segcore.errors import CheckpointError
from segcore.models.base import InputShape
from segcore.models.maskrcnn import checkpoint as maskrcnn
from segcore.models.pickles import PickledFile, PickleRefused, Stub, TensorRecord
from segcore.models.tensors import check_tensors
from segcore.models.yolo.network import ARCHITECTURES, YOLO11Seg, build_network

METADATA_KEY = "segcore"
MAX_FILE = 4 << 30  # bytes
MAX_HEADER = 16 << 20  # bytes of JSON before the tensors of a safetensors file
_MAX_DEPTH = 64  # nested modules
_PICKLE_START = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class CategoryMeta(BaseModel):
    """One class: `id` is what stands in results, the position is the channel of the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: int = Field(ge=0, lt=2**31)
    name: str = Field(max_length=1000)


class CheckpointMeta(BaseModel):
    """What a checkpoint says about itself; thresholds are the defaults it asks for."""

    model_config = ConfigDict(extra="allow", frozen=True)

    architecture: str
    categories: tuple[CategoryMeta, ...] = Field(min_length=1, max_length=100_000)
    name: str = ""
    licence: str = "unknown"
    imgsz: int = Field(640, ge=32, le=8192, multiple_of=32)
    shape: InputShape = "square"  # what checkpoints that do not say so were measured with
    conf: float = Field(0.25, ge=0, le=1)
    iou: float = Field(0.7, gt=0, le=1)
    max_det: int = Field(300, ge=1, le=10_000)
    sppf_activation: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """Weights of a model and what is known about them.

    Attributes:
        meta: See there.
        state_dict: Tensors under the names of the official checkpoints, as stored (often fp16).
        sha256: Of the whole file, hex.
        source: The file, for messages.
    """

    meta: CheckpointMeta
    state_dict: dict[str, Tensor]
    sha256: str
    source: str

    def network(self) -> YOLO11Seg:
        """The network with these weights: float32, on the CPU, in eval mode.

        Raises:
            CheckpointError: Tensors do not belong to the architecture, or are not finite.
        """
        meta = self.meta
        if meta.architecture not in ARCHITECTURES:
            raise CheckpointError(
                f"{self.source} is for the architecture {meta.architecture!r}, which is unknown.",
                f"Known are {', '.join(ARCHITECTURES)}.",
            )
        network = build_network(meta.architecture, len(meta.categories), meta.sppf_activation)
        what = f"{self.meta.architecture} with {len(self.meta.categories)} classes"
        check_tensors(self.state_dict, network.state_dict(), self.source, what)
        network.load_state_dict(self.state_dict)  # casts to float32
        return network.eval().requires_grad_(False)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a local file; see `parse_checkpoint`."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder, not a checkpoint.")
        if size > MAX_FILE:
            raise CheckpointError(f"{path} has {size} bytes, over the limit of {MAX_FILE}.")
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"There is no checkpoint at {path}.") from None
    except OSError as error:
        raise CheckpointError(f"Cannot read the checkpoint {path}: {error.strerror}.") from None
    return parse_checkpoint(data, str(path))


def parse_checkpoint(data: bytes, source: str) -> Checkpoint:
    """Checkpoint from the bytes of a file; `source` is its name for messages and for `meta.name`.

    Raises:
        CheckpointError: It is of the wrong kind, damaged or unsafe; one sentence with the name.
    """
    if not data:
        raise CheckpointError(f"{source} is empty, not a checkpoint.")
    if data.startswith(_PICKLE_START):
        return _from_pickle(data, source)
    if len(data) > 9 and data[8:9] == b"{":
        return _from_safetensors(data, source)
    raise CheckpointError(
        f"{source} is no checkpoint that segcore can read.",
        "Known are .safetensors files of segcore and .pt files of YOLO11-seg.",
    )


def save_safetensors(
    path: str | Path, state_dict: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> None:
    """Writes a checkpoint atomically; tensors keep their dtype (fp16 halves the file).

    Args:
        path: Target; its folder exists.
        state_dict: Tensors under the official names.
        meta: Fields of `CheckpointMeta`; others are kept as they are.

    Raises:
        ValueError: `meta` is no valid `CheckpointMeta` (pydantic's ValidationError).
    """
    document = CheckpointMeta(**meta).model_dump(mode="json")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # Not save_file: it makes files that only their owner can read.
        metadata = {METADATA_KEY: json.dumps(document, sort_keys=True)}
        partial.write_bytes(safetensors.torch.save(tensors, metadata))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _from_safetensors(data: bytes, source: str) -> Checkpoint:
    (length,) = struct.unpack_from("<Q", data)
    if length > min(MAX_HEADER, len(data) - 8):
        raise CheckpointError(f"{source} is no safetensors file, or is truncated.")
    try:
        header = json.loads(data[8 : 8 + length])
        tensors = safetensors.torch.load(data)
    except (ValueError, RecursionError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{source} is a damaged safetensors file: {error}.") from None
    text = (header.get("__metadata__") or {}).get(METADATA_KEY)
    if text is None:
        raise CheckpointError(
            f"{source} is a safetensors file that does not say which model it is for "
            f"(no {METADATA_KEY!r} in its metadata).",
            "Write it with `segcore train` or segcore.models.checkpoints.save_safetensors.",
        )
    try:
        meta = CheckpointMeta.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or METADATA_KEY
        raise CheckpointError(f"{source} has wrong metadata: {where}: {first['msg']}.") from None
    return _checkpoint(meta, tensors, data, source)


def _from_pickle(data: bytes, source: str) -> Checkpoint:
    try:
        file = PickledFile(data)
        model = _find_model(file.root, source)
        records = _records(model)
        tensors = {name: file.tensor(record) for name, record in records.items()}
    except PickleRefused as refused:
        raise CheckpointError(f"{source} is no checkpoint that can be used: {refused}.") from None
    if maskrcnn.is_maskrcnn(tensors):
        meta = CheckpointMeta(**maskrcnn.describe(tensors, source))
        return _checkpoint(meta, tensors, data, source)
    _check_is_segmentation(tensors, source)
    classes = tensors["model.23.cv3.0.2.bias"].numel()
    architecture = _architecture(tensors, classes, source)
    attributes = vars(model) if isinstance(model, Stub) else {}
    # Official weights are under the licence of their publisher, which the file may state.
    root = file.root if isinstance(file.root, dict) else {}
    stated = root.get("license")
    try:
        meta = CheckpointMeta(
            architecture=architecture,
            categories=_categories(attributes.get("names"), classes, source),
            licence=stated[:200] if isinstance(stated, str) else "unknown",
            imgsz=_trained_size(root.get("train_args")),
            shape="rect",  # as their publisher uses them
            sppf_activation=_sppf_activation(attributes),
        )
    except ValidationError as error:
        raise CheckpointError(
            f"{source} has wrong class names: {error.errors()[0]['msg']}."
        ) from None
    return _checkpoint(meta, tensors, data, source)


def _checkpoint(
    meta: CheckpointMeta, tensors: dict[str, Tensor], data: bytes, source: str
) -> Checkpoint:
    if not meta.name:
        meta = meta.model_copy(update={"name": Path(source.rstrip("/")).stem})
    return Checkpoint(meta, tensors, hashlib.sha256(data).hexdigest(), source)


def _find_model(root: Any, source: str) -> Any:
    """The module or state dict to use: averaged weights (EMA) before the last ones."""
    if isinstance(root, Stub):
        return root
    if isinstance(root, dict):
        for key in ("ema", "model", "state_dict"):
            if isinstance(root.get(key), Stub | dict) and root[key]:
                return root[key]
        if any(isinstance(value, TensorRecord) for value in root.values()):
            return root
    raise CheckpointError(
        f"{source} holds no model.", "Expected an official YOLO11-seg checkpoint or a state dict."
    )


def _records(model: Any) -> dict[str, TensorRecord]:
    """Names and tensors of a pickled module tree, or of a state dict."""
    if isinstance(model, dict):
        return {str(k): v for k, v in model.items() if isinstance(v, TensorRecord)}
    found: dict[str, TensorRecord] = {}

    def walk(module: Any, prefix: str, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise PickleRefused("its modules are nested too deeply")
        attributes = vars(module)
        for group in ("_parameters", "_buffers"):
            for name, value in _items(attributes.get(group)):
                if isinstance(value, TensorRecord):
                    found[f"{prefix}{name}"] = value
        for name, child in _items(attributes.get("_modules")):
            if isinstance(child, Stub):
                walk(child, f"{prefix}{name}.", depth + 1)
        if len(found) > 100_000 or len(prefix) > 1000:
            raise PickleRefused("it has more tensors than any known model")

    walk(model, "", 0)
    return found


def _items(mapping: Any) -> list[tuple[Any, Any]]:
    return list(mapping.items()) if isinstance(mapping, dict) else []


def _check_is_segmentation(tensors: Mapping[str, Tensor], source: str) -> None:
    if "model.23.proto.cv3.conv.weight" in tensors and "model.23.cv3.0.2.bias" in tensors:
        return
    kinds = {
        "model.23.cv2.0.2.weight": "a YOLO11 model for detection, not for instance segmentation",
        "model.22.proto.cv3.conv.weight": "a YOLOv8-seg model, which is not supported",
        "backbone.body.conv1.weight": "a torchvision model without masks",
    }
    kind = next((text for key, text in kinds.items() if key in tensors), "not a YOLO11-seg model")
    raise CheckpointError(
        f"{source} is {kind}.", "Use a YOLO11-seg checkpoint (names end in -seg.pt)."
    )


def _architecture(tensors: Mapping[str, Tensor], classes: int, source: str) -> str:
    """The size whose names and shapes are those of the tensors."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for architecture in ARCHITECTURES:
        with torch.device("meta"):
            wanted = build_network(architecture, max(1, classes)).state_dict()
        if {name: tuple(tensor.shape) for name, tensor in wanted.items()} == shapes:
            return architecture
    raise CheckpointError(
        f"{source} has a YOLO-seg head, but its {len(shapes)} tensors are not those of any of "
        f"{', '.join(ARCHITECTURES)}."
    )


def _categories(names: Any, classes: int, source: str) -> tuple[CategoryMeta, ...]:
    """Class names of a pickled module (list or dict by index); ids are the indices."""
    if names is None:
        return tuple(CategoryMeta(id=i, name=f"class {i}") for i in range(classes))
    by_index = dict(enumerate(names)) if isinstance(names, list | tuple) else names
    if not isinstance(by_index, dict):
        raise CheckpointError(f"{source} holds class names that are no list.")
    if len(by_index) != classes or set(by_index) != set(range(classes)):
        raise CheckpointError(f"{source} names {len(by_index)} classes, but finds {classes}.")
    return tuple(CategoryMeta(id=i, name=str(by_index[i])) for i in range(classes))


def _sppf_activation(attributes: Mapping[str, Any]) -> bool:
    """Whether the pickled SPPF ends its first convolution in an activation; see `YOLO11Seg`."""
    node: Any = attributes
    for name in ("model", "9", "cv1", "act"):
        node = dict(_items(node.get("_modules"))).get(name)
        if not isinstance(node, Stub):
            return True  # a plain state dict: the releases that published weights have it
        kind, node = node.stub_name, vars(node)
    return not kind.endswith(".Identity")


def _trained_size(train_args: Any) -> int:
    """`imgsz` of the training arguments, if it is one that can be used; else 640."""
    size = train_args.get("imgsz") if isinstance(train_args, dict) else None
    return size if isinstance(size, int) and 32 <= size <= 8192 and size % 32 == 0 else 640
