"""Damaged checkpoints for tests: mutations of small good files, the same for the same number.

Formats: what `torch.save` writes (zip, legacy), safetensors, and the documents of a folder of
transformers. Mutations know nothing of the format (bits, cuts, splices, insertions), or where the
parts of a zip file, the opcodes of a pickle or the tokens of JSON are.
"""

from __future__ import annotations

import io
import json
import pickletools
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from random import Random
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from segcore.models.checkpoints import METADATA_KEY
from tests.support.checkpoint_files import torch_file

FORMATS = ("zip", "legacy", "safetensors", "pickle in zip", "json header")
_EDGES = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1)


class Block(nn.Module):
    """A module with parameters, buffers and a child, as pickled checkpoints hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.bn = nn.BatchNorm2d(2)
        self.names = {0: "cell", 1: "dust"}


def _weights() -> dict[str, Tensor]:
    names = ("model.0.conv.weight", "model.23.proto.cv3.conv.weight", "model.23.cv3.0.2.bias")
    return OrderedDict((name, torch.arange(6.0).reshape(2, 3)) for name in names)


def _roots() -> list[Any]:
    torch.manual_seed(0)
    detector = OrderedDict({"backbone.body.conv1.weight": torch.ones(2, 2), "rpn.a": torch.ones(1)})
    return [
        {"model": _weights(), "names": {0: "a", 1: "b"}, "epoch": 3, "args": ["x", 1.5, None]},
        {"ema": Block(), "train_args": {"imgsz": 64}, "license": "MIT"},
        detector,
        {"state_dict": {f"module.{k}": v.half() for k, v in _weights().items()}},
    ]


def _safetensors_files() -> list[bytes]:
    meta = {"architecture": "yolo11n-seg", "categories": [{"id": 1, "name": "a"}], "imgsz": 64}
    return [
        safetensors.torch.save(_weights(), {METADATA_KEY: json.dumps(meta)}),
        safetensors.torch.save({"a": torch.ones(3).bfloat16(), "b": torch.ones(2).bool()}),
    ]


class Mutants:
    """Makes mutants from good files."""

    def __init__(self) -> None:
        zips = [torch_file(root) for root in _roots()]
        legacy = [torch_file(root, legacy=True) for root in _roots()[:1] + _roots()[2:]]
        tensors = _safetensors_files()
        self._good = {
            "zip": zips,
            "pickle in zip": zips,
            "legacy": legacy,
            "safetensors": tensors,
            "json header": tensors,
        }
        self._special: dict[str, tuple[Callable[[bytes, Random], bytes], ...]] = {
            "zip": (_change_zip_field, _duplicate_entry, _rezip),
            "pickle in zip": (_mutate_pickle_of_zip,),
            "legacy": (_change_opcodes,),
            "safetensors": (_change_header_length,),
            "json header": (_mutate_header,),
        }

    def make(self, number: int) -> tuple[str, bytes]:
        """(format, file) of a mutant."""
        random = Random(number)
        kind = FORMATS[number % len(FORMATS)]
        data = random.choice(self._good[kind])
        for _ in range(random.choice((1, 1, 1, 2, 4))):
            if kind in ("pickle in zip", "json header") or random.random() < 0.4:
                mutate = random.choice(self._special[kind])
            else:
                mutate = random.choice(BLIND)
            try:
                data = mutate(data, random)
            except (struct.error, zipfile.BadZipFile, KeyError, IndexError, ValueError):
                continue  # too damaged for this mutation
            except (zlib.error, NotImplementedError, RuntimeError, OSError, EOFError):
                continue
        return kind, data


def flip_bits(data: bytes, random: Random) -> bytes:
    """One to eight bits."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 8)):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def cut(data: bytes, random: Random) -> bytes:
    """The end is missing, or a piece in the middle."""
    start = random.randrange(len(data))
    return data[:start] + (data[start + random.randint(1, 64) :] if random.random() < 0.5 else b"")


def insert(data: bytes, random: Random) -> bytes:
    """Bytes that were not there."""
    at = random.randrange(len(data) + 1)
    return data[:at] + random.randbytes(random.choice((1, 2, 4, 8, 200))) + data[at:]


def splice(data: bytes, random: Random) -> bytes:
    """A piece of the file in another place of it."""
    start, at = random.randrange(len(data)), random.randrange(len(data))
    piece = data[start : start + random.randint(1, 300)]
    return data[:at] + piece + data[at + random.choice((0, len(piece))) :]


def set_number(data: bytes, random: Random) -> bytes:
    """A number at the edge of its type."""
    size = random.choice((1, 2, 4, 8))
    at = random.randrange(max(1, len(data) - size))
    return (
        data[:at]
        + (random.choice(_EDGES) % (1 << 8 * size)).to_bytes(size, "little")
        + (data[at + size :])
    )


BLIND = (flip_bits, cut, insert, splice, set_number)


def _find_all(data: bytes, signature: bytes) -> list[int]:
    places, at = [], data.find(signature)
    while at >= 0:
        places.append(at)
        at = data.find(signature, at + 1)
    return places


def _change_zip_field(data: bytes, random: Random) -> bytes:
    """A field of a local header, of the directory or of its end."""
    signature, size = random.choice(
        ((b"PK\1\2", 46), (b"PK\3\4", 30), (b"PK\5\6", 22), (b"PK\6\6", 56), (b"PK\6\7", 20))
    )
    at = random.choice(_find_all(data, signature)) + random.randrange(4, size)
    width = random.choice((1, 2, 4))
    number = random.choice((*_EDGES, 8, 12, 14, len(data))) % (1 << 8 * width)
    return data[:at] + number.to_bytes(width, "little") + data[at + width :]


