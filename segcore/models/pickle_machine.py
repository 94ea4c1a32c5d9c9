"""A machine for the programs that pickles are, which builds inert objects and calls nothing.

Python's own unpickler trusts its input in more ways than by running what it names: keys are hashed
and compared, containers are copied, names are turned into text. With objects that share parts each
of these takes time that is exponential in the file's size. This machine knows the opcodes alone. A
step costs constant time and memory beside the bytes that it takes from the file, and the number of
steps is bounded.

What it builds: None, bool, int, float, str, bytes, list, tuple, dict; a `Global` for every class or
function that is named; a `Stub` for every object of a class and every result of a call; and records
of where tensors lie. Sets are stubs, too: they have no order, so nothing may depend on them.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch

MAX_PICKLE_BYTES = 64 << 20  # of an object tree; official checkpoints have under 1 MB
MAX_STEPS = 1_000_000  # for one file; the largest official checkpoint takes 130,000
_STEPS_PER_PAIR = 3  # what an item of an ordered dict costs
_MAX_DIMENSIONS = 16
_MAX_KEY_CHARS = 4096  # longer keys of dicts are left out
_MAX_KEY_NUMBER = 1 << 60  # larger ones would have equal hashes
_MAX_NATURAL = 1 << 48
_ORDERED_DICT = "collections.OrderedDict"
_SIZE = "torch.Size"
_TENSOR_FUNCTIONS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_PARAMETER_FUNCTIONS = (
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
)
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


@dataclass(frozen=True, eq=False)
class Global:
    """A class or a function that a pickle names; it is not imported."""

    name: str


@dataclass(eq=False)
class Stub:
    """An object whose class was not imported.

    Attributes:
        stub_name: Dotted name of the class or function that made it.
        attributes: What the pickle stores of it, by name.
    """

    stub_name: str = ""
    attributes: dict[Any, Any] = field(default_factory=dict)


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


class WorkBudget:
    """Counts the steps that one file takes, and ends those that never would."""

    def __init__(self, steps: int = MAX_STEPS) -> None:
        self._left = steps

    def spend(self, steps: int) -> None:
        """Take `steps` of what is left.

        Raises:
            PickleRefused: There is less.
        """
        self._left -= steps
        if self._left < 0:
            raise PickleRefused(f"reading it takes over {MAX_STEPS:,} steps; no known model does")


class PickleMachine:
    """Runs one pickle.

    Args:
        storages: Gets every storage that the pickle refers to, by key.
        budget: Of the file.
    """

    def __init__(self, storages: dict[str, StorageRecord], budget: WorkBudget) -> None:
        self._storages = storages
        self._budget = budget
        self._stack: list[Any] = []
        self._stacks_below: list[list[Any]] = []  # one for each mark
        self._memo: dict[int, Any] = {}

    def run(self, stream: BinaryIO) -> Any:
        """The object of the pickle at the stream's position; the stream is left behind its end.

        Raises:
            PickleRefused: It is refused. Damaged programs raise nearly anything else.
        """
        start = stream.tell()
        for opcode, argument, position in pickletools.genops(stream):
            size = (position or 0) - start
            if size > MAX_PICKLE_BYTES:
                raise PickleRefused("its object tree is over 64 MiB")
            self._budget.spend(1)
            name = opcode.name
            if name in _PUSHES_ARGUMENT:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in _HANDLERS:
                _HANDLERS[name](self, argument)
            elif "PUT" in name or name == "MEMOIZE":
                self._remember(len(self._memo) if argument is None else int(argument), size)
            elif name == "STOP":
                break
            elif name not in _IGNORED:
                raise PickleRefused(_REFUSALS.get(name, f"it uses the pickle opcode {name}"))
        return self._stack.pop()

    def _remember(self, index: int, size: int) -> None:
        if not 0 <= index <= size:
            raise PickleRefused("it is damaged: a memo index is out of range")
        self._memo[index] = self._stack[-1]

    def _recall(self, index: Any) -> None:
        self._stack.append(self._memo[int(index)])

    def _mark(self, _: Any) -> None:
        self._stacks_below.append(self._stack)
        self._stack = []

    def _pop_mark(self) -> list[Any]:
        """The values above the last mark."""
        values, self._stack = self._stack, self._stacks_below.pop()
        return values

    def _pop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _text(self, argument: str) -> None:
        """Text of Python 2, which is bytes there."""
        self._stack.append(argument.encode("latin-1").decode())

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _drop(self, values: list[Any]) -> None:
        values.clear()

    def _push_frozenset(self, _: Any) -> None:
        self._pop_mark()
        self._push(Stub("builtins.frozenset"))

    def _push_tuple(self, length: int) -> None:
        if len(self._stack) < length:
            raise IndexError
        self._stack[-length:] = [tuple(self._stack[-length:])]

    def _append(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Stub):
            raise PickleRefused("it is damaged: it appends to what is not a list")

    def _set_items(self, target: Any, values: list[Any]) -> None:
        """Keys and values in turn. Keys other than text and numbers are left out: none is used."""
        if isinstance(target, Stub):
            return  # the items of dict subclasses are not needed
        if not isinstance(target, dict) or len(values) % 2:
            raise PickleRefused("it is damaged: it sets items of what is not a dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            is_text = isinstance(key, str) and len(key) <= _MAX_KEY_CHARS
            if is_text or (isinstance(key, int) and -_MAX_KEY_NUMBER < key < _MAX_KEY_NUMBER):
                target[key] = value

    def _set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items(self._stack[-1], [key, value])

    def _set_marked_items(self, _: Any) -> None:
        values = self._pop_mark()
        self._set_items(self._stack[-1], values)

    def _push_dict(self, _: Any) -> None:
        items: dict[Any, Any] = {}
        self._set_items(items, self._pop_mark())
        self._stack.append(items)

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(Global(f"{module}.{name}"))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleRefused("it is damaged: the name of a class is not text")
        self._budget.spend((len(name) + len(module)) // 100)  # both may be shared
        self._stack.append(Global(f"{module}.{name}"))

    def _reduce(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._call(function, arguments))

    def _new_object_with_keywords(self, _: Any) -> None:
        self._stack.pop()
        self._reduce(None)

    def _object(self, _: Any) -> None:
        values = self._pop_mark()
        self._stack.append(self._call(values[0], ()))

    def _instance(self, argument: str) -> None:
        self._pop_mark()
        self._stack.append(Stub(argument.replace(" ", ".", 1)))

    def _call(self, function: Any, arguments: Any) -> Any:
        """What takes the place of the result."""
        if not isinstance(arguments, tuple):
            raise PickleRefused("it is damaged: the arguments of a call are not a tuple")
        name = function.name if isinstance(function, Global) else ""
        if name in _TENSOR_FUNCTIONS:
            return _rebuild_tensor(*arguments)
        if name in _PARAMETER_FUNCTIONS:
            return arguments[0]
        if name == _SIZE and arguments and isinstance(arguments[0], list | tuple):
            return arguments[0]
        if name == _ORDERED_DICT:
            return self._ordered_dict(arguments[0] if arguments else ())
        return Stub(name)

    def _ordered_dict(self, pairs: Any) -> dict[Any, Any]:
        self._budget.spend(_STEPS_PER_PAIR * len(pairs))
        items: dict[Any, Any] = {}
        for key, value in pairs.items() if isinstance(pairs, dict) else pairs:
            self._set_items(items, [key, value])
        return items

    def _build(self, _: Any) -> None:
        """Stores the attributes of an object."""
        state, target = self._stack.pop(), self._stack[-1]
        if not isinstance(target, Stub):
            return
        for attributes in state if isinstance(state, tuple) and len(state) == 2 else (state,):
            if isinstance(attributes, dict) and target.attributes:
                self._budget.spend(len(attributes) + len(target.attributes))
                target.attributes = {**target.attributes, **attributes}
            elif isinstance(attributes, dict):
                target.attributes = attributes

    def _persistent(self, _: Any) -> None:
        """A storage; or, in legacy files, the class of a module with its source code."""
        pid = self._stack.pop()
        if not isinstance(pid, tuple):
            raise PickleRefused("it is damaged: a reference to a tensor is invalid")
        if pid[0] == "module":
            self._stack.append(pid[1])
            return
        kind, storage_type, key, _location, count = pid[:5]
        name = storage_type.name if isinstance(storage_type, Global) else ""
        dtype = _STORAGE_DTYPES.get(name)
        view = pid[5] if len(pid) > 5 else None
        if kind != "storage" or dtype is None or view is not None:
            raise PickleRefused("it holds tensors of a kind that is not supported")
        storage = StorageRecord(storage_key(key), dtype, _natural_number(count))
        if self._storages.setdefault(storage.key, storage) != storage:
            raise PickleRefused("it is damaged: one storage is described in two ways")
        self._stack.append(storage)


def storage_key(key: Any) -> str:
    """The key of a storage as text.

    Raises:
        PickleRefused: It is not a short text or a number.
    """
    if isinstance(key, int) and -_MAX_KEY_NUMBER < key < _MAX_KEY_NUMBER:
        return str(key)
    if not isinstance(key, str) or len(key) > 1000:
        raise PickleRefused("it is damaged: a tensor has an impossible key")
    return key


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
    if not isinstance(value, int) or not 0 <= value < _MAX_NATURAL:
        raise PickleRefused("it is damaged: a tensor has an impossible shape")
    return value


_PUSHES_ARGUMENT = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_IGNORED = ("PROTO", "FRAME")
_REFUSALS = dict.fromkeys(("EXT1", "EXT2", "EXT4"), "it uses the extension registry of pickle")
_HANDLERS: dict[str, Callable[[PickleMachine, Any], None]] = {
    "BINSTRING": PickleMachine._text,
    "SHORT_BINSTRING": PickleMachine._text,
    "MARK": PickleMachine._mark,
    "POP": PickleMachine._pop,
    "POP_MARK": lambda machine, _: machine._drop(machine._pop_mark()),
    "DUP": lambda machine, _: machine._push(machine._stack[-1]),
    "GET": PickleMachine._recall,
    "BINGET": PickleMachine._recall,
    "LONG_BINGET": PickleMachine._recall,
    "EMPTY_LIST": lambda machine, _: machine._push([]),
    "EMPTY_DICT": lambda machine, _: machine._push({}),
    "EMPTY_SET": lambda machine, _: machine._push(Stub("builtins.set")),
    "LIST": lambda machine, _: machine._push(machine._pop_mark()),
    "TUPLE": lambda machine, _: machine._push(tuple(machine._pop_mark())),
    "TUPLE1": lambda machine, _: machine._push_tuple(1),
    "TUPLE2": lambda machine, _: machine._push_tuple(2),
    "TUPLE3": lambda machine, _: machine._push_tuple(3),
    "DICT": PickleMachine._push_dict,
    "FROZENSET": PickleMachine._push_frozenset,
    "APPEND": lambda machine, _: machine._append([machine._stack.pop()]),
    "APPENDS": lambda machine, _: machine._append(machine._pop_mark()),
    "ADDITEMS": lambda machine, _: machine._append(machine._pop_mark()),
    "SETITEM": PickleMachine._set_item,
    "SETITEMS": PickleMachine._set_marked_items,
    "GLOBAL": PickleMachine._global,
    "STACK_GLOBAL": PickleMachine._stack_global,
    "INST": PickleMachine._instance,
    "OBJ": PickleMachine._object,
    "NEWOBJ": PickleMachine._reduce,
    "NEWOBJ_EX": PickleMachine._new_object_with_keywords,
    "REDUCE": PickleMachine._reduce,
    "BUILD": PickleMachine._build,
    "BINPERSID": PickleMachine._persistent,
}
