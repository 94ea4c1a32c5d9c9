"""Reads tensors from pickled checkpoints (`torch.save`, zip and legacy) without running their code.

A pickle is a program: it names functions and has them called. Here every name that it asks for
becomes an inert class made for this one file. The only exceptions are plain containers and torch's
functions that rebuild tensors, which are replaced by our own. Nothing is imported, so nothing can
run. The result is a tree of inert objects with the attributes that were stored, and records of
where the tensors lie.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first object of a file of torch < 1.6
_MAX_PICKLE_BYTES = 64 << 20  # of an object tree; official checkpoints have under 1 MB
_MAX_DIMENSIONS = 16
_MAX_MODULE_DEPTH = 64  # nested modules
_MAX_TENSORS = 100_000
_MAX_NAME_PREFIX = 1000  # characters
_CONTAINERS: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "torch.Size": tuple,
    "builtins.set": set,
    "__builtin__.set": set,
    "builtins.frozenset": frozenset,
    "__builtin__.frozenset": frozenset,
}
_STORAGE_DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}


class PickleRefused(Exception):
    """The file is not from `torch.save`, is damaged, or is of a kind that is not read.

    The message says which; its subject, "it", is the file.
    """


class Stub:
    """An object whose class was not imported; its stored attributes are in its `__dict__`.

    Attributes:
        stub_name: Dotted name of the class that the file asked for.
    """

    stub_name = ""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update({str(key): value for key, value in state.items()})

    def __setitem__(self, _key: Any, _value: Any) -> None:
        pass  # the items of dict subclasses are not needed

    def append(self, _value: Any) -> None:
        """Does nothing: the items of list subclasses are not needed."""


@dataclass(frozen=True)
class StorageRecord:
    """A storage that a pickle refers to: `count` elements under `key`."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class TensorRecord:
    """A strided view into a storage; `PickledFile.tensor` reads it."""

    storage: StorageRecord
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class PickledFile:
    """The object tree (`root`) of a file written by `torch.save`, and its tensors.

    Args:
        data: The whole file.

    Raises:
        PickleRefused: The file cannot be read, or is refused.
    """

    def __init__(self, data: bytes) -> None:
        self._storages: dict[str, torch.Tensor] = {}  # read so far, one-dimensional, by key
        self._read_storage: Callable[[StorageRecord], bytes]
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
        ):
            raise PickleRefused("it is damaged: a tensor reaches outside of its data")
        return elements.as_strided(record.size, record.stride, record.offset if numel else 0)

    def _elements(self, storage: StorageRecord) -> torch.Tensor:
        """All elements of a storage, one-dimensional; read once."""
        if storage.key not in self._storages:
            try:
                data = self._read_storage(storage)
            except (KeyError, zipfile.BadZipFile, EOFError, OSError, NotImplementedError):
                raise PickleRefused("it is damaged: a tensor cannot be read") from None
            if len(data) < storage.count * storage.dtype.itemsize:
                raise PickleRefused("it is truncated: a tensor has less data than it should")
            elements = torch.empty(0, dtype=storage.dtype)
            if storage.count:
                elements = torch.frombuffer(
                    bytearray(data), dtype=storage.dtype, count=storage.count
                )
            self._storages[storage.key] = elements
        return self._storages[storage.key]

    def _open_zip(self, data: bytes) -> Any:
        try:
            archive = zipfile.ZipFile(io.BytesIO(data))
        except zipfile.BadZipFile:
            raise PickleRefused("it is a truncated or damaged zip file") from None
        names = set(archive.namelist())
        roots = [n for n in names if n.endswith("/data.pkl") and n.count("/") == 1]
        if len(roots) != 1:
            raise PickleRefused("it is a zip file, but not one that torch.save writes")
        folder = roots[0].removesuffix("data.pkl")
        if folder + "constants.pkl" in names:
            raise PickleRefused(
                "it is a TorchScript archive, which is a program and not a set of weights"
            )
        if folder + "byteorder" in names and archive.read(folder + "byteorder") != b"little":
            raise PickleRefused("it was written on a big-endian machine")

        def read(name: str, limit: int) -> bytes:
            info = archive.getinfo(name)
            # torch.save does not compress: no member is larger than the file. So no zip bombs.
            if info.file_size > limit:
                raise PickleRefused("it is damaged: a member claims to be larger than the file")
            return archive.read(info)

        self._read_storage = lambda storage: read(f"{folder}data/{storage.key}", len(data))
        program = read(roots[0], min(len(data), _MAX_PICKLE_BYTES))
        return _Unpickler.load_from(io.BytesIO(program), {})

    def _open_legacy(self, data: bytes) -> Any:
        stream = io.BytesIO(data)
        try:
            magic = _Unpickler.load_from(stream, {})
        except Exception:
            magic = None
        if magic != _LEGACY_MAGIC:
            raise PickleRefused("torch.save did not write it")
        _Unpickler.load_from(stream, {})  # protocol version
        system = _Unpickler.load_from(stream, {})
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise PickleRefused("it was written on a big-endian machine")
        storages: dict[str, StorageRecord] = {}
        root = _Unpickler.load_from(stream, storages)
        keys = _Unpickler.load_from(stream, {})
        if not isinstance(keys, list) or not all(str(key) in storages for key in keys):
            raise PickleRefused("it is damaged: its list of tensors is inconsistent")
        slices: dict[str, slice] = {}
        position = stream.tell()
        for key in keys:
            storage = storages[str(key)]
            if len(data) < position + 8:
                raise PickleRefused("it is truncated")
            (count,) = struct.unpack_from("<q", data, position)
            if count != storage.count:
                raise PickleRefused(
                    "it is damaged: a tensor does not have the length that is stated"
                )
            end = position + 8 + count * storage.dtype.itemsize
            slices[str(key)] = slice(position + 8, end)
            position = end
        self._read_storage = lambda storage: data[slices[storage.key]]
        return root