def _duplicate_entry(data: bytes, random: Random) -> bytes:
    """An entry of the directory once more: two names for the same bytes."""
    entries = _find_all(data, b"PK\1\2")
    at = random.choice(entries[:-1])
    entry = data[at : entries[entries.index(at) + 1]]
    end = data.rfind(b"PK\5\6")
    count, size = (
        struct.unpack_from("<H", data, end + 10)[0],
        struct.unpack_from("<L", data, end + 12)[0],
    )
    changed = bytearray(data)
    struct.pack_into("<HHL", changed, end + 8, count + 1, count + 1, size + len(entry))
    return bytes(changed[:at]) + entry + bytes(changed[at:])


def _members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zip_of(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return buffer.getvalue()


def _rezip(data: bytes, random: Random) -> bytes:
    """Written again with a member more, less, compressed or changed."""
    members = _members(data)
    name = random.choice(list(members))
    change = random.randrange(4)
    if change == 0:
        del members[name]
    elif change == 1:
        members[name] = random.choice(BLIND)(members[name] or b"x", random)
    elif change == 2:
        members[name.rpartition("/")[0] + "/" + random.choice(("byteorder", "constants.pkl"))] = (
            b"x"
        )
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
    return _zip_of(members, methods[0] if change < 3 else random.choice(methods))


def _mutate_pickle_of_zip(data: bytes, random: Random) -> bytes:
    members = _members(data)
    name = next(name for name in members if name.endswith("data.pkl"))
    change = random.choice((_change_opcodes, _change_opcodes, _grow, *BLIND))
    members[name] = change(members[name], random)
    return _zip_of(members)


def _opcodes(program: bytes) -> list[bytes]:
    """The program, opcode by opcode with its argument."""
    places = [position or 0 for _, _, position in pickletools.genops(program)]
    return [program[a:b] for a, b in zip(places, [*places[1:], len(program)], strict=True)]


def _change_opcodes(data: bytes, random: Random) -> bytes:
    """Opcodes removed, repeated, exchanged or replaced by others."""
    pieces = _opcodes(data)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(pieces))
        change = random.randrange(4)
        if change == 0:
            del pieces[at]
        elif change == 1:
            pieces[at:at] = [pieces[random.randrange(len(pieces))]] * random.choice((1, 2, 50))
        elif change == 2:
            other = random.randrange(len(pieces))
            pieces[at], pieces[other] = pieces[other], pieces[at]
        else:
            opcode = random.choice(pickletools.opcodes)
            pieces[at] = opcode.code.encode("latin-1") + random.randbytes(random.choice((0, 1, 4)))
    return b"".join(pieces)


def _grow(program: bytes, random: Random) -> bytes:
    """Programs whose cost is far above their size, if each object is looked at in each place."""
    n = random.choice((40, 1000, 20_000))
    double = b"\x86".join([b"2"] * min(n, 1000)) + b"\x86"  # a pair of the object below, twice
    choices = (
        b"]" + b"2\x86" * n + b"q\x00}h\x00Ns.",  # pairs of pairs as a key
        b"}" + double + b".",
        b"(" * n + b"t" * n + b".",
        b"]" * n + b"a" * (n - 1) + b".",
        b"c__builtin__\nset\n](" + b"K\x012\x86" * n + b"e\x85R.",
        b"X\x02\x00\x00\x00ab" + b"q\x00h\x00h\x00\x86" * n + b".",
        b"ccollections\nOrderedDict\nq\x00]q\x01("
        + b"K\x01K\x02\x86" * n
        + b"e0"
        + b"h\x00h\x01\x85R0" * n
        + b"N.",
        b"c__main__\nA\n)\x81q\x00}q\x01("
        + b"".join(b"X\x04\x00\x00\x00%04d" % (i % 10_000) + b"N" for i in range(n))
        + b"u0"
        + b"h\x00h\x01b0" * n
        + b"N.",
        b"(" + b"\x8b" + struct.pack("<l", n) + b"\xff" * n + b"1N.",
        b"I" + b"9" * n + b"\n.",
    )
    return random.choice(choices)


def _change_header_length(data: bytes, random: Random) -> bytes:
    (length,) = struct.unpack_from("<Q", data)
    length = random.choice((*_EDGES, length - 1, length + 1, len(data) - 8))
    return struct.pack("<Q", length % (1 << 64)) + data[8:]


def _mutate_header(data: bytes, random: Random) -> bytes:
    """The JSON of a safetensors file with other tokens; its length is right."""
    (length,) = struct.unpack_from("<Q", data)
    header = data[8 : 8 + length]
    change = random.randrange(5)
    if change == 0:
        header = random.choice(BLIND)(header, random)
    elif change == 1:
        header = b"{" + b'"a":{' * random.choice((10, 5000, 200_000)) + header
    elif change == 2:
        header = header.replace(b"{", b'{"a":[' + b"1," * random.choice((3, 100_000)) + b"1],", 1)
    else:
        old = random.choice((b"0", b"F32", b"[2,3]", b"24", b'"shape"', b"imgsz", b"1", b"}"))
        new = random.choice(
            (
                b"NaN",
                b"-1",
                b"1e999",
                b"F8_E8M0",
                b"F4",
                b"C64",
                b"null",
                b'"x"',
                b"[[]]",
                b"[0]",
                b"18446744073709551615",
                b"9" * 5000,
                b'"\\ud800"',
                b'"\\u0000"',
                b"{}",
                b"U64",
                b"",
            )
        )
        # A thousand are enough: a hundred thousand of the longest would be half a gigabyte.
        header = header.replace(old, new, random.choice((1, 1000)))
    return struct.pack("<Q", len(header)) + header + data[8 + length :]
