"""Checkpoint files -> tensors and what is known about them. Nothing in a file is ever executed.

Two formats are read: safetensors with segcore's metadata (key ``segcore``, a JSON
`CheckpointMeta`), and what `torch.save` wrote, pickled modules or plain state dicts. A pickle does
not say which model its tensors belong to: the model families recognise and describe them
(`segcore.models.families`), and `segcore.models.registry.read_checkpoint` puts both together.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from segcore.errors import CheckpointError
from segcore.models.base import Category, InputShape, ModelInfo, ModelOptions
from segcore.models.pickles import PickledFile, PickleRefused, Stub, TensorRecord, tensor_records

METADATA_KEY = "segcore"
MAX_FILE_BYTES = 4 << 30
MAX_HEADER_BYTES = 16 << 20  # of JSON before the tensors of a safetensors file
_PICKLE_STARTS = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_OVERRIDABLE = {"imgsz", "shape", "conf", "iou", "max_det"}  # fields of meta and of `ModelOptions`


class CategoryMeta(BaseModel):
    """One class: `id` is written into results, the position is the channel of the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: int = Field(ge=0, lt=2**31)
    name: str = Field(max_length=1000)


class CheckpointMeta(BaseModel):
    """What a checkpoint says about itself; thresholds are the defaults that it asks for.

    Fields that only one family knows (such as ``norm_eps``) are kept in `model_extra`.
    """

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
    # Of YOLO11-seg; a field, because every file written so far has it.
    sppf_activation: bool = False

    def with_options(self, options: ModelOptions) -> CheckpointMeta:
        """The same with the input size and thresholds that the user has set."""
        overrides = options.model_dump(include=_OVERRIDABLE, exclude_none=True)
        return self.model_copy(update=overrides)


@dataclass(frozen=True)
class CheckpointFile:
    """What a file holds, before it is known which model it is for.

    Attributes:
        tensors: By name, as stored.
        source: The file, for messages and for `CheckpointMeta.name`.
        sha256: Of the whole file, hex.
        meta: What the file says about itself; None in a pickle.
        pickled_dict: The top level of a pickle that is a dict (training arguments, licence); else
            empty.
        pickled_module: The pickled module whose tensors these are; None for a state dict.
    """

    tensors: dict[str, Tensor]
    source: str
    sha256: str = ""
    meta: CheckpointMeta | None = None
    pickled_dict: Mapping[Any, Any] = field(default_factory=dict)
    pickled_module: Stub | None = None

    def to_checkpoint(self, meta: CheckpointMeta) -> Checkpoint:
        """The checkpoint with this metadata; a missing name becomes that of the file."""
        if not meta.name:
            meta = meta.model_copy(update={"name": Path(self.source.rstrip("/")).stem})
        return Checkpoint(meta, self.tensors, self.sha256, self.source)


@dataclass(frozen=True)
class Checkpoint:
    """Weights of a model and what is known about them.

    Attributes:
        meta: What is known.
        state_dict: Tensors under the names of the official checkpoints, as stored (often fp16).
        sha256: Of the whole file, hex.
        source: The file, for messages.
    """

    meta: CheckpointMeta
    state_dict: dict[str, Tensor]
    sha256: str
    source: str

    def model_info(self, parameters: dict[str, Any], result_version: int) -> ModelInfo:
        """The `ModelInfo` of a model with these weights and these `parameters`."""
        return ModelInfo(
            name=self.meta.name,
            architecture=self.meta.architecture,
            weights_sha256=self.sha256,
            licence=self.meta.licence,
            categories=tuple(Category(c.id, c.name) for c in self.meta.categories),
            parameters=parameters,
            result_version=result_version,
        )


def read_checkpoint_file(path: str | Path) -> CheckpointFile:
    """Reads a local file; see `parse_checkpoint_file`."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder, not a checkpoint.")
        if size > MAX_FILE_BYTES:
            raise CheckpointError(f"{path} has {size} bytes, over the limit of {MAX_FILE_BYTES}.")
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"There is no checkpoint at {path}.") from None
    except OSError as error:
        raise CheckpointError(f"Cannot read the checkpoint {path}: {error.strerror}.") from None
    return parse_checkpoint_file(data, str(path))


def parse_checkpoint_file(data: bytes, source: str) -> CheckpointFile:
    """Tensors and metadata from the bytes of a file; `source` is its name, for messages.

    Raises:
        CheckpointError: It is of an unknown format, damaged or unsafe; one sentence with the name.
    """
    if not data:
        raise CheckpointError(f"{source} is empty, not a checkpoint.")
    if data.startswith(_PICKLE_STARTS):
        return _parse_pickle(data, source)
    if len(data) > 9 and data[8:9] == b"{":
        return _parse_safetensors(data, source)
    raise CheckpointError(
        f"{source} is not a checkpoint that segcore can read.",
        "It reads .safetensors files with metadata of segcore, and .pt and .pth files of "
        "supported models.",
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
        ValueError: `meta` is not a valid `CheckpointMeta` (pydantic's ValidationError).
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


def _parse_safetensors(data: bytes, source: str) -> CheckpointFile:
    (header_bytes,) = struct.unpack_from("<Q", data)
    if header_bytes > min(MAX_HEADER_BYTES, len(data) - 8):
        raise CheckpointError(f"{source} is not a safetensors file, or is truncated.")
    try:
        header = json.loads(data[8 : 8 + header_bytes])
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
        field_name = ".".join(map(str, first["loc"])) or METADATA_KEY
        raise CheckpointError(
            f"{source} has invalid metadata: {field_name}: {first['msg']}."
        ) from None
    return CheckpointFile(tensors, source, hashlib.sha256(data).hexdigest(), meta)


def _parse_pickle(data: bytes, source: str) -> CheckpointFile:
    try:
        file = PickledFile(data)
        model = _find_model(file.root, source)
        tensors = {name: file.tensor(record) for name, record in tensor_records(model).items()}
    except PickleRefused as refused:
        raise CheckpointError(f"{source} is not a usable checkpoint: {refused}.") from None
    return CheckpointFile(
        tensors,
        source,
        hashlib.sha256(data).hexdigest(),
        pickled_dict=file.root if isinstance(file.root, dict) else {},
        pickled_module=model if isinstance(model, Stub) else None,
    )


def _find_model(root: Any, source: str) -> Stub | dict[Any, Any]:
    """The module or state dict to use: averaged weights (EMA) are preferred to the last ones."""
    if isinstance(root, Stub):
        return root
    if isinstance(root, dict):
        for key in ("ema", "model", "state_dict"):
            candidate = root.get(key)
            if isinstance(candidate, Stub | dict) and candidate:
                return candidate
        if any(isinstance(value, TensorRecord) for value in root.values()):
            return root
    raise CheckpointError(
        f"{source} holds no model.",
        "Expected an official checkpoint of a supported model, or a state dict.",
    )
