"""Tar shards (WebDataset layout): cutting large ones, and reading members in their order.

Headers are parsed by the standard library; nothing is ever extracted to disk. The library stops
silently at a damaged header, so the end of every archive is checked here: it must be a block of
zeros. Anything else becomes a failed row, never a silent loss.
"""

from __future__ import annotations

import struct
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import pyarrow as pa

from segcore.errors import ErrorCode, ImageError, StorageError
from segcore.sources.base import (
    Entries,
    Sample,
    Source,
    SourceOptions,
    UniqueImageIds,
    stat_unchanged_shard,
)
from segcore.sources.units import Member, Unit, UnitLimits, make_unit
from segcore.storage import Storage

_BLOCK_BYTES = 512
_MAX_HEADER_BYTES = 1 << 20  # of a long name or pax record; more is an attack or damage
_INDEX_BUFFER_BYTES = 1 << 20  # smaller members are read through, larger ones are skipped
_INDEX_THREADS = 8
_TARFILE_ERRORS = (
    tarfile.TarError,
    ValueError,
    OverflowError,
    RecursionError,
    IndexError,
    KeyError,
    struct.error,
)


class _DamagedArchive(Exception):
    """The archive cannot be read beyond `position`."""

    def __init__(self, code: ErrorCode, position: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.position, self.reason = code, position, reason


@dataclass(frozen=True)
class _TarMember:
    name: str  # as stored, without a leading "./"
    header_offset: int  # where its headers begin, extended ones included
    data_offset: int
    size: int  # bytes
    unsafe_reason: str  # "" if the member is safe


@dataclass(kw_only=True)
class TarSource(Source):
    """Tar shards; `shards` has their uri, size and etag."""

    shards: pa.Table = field(repr=False)
    storage: Storage
    options: SourceOptions

    @property
    def fingerprint(self) -> str:
        """The extensions that make a member an image."""
        return "tar:" + _reader_of(self.options)

    def entries(self) -> pa.Table:
        """The shards."""
        return self.shards

    def cut(self, entries: Entries, limits: UnitLimits) -> Iterator[Unit]:
        """One unit for each shard up to `limits.bytes`; larger shards are indexed and cut.

        Shards that become one unit are not opened.
        """
        storage, options = self.storage, self.options
        reader = _reader_of(options)

        def units_of(shard: dict[str, Any]) -> list[Unit]:
            size = shard["size"]
            if size > limits.bytes:
                return _cut_shard(shard, limits, storage, options)
            return [make_unit("tar", shard=shard["uri"], etag=shard["etag"], stop=size,
                              n_images=None, n_bytes=size, reader=reader)]  # fmt: skip

        with ThreadPoolExecutor(_INDEX_THREADS, "segcore-index") as pool:
            for batch in entries.to_batches(1000):
                for units in pool.map(units_of, batch.to_pylist()):
                    yield from units


def _reader_of(options: SourceOptions) -> str:
    """The extensions of images, as stored in `Unit.reader`."""
    return ",".join(sorted(options.extensions))


def _cut_shard(
    shard: dict[str, Any], limits: UnitLimits, storage: Storage, options: SourceOptions
) -> list[Unit]:
    size: int = shard["size"]
    image_ids = UniqueImageIds(shard["uri"])
    pieces: list[tuple[int, int, list[Member]]] = []  # (start, images, renamed duplicates)
    start, n_images, duplicates = 0, 0, list[Member]()
    is_damaged = False
    with storage.open(shard["uri"], _INDEX_BUFFER_BYTES) as file:
        try:
            for member in _iter_tar_members(file, 0, size, size):
                if not options.is_image_name(member.name):
                    continue
                n_bytes = member.data_offset + member.size - start
                if n_images and (n_images == limits.images or n_bytes > limits.bytes):
                    pieces.append((start, n_images, duplicates))
                    start, n_images, duplicates = member.header_offset, 0, []
                n_images += 1
                image_id, is_duplicate = image_ids.assign(member.name)
                if is_duplicate:
                    duplicates.append(Member(image_id, member.name, "", member.header_offset))
        except _DamagedArchive:
            is_damaged = True  # whoever reads the last piece finds the damage again and reports it
    pieces.append((start, n_images, duplicates))
    units = []
    for index, (begin, count, members) in enumerate(pieces):
        is_last = index == len(pieces) - 1
        stop = size if is_last else pieces[index + 1][0]
        units.append(
            make_unit("tar", shard=shard["uri"], etag=shard["etag"], start=begin, stop=stop,
                      n_images=None if is_damaged and is_last else count, n_bytes=stop - begin,
                      members=members, reader=_reader_of(options))
        )  # fmt: skip
    return units


def read_tar(
    unit: Unit, storage: Storage, options: SourceOptions, notes: Counter[str]
) -> Iterator[Sample]:
    """The image members of a unit in the order of the archive.

    Counts in `notes`: "ignored_members" (without the extension of an image), "duplicate_names".

    Raises:
        StorageError: The shard is gone, must not be read, or has changed since planning.
    """
    info = stat_unchanged_shard(unit, storage)
    is_whole_shard = unit.start == 0 and unit.stop == info.size
    image_ids = UniqueImageIds(unit.shard) if is_whole_shard else None
    duplicate_ids = {member.size: member.image_id for member in unit.members}  # by header offset
    with storage.stream(info, prefetch_until=unit.stop) as file:
        try:
            for member in _iter_tar_members(file, unit.start, unit.stop, info.size):
                if not options.is_image_name(member.name):
                    notes["ignored_members"] += 1
                    continue
                if image_ids is not None:
                    image_id, is_duplicate = image_ids.assign(member.name)
                else:
                    offset = member.header_offset
                    is_duplicate = offset in duplicate_ids
                    image_id = duplicate_ids.get(offset, f"{unit.shard}#{member.name}")
                notes["duplicate_names"] += is_duplicate
                yield _read_member(unit, image_id, is_duplicate, file, member, options)
        except _DamagedArchive as damage:
            image_id = f"{unit.shard}#{damage.position}"
            error = ImageError(damage.code, f"{unit.shard}: {damage.reason}.")
            yield Sample(image_id, unit.shard, unit.etag, None, error)


def _read_member(
    unit: Unit,
    image_id: str,
    is_duplicate: bool,
    file: BinaryIO,
    member: _TarMember,
    options: SourceOptions,
) -> Sample:
    data: bytes | None = None
    error: ImageError | None = None
    if member.unsafe_reason:
        error = ImageError(ErrorCode.UNSAFE_MEMBER, f"{image_id}: {member.unsafe_reason}.")
    elif member.size > options.max_image_bytes:
        error = ImageError(
            ErrorCode.TOO_MANY_BYTES,
            f"{image_id} has {member.size:,} bytes; the limit is {options.max_image_bytes:,}.",
        )
    else:
        file.seek(member.data_offset)
        data = file.read(member.size)
        if len(data) != member.size:
            raise StorageError(f"{unit.shard} became shorter while it was read.")
    warning = "duplicate_name" if is_duplicate else ""
    return Sample(image_id, unit.shard, unit.etag, data, error, warning)


def _iter_tar_members(file: BinaryIO, start: int, stop: int, size: int) -> Iterator[_TarMember]:
    """Members whose header begins in [start, stop), except folders.

    Raises:
        _DamagedArchive: The archive cannot be read any further.
    """
    position = start
    try:
        file.seek(start)
        archive = tarfile.TarFile(fileobj=cast(BinaryIO, _BoundedReader(file)), mode="r")
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # free the headers
            if info.size < 0 or archive.offset <= position:
                raise _DamagedArchive(
                    ErrorCode.SHARD_CORRUPT, position, f"invalid size in the header at {position}"
                )
            position = info.offset
            stored_bytes = info.size if info.isreg() and not info.issparse() else 0
            if info.offset_data + stored_bytes > size:
                raise _DamagedArchive(
                    ErrorCode.SHARD_TRUNCATED,
                    position,
                    f"the archive ends inside the member {_clean_name(info.name)!r}",
                )
            if not info.isdir():
                name = _clean_name(info.name)
                reason = _find_unsafe_reason(info)
                yield _TarMember(name, info.offset, info.offset_data, info.size, reason)
            position = archive.offset
            if position >= stop and stop < size:
                return
        position = archive.offset
    except _TARFILE_ERRORS as error:
        is_truncated = file.tell() >= size  # the library read to the end and expected more
        raise _damage_at(position, size, str(error), is_truncated) from error
    _check_end_mark(file, position, size)


def _check_end_mark(file: BinaryIO, position: int, size: int) -> None:
    """Raise unless a block of zeros is at `position`."""
    file.seek(min(position, size))
    block = file.read(_BLOCK_BYTES)
    if len(block) == _BLOCK_BYTES and not any(block):
        return
    raise _damage_at(position, size, "invalid header", len(block) < _BLOCK_BYTES)


def _damage_at(position: int, size: int, reason: str, is_truncated: bool) -> _DamagedArchive:
    if size == 0:
        return _DamagedArchive(ErrorCode.SHARD_TRUNCATED, 0, "the archive is empty (0 bytes)")
    if is_truncated:
        return _DamagedArchive(
            ErrorCode.SHARD_TRUNCATED,
            position,
            f"the archive ends at byte {size:,} without its end mark",
        )
    return _DamagedArchive(
        ErrorCode.SHARD_CORRUPT, position, f"cannot be read past byte {position:,} ({reason})"
    )


def _find_unsafe_reason(info: tarfile.TarInfo) -> str:
    """Why the member must not be read; "" if it may."""
    if info.issym() or info.islnk():
        return "links inside an archive are not followed"
    if not info.isreg():
        return "not a plain file"
    if info.issparse():
        return "sparse members are not supported"
    if info.name.startswith("/") or ".." in info.name.split("/"):
        return "absolute paths and '..' are not allowed inside an archive"
    return ""


def _clean_name(name: str) -> str:
    """The name without a leading "./", as valid UTF-8."""
    while name.startswith("./"):
        name = name[2:]
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


class _BoundedReader:
    """The file that tarfile reads: refuses the huge or negative reads that bad headers ask for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.name = ""
        self.tell, self.seek = file.tell, file.seek

    def read(self, length: int = -1) -> bytes:
        if not 0 <= length <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {length:,} bytes")
        return self._file.read(length)
