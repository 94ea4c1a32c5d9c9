"""The zip files that `torch.save` writes, read within bounds.

torch stores its members as they are, one after another. So nothing is decompressed here, and a
file that claims compressed, encrypted or overlapping members is refused: what is read is never
more than the file. (`zipfile` of the standard library takes memory for whatever a directory claims,
and raises a dozen kinds of exceptions on damaged files.)
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from segcore.models.pickle_machine import PickleRefused
from segcore.text import printable

MAX_MEMBERS = 200_000  # one for each tensor, and a few more
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX_COMMENT_BYTES = 1 << 16
_ENCRYPTED = 0x1 | 0x40  # flags
_STORED = 0  # method
_ZIP_64 = 1  # id of the extra field
_NOT_HERE = 0xFFFFFFFF  # the number is in the zip64 field
_DAMAGED = "it is a truncated or damaged zip file"


@dataclass(frozen=True)
class _Member:
    """Where a member lies: its header, and its bytes; `refusal` says why it may not be read."""

    header: int
    start: int
    end: int
    crc: int
    refusal: str = ""


class TorchZip:
    """The members of a zip file, by name.

    Args:
        data: The whole file.

    Raises:
        PickleRefused: It is damaged.
    """

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        try:
            self._members = self._read_directory()
        except struct.error:
            raise PickleRefused(_DAMAGED) from None

    def check(self) -> None:
        """Whether the members are as torch writes them.

        Raises:
            PickleRefused: One is compressed, encrypted or incomplete, or two overlap.
        """
        end = 0
        for member in sorted(self._members.values(), key=lambda member: member.header):
            if member.refusal:
                raise PickleRefused(member.refusal)
            if member.header < end:
                raise PickleRefused("it is a damaged zip file: its members overlap")
            end = member.end

    def __contains__(self, name: str) -> bool:
        return name in self._members

    @property
    def names(self) -> list[str]:
        """The names of all members, in the order of the directory."""
        return list(self._members)

    def read(self, name: str) -> memoryview:
        """The bytes of a member, which are not copied.

        Raises:
            PickleRefused: There is no such member, or its bytes do not fit their checksum.
        """
        member = self._members.get(name)
        if member is None:
            raise PickleRefused(f"it is damaged: it has no {printable(name)[-100:]}")
        data = self._data[member.start : member.end]
        # 0 is what torch writes instead of checksums where a user has turned them off.
        if member.crc and zlib.crc32(data) != member.crc:
            raise PickleRefused(f"it is damaged: {printable(name)[-100:]} fails its checksum")
        return data

    def _read_directory(self) -> dict[str, _Member]:
        count, size, position = self._find_directory()
        end = position + size
        if end > len(self._data):
            raise PickleRefused(_DAMAGED)
        if count > MAX_MEMBERS or size < count * _ENTRY.size:
            raise PickleRefused("it is a zip file with an impossible number of members")
        members: dict[str, _Member] = {}
        for _ in range(count):
            if position + _ENTRY.size > end:
                raise PickleRefused(_DAMAGED)
            name, member, position = self._read_entry(position)
            if name in members:
                raise PickleRefused(f"it is a damaged zip file: it has two members {name!r:.100}")
            members[name] = member
        return members

    def _find_directory(self) -> tuple[int, int, int]:
        """Number of members; size and position of the directory, in bytes."""
        tail_start = max(0, len(self._data) - _END.size - _MAX_COMMENT_BYTES)
        found = bytes(self._data[tail_start:]).rfind(b"PK\5\6")
        if found < 0:
            raise PickleRefused(_DAMAGED)
        position = tail_start + found
        _, _, _, _, count, size, start, _ = _END.unpack_from(self._data, position)
        locator = position - _LOCATOR_64.size
        if locator >= 0 and self._data[locator : locator + 4] == b"PK\6\7":
            _, _, position, _ = _LOCATOR_64.unpack_from(self._data, locator)
            if position + _END_64.size > locator:
                raise PickleRefused(_DAMAGED)
            signature, *_, count, size, start = _END_64.unpack_from(self._data, position)
            if signature != b"PK\6\6":
                raise PickleRefused(_DAMAGED)
        return count, size, start

    def _read_entry(self, position: int) -> tuple[str, _Member, int]:
        """One entry of the directory: name, member, and where the next entry begins."""
        fields = _ENTRY.unpack_from(self._data, position)
        signature, _, _, flags, method, _, _, crc, stored, size = fields[:10]
        name_length, extra_length, comment_length, header = *fields[10:13], fields[16]
        position += _ENTRY.size
        raw_name = bytes(self._data[position : position + name_length])
        extra = bytes(self._data[position + name_length : position + name_length + extra_length])
        try:
            name = raw_name.decode()
        except UnicodeDecodeError:
            raise PickleRefused("it is a damaged zip file: a name in it is not text") from None
        if signature != b"PK\1\2":
            raise PickleRefused(_DAMAGED)
        size, stored, header = _with_zip_64(extra, size, stored, header)
        start = self._start_of(header, raw_name)
        refusal = ""
        if flags & _ENCRYPTED:
            refusal = f"its member {name!r:.100} is encrypted"
        elif method != _STORED:
            refusal = f"its member {name!r:.100} is compressed, which torch.save never does"
        elif size != stored:
            refusal = f"it is damaged: its member {name!r:.100} claims two sizes"
        elif start + size > len(self._data):
            refusal = f"it is truncated: its member {name!r:.100} is incomplete"
        member = _Member(header, start, start + size, crc, refusal)
        return name, member, position + name_length + extra_length + comment_length

    def _start_of(self, header: int, name: bytes) -> int:
        """Where the bytes of the member with this local header begin."""
        if header + _LOCAL.size > len(self._data):
            raise PickleRefused(_DAMAGED)
        signature, *_, name_length, extra_length = _LOCAL.unpack_from(self._data, header)
        name_start = header + _LOCAL.size
        if signature != b"PK\3\4" or self._data[name_start : name_start + name_length] != name:
            raise PickleRefused(_DAMAGED)
        return int(name_start + name_length + extra_length)


def _with_zip_64(extra: bytes, *numbers: int) -> list[int]:
    """Size, stored size and offset, those that are too large for 32 bits from the extra field."""
    if _NOT_HERE not in numbers:
        return list(numbers)
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == _ZIP_64:
            field = extra[position + 4 : position + 4 + length]
            large = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
            return [next(large, n) if n == _NOT_HERE else n for n in numbers]
        position += 4 + length
    return list(numbers)