def child_modules(module: Stub) -> dict[str, Stub]:
    """The submodules of a pickled `torch.nn.Module`, by name."""
    children = _stored_dict(module, "_modules")
    return {str(name): child for name, child in children.items() if isinstance(child, Stub)}


def tensor_records(model: Stub | dict[Any, Any]) -> dict[str, TensorRecord]:
    """Names and tensors of a pickled module with all its submodules, or of a state dict.

    Raises:
        PickleRefused: There are more modules or tensors than any known model has.
    """
    if isinstance(model, dict):
        return {str(k): v for k, v in model.items() if isinstance(v, TensorRecord)}
    records: dict[str, TensorRecord] = {}

    def visit(module: Stub, prefix: str, depth: int) -> None:
        if depth > _MAX_MODULE_DEPTH:
            raise PickleRefused("its modules are nested too deeply")
        for group in ("_parameters", "_buffers"):
            for name, value in _stored_dict(module, group).items():
                if isinstance(value, TensorRecord):
                    records[f"{prefix}{name}"] = value
        for name, child in child_modules(module).items():
            visit(child, f"{prefix}{name}.", depth + 1)
        if len(records) > _MAX_TENSORS or len(prefix) > _MAX_NAME_PREFIX:
            raise PickleRefused("it has more tensors than any known model")

    visit(model, "", 0)
    return records


def _stored_dict(module: Stub, attribute: str) -> dict[Any, Any]:
    value = vars(module).get(attribute)
    return value if isinstance(value, dict) else {}


class _Unpickler(pickle.Unpickler):
    """Unpickles one object and adds every storage that the object refers to to `storages`.

    The classes and functions that it hands out are made anew for each object, so that a file that
    sets attributes on them changes nothing that outlives it.
    """

    def __init__(self, stream: BinaryIO, storages: dict[str, StorageRecord]) -> None:
        super().__init__(stream, encoding="utf-8")
        self._storages = storages
        self._stubs: dict[str, type[Stub]] = {}
        self._rebuild = {
            "torch._utils._rebuild_tensor": lambda *args: _rebuild_tensor(*args),
            "torch._utils._rebuild_tensor_v2": lambda *args: _rebuild_tensor(*args),
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
        }

    @classmethod
    def load_from(cls, stream: BinaryIO, storages: dict[str, StorageRecord]) -> Any:
        """Checks the opcodes, unpickles one object and leaves the stream at the end of it."""
        start = stream.tell()
        for opcode, argument, position in pickletools.genops(stream):
            size = (position or 0) - start
            if size > _MAX_PICKLE_BYTES:
                raise PickleRefused("its object tree is over 64 MiB")
            # The C unpickler makes an array as long as the largest memo index.
            if "PUT" in opcode.name and int(argument or 0) > size:
                raise PickleRefused("it is damaged: a memo index is out of range")
            if opcode.name.startswith("EXT"):
                raise PickleRefused("it uses the extension registry of pickle")
        end = stream.tell()
        stream.seek(start)
        root = cls(stream, storages).load()
        stream.seek(end)
        return root

    def find_class(self, module: str, name: str) -> Any:
        dotted = f"{module}.{name}"
        if dotted in _CONTAINERS:
            return _CONTAINERS[dotted]
        if dotted in self._rebuild:
            return self._rebuild[dotted]
        if dotted not in self._stubs:
            base = type("Stub", (Stub,), {"stub_name": dotted})
            self._stubs[dotted] = base
        return self._stubs[dotted]

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # legacy files: the class of a module, with its source code
            return pid[1]
        kind, storage_type, key, _location, count = pid[:5]
        dtype = _STORAGE_DTYPES.get(getattr(storage_type, "stub_name", ""))
        view = pid[5] if len(pid) > 5 else None
        if kind != "storage" or dtype is None or view is not None:
            raise PickleRefused("it holds tensors of a kind that is not supported")
        storage = StorageRecord(str(key), dtype, _natural_number(count))
        if self._storages.setdefault(storage.key, storage) != storage:
            raise PickleRefused("it is damaged: one storage is described in two ways")
        return storage


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> TensorRecord:
    """Takes the place of torch's functions that rebuild tensors."""
    if (
        not isinstance(storage, StorageRecord)
        or len(size) != len(stride)
        or len(size) > _MAX_DIMENSIONS
    ):
        raise PickleRefused("it is damaged: the description of a tensor is invalid")
    return TensorRecord(
        storage,
        _natural_number(offset),
        tuple(map(_natural_number, size)),
        tuple(map(_natural_number, stride)),
    )


def _natural_number(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 48:
        raise PickleRefused("it is damaged: a tensor has an impossible shape")
    return value
