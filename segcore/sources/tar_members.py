"""The members of a tar: of one archive, of archives joined end to end, of archives inside it.

Headers are parsed by the standard library; nothing is ever extracted to disk. The library stops
silently at a damaged header and at the first end mark, so what follows is looked at here: another
archive (tars joined with `cat`) is read, other bytes are counted, damage becomes a failed row.
"""

from __future__ import annotations

import struct
import tarfile
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, cast

from segcore.errors import ErrorCode

# Stored with each part. 1 read a tar up to its first end mark, and no archives inside it; where a
# change of the reader finds more in a shard, raise it: `segcore verify --input` compares.
READER_VERSION = 2
_BLOCK_BYTES = 512
_MAX_HEADER_BYTES = 1 << 20  # of a long name or pax record; more is an attack or damage
_SCAN_BYTES = 1 << 20
_MAX_DEPTH = 3  # of archives inside archives
_TARFILE_ERRORS = (
    tarfile.TarError,
    ValueError,
    OverflowError,
    RecursionError,
    IndexError,
    KeyError,
    struct.error,
)
_COMPRESSED_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


class DamagedArchive(Exception):
    """The archive cannot be read beyond `position`."""

    def __init__(self, code: ErrorCode, position: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.position, self.reason = code, position, reason


@dataclass(frozen=True)
class TarMember:
    """One member that is not a folder, or one place where an inner archive cannot be read.

    Attributes:
        name: As stored, without a leading "./"; inside an inner archive `inner.tar/name`.
        header_offset: Where its headers begin, extended ones included.
        data_offset: Where its content begins.
        size: Bytes of its content.
        unreadable_reason: Why it must not be read; "" if it may.
        damage: Set for a place where an inner archive cannot be read: the code of the failed row.
        enclosing: The inner archives that it lies in, outermost first.
    """

    name: str
    header_offset: int
    data_offset: int
    size: int
    unreadable_reason: str
    damage: ErrorCode | None = None
    enclosing: tuple[InnerTar, ...] = ()


@dataclass(frozen=True)
class InnerTar:
    """A member that is itself a tar: its full name, and where its content ends in the shard."""

    name: str
    end: int


def iter_tar_members(
    file: BinaryIO,
    start: int,
    stop: int,
    size: int,
    notes: Counter[str],
    enclosing: Sequence[InnerTar] = (),
) -> Iterator[TarMember]:
    """Members whose header begins in [start, stop), except folders.

    Args:
        file: The shard.
        start: Where the headers of a member begin.
        stop: Where to stop; `size` means: read everything up to the end.
        size: Bytes of the shard.
        notes: Counts "bytes_behind_end_mark" that no archive explains, and "inner_archives".
        enclosing: The inner archives in which `start` lies, outermost first.

    Raises:
        DamagedArchive: The shard cannot be read any further.
    """
    walk = _TarWalk(file, size if stop >= size else stop, size, notes)
    yield from walk.resume(start, tuple(enclosing))


class _TarWalk:
    """One pass over a shard; positions are those in the shard, inside inner archives, too."""

    def __init__(self, file: BinaryIO, stop: int, size: int, notes: Counter[str]) -> None:
        self._file, self._stop, self._size, self._notes = file, stop, size, notes

    def resume(self, start: int, enclosing: tuple[InnerTar, ...]) -> Iterator[TarMember]:
        """Members from `start` on: first of the innermost archive, then of those around it."""
        for depth in range(len(enclosing), 0, -1):
            yield from self._iter_inner(start, enclosing[:depth])
            start = _round_up(enclosing[depth - 1].end)
        yield from self._iter_joined(start, self._size, ())

    def _is_past(self, position: int) -> bool:
        return position >= self._stop and self._stop < self._size

    def _iter_inner(self, start: int, enclosing: tuple[InnerTar, ...]) -> Iterator[TarMember]:
        """Members of an inner archive; where it is damaged, the archive around it still goes on."""
        inner = enclosing[-1]
        try:
            yield from self._iter_joined(start, inner.end, enclosing)
        except DamagedArchive as damage:
            position = min(damage.position, _last_position(inner.end, enclosing))
            reason = f"{inner.name}: {damage.reason}"
            yield TarMember(inner.name, position, position, 0, reason, damage.code, enclosing)

    def _iter_joined(
        self, start: int, end: int, enclosing: tuple[InnerTar, ...]
    ) -> Iterator[TarMember]:
        """Members of the archives that lie one behind the other in [start, end).

        A missing end mark is found before `end`: there the next unit may begin.
        """
        last = _last_position(end, enclosing)
        next_start: int | None = start
        while next_start is not None and not self._is_past(min(next_start, last)):
            position = yield from self._iter_archive(next_start, end, enclosing)
            if self._is_past(min(position, last)):
                return
            next_start = self._find_next_archive(position, end)

    def _iter_archive(
        self, start: int, end: int, enclosing: tuple[InnerTar, ...]
    ) -> Generator[TarMember, None, int]:
        """Members of one archive; returns where it ends, or where `stop` was passed."""
        position = start
        file = self._file
        try:
            file.seek(start)
            reader = cast(BinaryIO, _BoundedReader(file, end))
            archive = tarfile.TarFile(fileobj=reader, mode="r", encoding="utf-8")
            while (info := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # free the headers
                next_position = archive.offset
                _check_header(info, archive, position, end)
                position = info.offset
                if not info.isdir():
                    yield from self._iter_member(info, enclosing)
                position = next_position
                if self._is_past(position):
                    return position
            return archive.offset
        except _TARFILE_ERRORS as error:
            is_truncated = file.tell() >= end  # the library read to the end and expected more
            raise self._damage_at(position, start, end, str(error), is_truncated) from error

    def _iter_member(
        self, info: tarfile.TarInfo, enclosing: tuple[InnerTar, ...]
    ) -> Iterator[TarMember]:
        """The member, or the members inside it if it is a tar itself."""
        folder = f"{enclosing[-1].name}/" if enclosing else ""
        name = folder + _clean_name(info.name)
        reason = _find_unreadable_reason(info)
        is_inner = name.lower().endswith(".tar") and not name.rpartition("/")[2].startswith(".")
        if reason or not is_inner:
            yield TarMember(name, info.offset, info.offset_data, info.size, reason, None, enclosing)
        elif len(enclosing) == _MAX_DEPTH:
            reason = f"{name}: archives inside archives are read {_MAX_DEPTH} levels deep"
            code = ErrorCode.UNSUPPORTED_FORMAT
            yield TarMember(name, info.offset, info.offset_data, 0, reason, code, enclosing)
        else:
            self._notes["inner_archives"] += 1
            inner = InnerTar(name, info.offset_data + info.size)
            yield from self._iter_inner(info.offset_data, (*enclosing, inner))

    def _find_next_archive(self, position: int, end: int) -> int | None:
        """Where another archive begins behind the end mark at `position`; None if there is none.

        Raises:
            DamagedArchive: There is no end mark, or what follows looks like a tar but is none.
        """
        self._file.seek(min(position, end))
        block = self._file.read(min(_BLOCK_BYTES, max(end - position, 0)))
        if len(block) < _BLOCK_BYTES or any(block):
            is_truncated = len(block) < _BLOCK_BYTES
            raise self._damage_at(position, position, end, "invalid header", is_truncated)
        following = self._skip_zeros(position + _BLOCK_BYTES, end)
        if following is None or self._is_past(following):
            return following
        self._file.seek(following)
        if _is_header(self._file.read(min(_BLOCK_BYTES, end - following))):
            return following
        n_bytes = end - following
        if self._looks_like_tar(following, end):
            raise DamagedArchive(
                ErrorCode.SHARD_CORRUPT,
                following,
                f"{n_bytes:,} bytes follow the end mark, and the tar among them cannot be read",
            )
        self._notes["bytes_behind_end_mark"] += n_bytes
        return None

    def _skip_zeros(self, position: int, end: int) -> int | None:
        """The first block from `position` on that is not all zeros; None if there is none."""
        self._file.seek(position)
        while position < end:
            chunk = self._file.read(min(_SCAN_BYTES, end - position))
            if not chunk:
                return None
            n_zeros = len(chunk) - len(chunk.lstrip(b"\0"))
            if n_zeros < len(chunk):
                return position + n_zeros // _BLOCK_BYTES * _BLOCK_BYTES
            position += len(chunk)
        return None

    def _looks_like_tar(self, position: int, end: int) -> bool:
        """Whether the magic of a tar occurs in [position, end), at any byte."""
        self._file.seek(position)
        tail = b""
        while position < end and (chunk := self._file.read(min(_SCAN_BYTES, end - position))):
            if b"ustar" in tail + chunk:
                return True
            tail, position = chunk[-4:], position + len(chunk)
        return False

    def _damage_at(
        self, position: int, start: int, end: int, reason: str, is_truncated: bool
    ) -> DamagedArchive:
        if end == 0:
            return DamagedArchive(ErrorCode.SHARD_TRUNCATED, 0, "the archive is empty (0 bytes)")
        self._file.seek(min(start, end))
        magic = self._file.read(6)
        for prefix, format_name in _COMPRESSED_MAGIC.items():
            if position == start and magic.startswith(prefix):
                return DamagedArchive(
                    ErrorCode.SHARD_CORRUPT,
                    position,
                    f"it is compressed ({format_name}); segcore reads uncompressed tars",
                )
        if is_truncated:
            return DamagedArchive(
                ErrorCode.SHARD_TRUNCATED,
                position,
                f"the archive ends at byte {end:,} without its end mark",
            )
        return DamagedArchive(
            ErrorCode.SHARD_CORRUPT, position, f"cannot be read past byte {position:,} ({reason})"
        )


def _last_position(end: int, enclosing: Sequence[InnerTar]) -> int:
    """Where damage at the end of an archive is: archives inside each other may end together, and
    damage of each is a row that is named by its position."""
    return end - max(len(enclosing), 1)


def _check_header(info: tarfile.TarInfo, archive: tarfile.TarFile, position: int, end: int) -> None:
    """Raise `DamagedArchive` if the sizes in the header cannot be true."""
    if info.size < 0 or archive.offset <= position:
        raise DamagedArchive(
            ErrorCode.SHARD_CORRUPT, position, f"invalid size in the header at {position}"
        )
    stored_bytes = info.size if info.isreg() and not info.issparse() else 0
    if info.offset_data + stored_bytes > end:
        raise DamagedArchive(
            ErrorCode.SHARD_TRUNCATED,
            info.offset,
            f"the archive ends inside the member {_clean_name(info.name)!r}",
        )
    if {"path", "size"} & archive.pax_headers.keys():
        raise DamagedArchive(
            ErrorCode.SHARD_CORRUPT,
            info.offset,
            "a global header gives all members the same name or size",
        )


def _find_unreadable_reason(info: tarfile.TarInfo) -> str:
    """Why the member must not be read; "" if it may."""
    if info.issym() or info.islnk():
        return "links inside an archive are not followed"
    if not info.isreg():
        return "not a plain file"
    if info.issparse():
        return "sparse members are not supported"
    # An absolute name is fine: nothing is extracted, so it is only a name.
    if ".." in info.name.split("/"):
        return "names with '..' are not allowed inside an archive"
    return ""


def _clean_name(name: str) -> str:
    """The name without a leading "./", as valid UTF-8."""
    while name.startswith("./"):
        name = name[2:]
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _is_header(block: bytes) -> bool:
    """Whether the block is a header with a right checksum."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError, struct.error):
        return False
    return True


def _round_up(position: int) -> int:
    return -(-position // _BLOCK_BYTES) * _BLOCK_BYTES


class _BoundedReader:
    """What tarfile reads: nothing behind `end`, and not the huge amounts that bad headers claim."""

    def __init__(self, file: BinaryIO, end: int) -> None:
        self._file, self._end = file, end
        self.name = ""
        self.tell, self.seek = file.tell, file.seek

    def read(self, length: int = -1) -> bytes:
        if not 0 <= length <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {length:,} bytes")
        return self._file.read(max(0, min(length, self._end - self._file.tell())))
