"""Reads tensors from pickled checkpoints (`torch.save`, zip and legacy) without running their code.

A pickle is a program: it names functions and has them called. Here it is run by a machine that
calls nothing (`segcore.models.pickle_machine`). The result is a tree of inert objects with the
attributes that were stored, and records of where the tensors lie. Work and memory are linear in the
bytes of the file.
"""

from __future__ import annotations

import io
import math
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from segcore.models.pickle_machine import (
    MAX_PICKLE_BYTES,
    Global,
    PickleMachine,
    PickleRefused,
    StorageRecord,
    Stub,
    TensorRecord,
    WorkBudget,
    storage_key,
)
from segcore.models.torch_zip import TorchZip

__all__ = ["Global", "PickleRefused", "PickledFile", "StorageRecord", "Stub", "TensorRecord"]

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first object of a file of torch < 1.6
_MAX_MODULE_DEPTH = 64  # nested modules
_MAX_TENSORS = 100_000
_MAX_NAME_CHARS = 1000
_MAX_ELEMENTS = 1 << 48  # of a tensor; where one side is 0, of the others
_MAX_BYTEORDER_BYTES = 16
_STEPS_PER_MODULE = 20  # what visiting one costs, in steps of the pickle machine


class PickledFile:
    """The object tree (`root`) of a file written by `torch.save`, and its tensors.

    Args:
        data: The whole file.

    Raises:
        PickleRefused: The file cannot be read, or is refused.
    """

    def __init__(self, data: bytes) -> None:
        self._storages: dict[str, torch.Tensor] = {}  # read so far, one-dimensional, by key
        self._read_storage: Callable[[StorageRecord], memoryview]
        self._budget = WorkBudget()
        try:
            if sys.byteorder != "little":
                raise PickleRefused("pickled checkpoints are only read on little-endian machines")
            self.root = self._open_zip(data) if data[:2] == b"PK" else self._open_legacy(data)
        except PickleRefused:
            raise
        # Hostile or damaged bytes can raise nearly anything while they are unpickled.
        except Exception as error:
            raise PickleRefused(f"it is damaged ({type(error).__name__})") from error

    def tensor(self, record: TensorRecord) -> torch.Tensor:
        """The tensor of a record; tensors of one storage share memory.

        Raises:
            PickleRefused: The storage is missing or too short, or the view leaves it.
        """
        elements = self._elements(record.storage)
        numel = math.prod(record.size)
        last = record.offset + sum(
            (n - 1) * step for n, step in zip(record.size, record.stride, strict=True)
        )
        # The number of elements is checked, too: a step of 0 would make a large tensor of a small
        # file.
        if (
            elements.dtype != record.storage.dtype
            or numel > len(elements)
            or (numel and last >= len(elements))
            or math.prod(max(1, n) for n in record.size) > _MAX_ELEMENTS
        ):
            raise PickleRefused("it is damaged: a tensor reaches outside of its data")
        if not numel:
            return elements.new_empty(record.size)
        return elements.as_strided(record.size, record.stride, record.offset)

    def tensor_records(self, model: Stub | dict[Any, Any]) -> dict[str, TensorRecord]:
        """Names and tensors of a pickled module with all its submodules, or of a state dict.

        Raises:
            PickleRefused: There are more modules or tensors than any known model has.
        """
        if isinstance(model, dict):
            self._budget.spend(len(model))
        named = _tensors_of(model) if isinstance(model, dict) else self._visit(model, "", 0)
        records: dict[str, TensorRecord] = {}
        for name, record in named:
            records[name] = record
            if len(records) > _MAX_TENSORS or len(name) > _MAX_NAME_CHARS:
                raise PickleRefused("it has more tensors than any known model")
        return records

    def _visit(self, module: Stub, prefix: str, depth: int) -> Iterator[tuple[str, TensorRecord]]:
        """Tensors of a module with their names; modules that are in several places are repeated."""
        self._budget.spend(_STEPS_PER_MODULE)
        if depth > _MAX_MODULE_DEPTH or len(prefix) > _MAX_NAME_CHARS:
            raise PickleRefused("its modules are nested too deeply")
        for group in ("_parameters", "_buffers"):
            tensors = _stored_dict(module, group)
            self._budget.spend(len(tensors))
            for name, value in tensors.items():
                if isinstance(value, TensorRecord):
                    yield f"{prefix}{name}", value
        self._budget.spend(len(_stored_dict(module, "_modules")))
        for name, child in child_modules(module).items():
            yield from self._visit(child, f"{prefix}{name}.", depth + 1)

    def _elements(self, storage: StorageRecord) -> torch.Tensor:
        """All elements of a storage, one-dimensional; read once."""
        if storage.key not in self._storages:
            data = self._read_storage(storage)
            if len(data) < storage.count * storage.dtype.itemsize:
                raise PickleRefused("it is truncated: a tensor has less data than it should")
            elements = torch.empty(0, dtype=storage.dtype)
            if storage.count:
                elements = torch.frombuffer(
                    bytearray(data), dtype=storage.dtype, count=storage.count
                )
            self._storages[storage.key] = elements
        return self._storages[storage.key]

    def _unpickle(self, stream: io.BytesIO, storages: dict[str, StorageRecord]) -> Any:
        return PickleMachine(storages, self._budget).run(stream)

    def _open_zip(self, data: bytes) -> Any:
        archive = TorchZip(data)
        roots = [n for n in archive.names if n.endswith("/data.pkl") and n.count("/") == 1]
        if len(roots) != 1:
            raise PickleRefused("it is a zip file, but not one that torch.save writes")
        folder = roots[0].removesuffix("data.pkl")
        if folder + "constants.pkl" in archive:
            raise PickleRefused(
                "it is a TorchScript archive, which is a program and not a set of weights"
            )
        archive.check()
        if folder + "byteorder" in archive:
            byteorder = archive.read(folder + "byteorder")
            if bytes(byteorder[:_MAX_BYTEORDER_BYTES]) != b"little":
                raise PickleRefused("it was written on a big-endian machine")
        program = archive.read(roots[0])
        if len(program) > MAX_PICKLE_BYTES:
            raise PickleRefused("its object tree is over 64 MiB")
        self._read_storage = lambda storage: archive.read(f"{folder}data/{storage.key}")
        return self._unpickle(io.BytesIO(program), {})

    def _open_legacy(self, data: bytes) -> Any:
        stream = io.BytesIO(data)
        try:
            magic = self._unpickle(stream, {})
        except Exception:
            magic = None
        if magic != _LEGACY_MAGIC:
            raise PickleRefused("torch.save did not write it")
        self._unpickle(stream, {})  # protocol version
        system = self._unpickle(stream, {})
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise PickleRefused("it was written on a big-endian machine")
        storages: dict[str, StorageRecord] = {}
        root = self._unpickle(stream, storages)
        keys = self._unpickle(stream, {})
        if not isinstance(keys, list) or not all(storage_key(key) in storages for key in keys):
            raise PickleRefused("it is damaged: its list of tensors is inconsistent")
        slices: dict[str, slice] = {}
        position = stream.tell()
        for key in map(storage_key, keys):
            storage = storages[key]
            if len(data) < position + 8:
                raise PickleRefused("it is truncated")
            (count,) = struct.unpack_from("<q", data, position)
            if count != storage.count:
                raise PickleRefused(
                    "it is damaged: a tensor does not have the length that is stated"
                )
            end = position + 8 + count * storage.dtype.itemsize
            slices[key] = slice(position + 8, end)
            position = end

        def read(storage: StorageRecord) -> memoryview:
            if storage.key not in slices:
                raise PickleRefused("it is damaged: a tensor cannot be read")
            return memoryview(data)[slices[storage.key]]

        self._read_storage = read
        return root


def _tensors_of(state_dict: dict[Any, Any]) -> Iterator[tuple[str, TensorRecord]]:
    return ((str(k), v) for k, v in state_dict.items() if isinstance(v, TensorRecord))


def child_modules(module: Stub) -> dict[str, Stub]:
    """The submodules of a pickled `torch.nn.Module`, by name."""
    children = _stored_dict(module, "_modules")
    return {str(name): child for name, child in children.items() if isinstance(child, Stub)}


def _stored_dict(module: Stub, attribute: str) -> dict[Any, Any]:
    value = module.attributes.get(attribute)
    return value if isinstance(value, dict) else {}
