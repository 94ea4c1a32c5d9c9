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
import stat
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from segcore.errors import CheckpointError
from segcore.models.base import Category, InputShape, ModelInfo, ModelOptions
from segcore.models.pickles import PickledFile, PickleRefused, Stub, child_modules
from segcore.models.wrappers import AmbiguousModel, Mark, find_candidates, unwrap_names
from segcore.text import plural, printable

METADATA_KEY = "segcore"
MAX_FILE_BYTES = 4 << 30
MAX_HEADER_BYTES = 16 << 20  # of JSON before the tensors of a safetensors file
_MAX_TENSORS = 100_000
_MAX_BRACKETS = 500_000  # in that JSON; each tensor has three, each category one
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
        tensors: By their names in the network, as stored.
        source: The file, for messages and for `CheckpointMeta.name`.
        sha256: Of the whole file, hex.
        meta: What the file says about itself; None in a pickle.
        pickled_dict: The top level of a pickle that is a dict (training arguments, licence); else
            empty.
        pickled_module: The pickled module whose tensors these are; None for a state dict.
        place: Where in the file the model is, such as ``['model']``.
        names_in_file: By the names in the network, where they differ.
    """

    tensors: dict[str, Tensor]
    source: str
    sha256: str = ""
    meta: CheckpointMeta | None = None
    pickled_dict: Mapping[Any, Any] = field(default_factory=dict)
    pickled_module: Stub | None = None
    place: str = ""
    names_in_file: Mapping[str, str] = field(default_factory=dict)

    def modules_of(self, tensor: str) -> list[Stub]:
        """The pickled modules that a tensor is part of, the outermost first."""
        modules = [] if self.pickled_module is None else [self.pickled_module]
        for part in self.names_in_file.get(tensor, tensor).split(".")[:-1]:
            if not modules or part not in (children := child_modules(modules[-1])):
                break
            modules.append(children[part])
        return modules

    def summary(self) -> str:
        """What was found, for messages: number, names and place of the tensors."""
        if not self.tensors:
            return "it holds no tensors"
        first = next(iter(self.tensors))
        first = printable(self.names_in_file.get(first, first))[:200]
        place = f" in {self.place}" if self.place else ""
        return f"it holds {plural(len(self.tensors), 'tensor')}{place} named like `{first}`"

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


def read_checkpoint_file(path: str | Path, marks: Sequence[Mark] = ()) -> CheckpointFile:
    """Reads a local file; see `parse_checkpoint_file`."""
    path = Path(path)
    shown = printable(str(path))
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise CheckpointError(f"{shown} is a folder, not a checkpoint.")
        if not stat.S_ISREG(status.st_mode):  # a pipe would block, a device never end
            raise CheckpointError(f"{shown} is a pipe or a device, not a file.")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise CheckpointError(f"There is no checkpoint at {shown}.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"Cannot read the checkpoint {shown}: {reason}.") from None
    if len(data) > MAX_FILE_BYTES:
        raise CheckpointError(
            f"{shown} has {status.st_size} bytes, over the limit of {MAX_FILE_BYTES}."
        )
    return parse_checkpoint_file(data, str(path), marks)


def parse_checkpoint_file(data: bytes, source: str, marks: Sequence[Mark] = ()) -> CheckpointFile:
    """Tensors and metadata from the bytes of a file; `source` is its name, for messages.

    Args:
        marks: Of the models that are looked for in a pickle.

    Raises:
        CheckpointError: It is of an unknown format, damaged or unsafe; one sentence with the name.
    """
    if not data:
        raise CheckpointError(f"{source} is empty, not a checkpoint.")
    if data.startswith(_PICKLE_STARTS):
        return _parse_pickle(data, source, marks)
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
    text = data[8 : 8 + header_bytes]
    if text.count(b"{") + text.count(b"[") > _MAX_BRACKETS:  # each is an object in memory
        raise CheckpointError(f"{source} is a damaged safetensors file: its header has no end.")
    try:
        header = json.loads(
            text,
            object_pairs_hook=_dict_without_repeats,
            parse_constant=_refuse_constant,
        )
        if len(header) > _MAX_TENSORS:
            raise ValueError(f"it claims {len(header):,} tensors")
        tensors = safetensors.torch.load(data)
    # Hostile or damaged bytes can raise nearly anything in the library.
    except Exception as error:
        reason = printable(str(error) or type(error).__name__)[:200]
        raise CheckpointError(f"{source} is a damaged safetensors file: {reason}.") from None
    document = (header.get("__metadata__") or {}).get(METADATA_KEY)
    if document is None:
        raise CheckpointError(
            f"{source} is a safetensors file that does not say which model it is for "
            f"(no {METADATA_KEY!r} in its metadata).",
            "Write it with `segcore train` or segcore.models.checkpoints.save_safetensors.",
        )
    try:
        meta = CheckpointMeta.model_validate_json(document)
    except ValidationError as error:
        first = error.errors()[0]
        field_name = ".".join(map(str, first["loc"])) or METADATA_KEY
        raise CheckpointError(
            f"{source} has invalid metadata: {printable(field_name)[:100]}: {first['msg']}."
        ) from None
    return CheckpointFile(tensors, source, hashlib.sha256(data).hexdigest(), meta)


def _dict_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("its header has a key twice")
    return document


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"its header has the number {constant}")


def _parse_pickle(data: bytes, source: str, marks: Sequence[Mark]) -> CheckpointFile:
    """The first model in the file that has a mark; if none has, the first that has tensors."""
    sha256 = hashlib.sha256(data).hexdigest()
    first: CheckpointFile | None = None
    try:
        file = PickledFile(data)
        for place, model in find_candidates(file.root):
            records = file.tensor_records(model)
            names = unwrap_names(records, marks)
            if not records or (names is None and first is not None):
                continue
            found = CheckpointFile(
                {k: file.tensor(records[name]) for k, name in (names or {}).items()},
                source,
                sha256,
                pickled_dict=file.root if isinstance(file.root, dict) else {},
                pickled_module=model if isinstance(model, Stub) else None,
                place=place,
                names_in_file=names or {},
            )
            if names is not None:
                return found
            first = replace(found, tensors={k: file.tensor(v) for k, v in records.items()})
    except (PickleRefused, AmbiguousModel) as refused:
        raise CheckpointError(f"{source} is not a usable checkpoint: {refused}.") from None
    if first is None:
        raise CheckpointError(
            f"{source} holds no model: it is {_describe_root(file.root)}, without any tensor that "
            "could be weights.",
            "Expected an official checkpoint of a supported model, or a state dict.",
        )
    return first


def _describe_root(root: Any) -> str:
    """An object for people: what it is, and its first keys."""
    if isinstance(root, dict):
        keys = [printable(str(key))[:50] for key in list(root)[:5]]
        more = ", ..." if len(root) > len(keys) else ""
        return f"a dict with the keys {', '.join(keys)}{more}" if keys else "an empty dict"
    if isinstance(root, Stub):
        return f"an object of {printable(root.stub_name)[:100] or 'an unknown class'}"
    return f"an object of {type(root).__name__}"
