"""Tar shards (WebDataset layout): cutting large ones, reading members as they lie.

Headers are parsed by the standard library; nothing is ever extracted to disk. The library ends
silently at a damaged header, so the end of every archive is checked here: it must be a block of
zeros. Anything else is a failed row, never a silent loss.
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
from segcore.sources.base import Entries, KeyNames, Sample, Source, SourceOptions
from segcore.sources.units import Member, Unit, UnitLimits, make_unit
from segcore.storage import Storage

_BLOCK = 512
_MAX_HEADER_BYTES = 1 << 20  # a long name or pax record; more is an attack or damage
_INDEX_BUFFER = 1 << 20  # small members are read through, large ones hopped over
_INDEX_THREADS = 8
_DAMAGE = (
    tarfile.TarError,
    ValueError,
    OverflowError,
    RecursionError,
    IndexError,
    KeyError,
    struct.error,
)


class _Damaged(Exception):
    """The archive cannot be read past `position`."""

    def __init__(self, code: ErrorCode, position: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.position, self.reason = code, position, reason


@dataclass(frozen=True)
class _Header:
    name: str  # as stored, without a leading "./"
    offset: int  # of the header, extended headers included
    data: int  # offset of the content
    size: int
    problem: str  # "" or why the member is unsafe


@dataclass(kw_only=True)
class TarSource(Source):
    """Tar shards; `listing` has their uri, size and etag."""

    listing: pa.Table = field(repr=False)
    storage: Storage
    options: SourceOptions

    @property
    def fingerprint(self) -> str:
        """Which members count as images."""
        return "tar:" + _reader(self.options)

    def entries(self) -> pa.Table:
        """The shards."""
        return self.listing

    def cut(self, entries: Entries, limits: UnitLimits) -> Iterator[Unit]:
        """One unit per shard up to `limits.bytes`, unopened; larger ones are indexed and cut."""
        storage, options = self.storage, self.options
        reader = _reader(options)

        def units_of(row: dict[str, Any]) -> list[Unit]:
            if row["size"] > limits.bytes:
                return _cut_shard(row, limits, storage, options)
            size = row["size"]
            return [make_unit("tar", shard=row["uri"], etag=row["etag"], stop=size,
                              n_images=None, n_bytes=size, reader=reader)]  # fmt: skip

        with ThreadPoolExecutor(_INDEX_THREADS, "segcore-index") as pool:
            for batch in entries.to_batches(1000):
                for units in pool.map(units_of, batch.to_pylist()):
                    yield from units


def _reader(options: SourceOptions) -> str:
    return ",".join(sorted(options.extensions))


def _cut_shard(
    row: dict[str, Any], limits: UnitLimits, storage: Storage, options: SourceOptions
) -> list[Unit]:
    size: int = row["size"]
    names = KeyNames(row["uri"])
    pieces: list[tuple[int, int, list[Member]]] = []  # (start, images, renamed duplicates)
    start, images, renamed = 0, 0, list[Member]()
    damaged = False
    with storage.open(row["uri"], _INDEX_BUFFER) as file:
        headers = _headers(file, 0, size, size)
        try:
            for header in headers:
                if not options.is_image_name(header.name):
                    continue
                full = images == limits.images or header.data + header.size - start > limits.bytes
                if images and full:
                    pieces.append((start, images, renamed))
                    start, images, renamed = header.offset, 0, []
                images += 1
                image_id, again = names.name(header.name)
                if again:
                    renamed.append(Member(image_id, header.name, "", header.offset))
        except _Damaged:
            damaged = True  # the reader of the last piece meets it again and reports it
    pieces.append((start, images, renamed))
    units = []
    for index, (begin, count, members) in enumerate(pieces):
        last = index == len(pieces) - 1
        stop = size if last else pieces[index + 1][0]
        units.append(
            make_unit("tar", shard=row["uri"], etag=row["etag"], start=begin, stop=stop,
                      n_images=None if damaged and last else count, n_bytes=stop - begin,
                      members=members, reader=_reader(options))
        )  # fmt: skip
    return units


def read_tar(
    unit: Unit, storage: Storage, options: SourceOptions, notes: Counter[str]
) -> Iterator[Sample]:
    """The image members of a unit in the order of the archive.

    Counts in `notes`: "ignored_members" (no image extension), "duplicate_names".

    Raises:
        StorageError: The shard is gone, may not be read, or changed since planning.
    """
    info = storage.stat(unit.shard)
    if info.etag != unit.etag:
        raise StorageError(
            f"{unit.shard} changed while the run was going on.", "Run again to plan it anew."
        )
    whole = unit.start == 0 and unit.stop == info.size
    names = KeyNames(unit.shard) if whole else None
    renamed = {member.size: member.image_id for member in unit.members}
    with storage.stream(info, until=unit.stop) as file:
        try:
            for header in _headers(file, unit.start, unit.stop, info.size):
                if not options.is_image_name(header.name):
                    notes["ignored_members"] += 1
                    continue
                if names is not None:
                    image_id, again = names.name(header.name)
                else:
                    again = header.offset in renamed
                    image_id = renamed.get(header.offset, f"{unit.shard}#{header.name}")
                notes["duplicate_names"] += again
                yield _sample(unit, image_id, again, file, header, options)
        except _Damaged as damage:
            image_id = f"{unit.shard}#{damage.position}"
            error = ImageError(damage.code, f"{unit.shard}: {damage.reason}.")
            yield Sample(image_id, unit.shard, unit.etag, None, error)


def _sample(
    unit: Unit, image_id: str, again: bool, file: BinaryIO, header: _Header, options: SourceOptions
) -> Sample:
    data: bytes | None = None
    error: ImageError | None = None
    if header.problem:
        error = ImageError(ErrorCode.UNSAFE_MEMBER, f"{image_id}: {header.problem}.")
    elif header.size > options.max_image_bytes:
        error = ImageError(
            ErrorCode.TOO_MANY_BYTES,
            f"{image_id} has {header.size:,} bytes; the limit is {options.max_image_bytes:,}.",
        )
    else:
        file.seek(header.data)
        data = file.read(header.size)
        if len(data) != header.size:
            raise StorageError(f"{unit.shard} became shorter while it was read.")
    warning = "duplicate_name" if again else ""
    return Sample(image_id, unit.shard, unit.etag, data, error, warning)


def _headers(file: BinaryIO, start: int, stop: int, size: int) -> Iterator[_Header]:
    """Members whose header begins in [start, stop); raises _Damaged where reading must end."""
    position = start
    try:
        file.seek(start)
        archive = tarfile.TarFile(fileobj=cast(BinaryIO, _Bounded(file)), mode="r")
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # or every header stays in memory
            if info.size < 0 or archive.offset <= position:
                raise _Damaged(
                    ErrorCode.SHARD_CORRUPT, position, f"invalid size in the header at {position}"
                )
            position = info.offset
            stored = info.size if info.isreg() and not info.issparse() else 0
            if info.offset_data + stored > size:
                raise _Damaged(
                    ErrorCode.SHARD_TRUNCATED,
                    position,
                    f"the archive ends inside the member {_shown(info.name)!r}",
                )
            if not info.isdir():
                name = _shown(info.name)
                yield _Header(name, info.offset, info.offset_data, info.size, _problem(info))
            position = archive.offset
            if position >= stop and stop < size:
                return
        position = archive.offset
    except _DAMAGE as error:
        cut_off = file.tell() >= size  # the library read on to the end and missed the rest
        raise _damage_at(position, size, str(error), cut_off) from error
    _check_end(file, position, size)


def _check_end(file: BinaryIO, position: int, size: int) -> None:
    file.seek(min(position, size))
    block = file.read(_BLOCK)
    if len(block) == _BLOCK and not any(block):
        return
    raise _damage_at(position, size, "invalid header", len(block) < _BLOCK)


def _damage_at(position: int, size: int, reason: str, cut_off: bool) -> _Damaged:
    if size == 0:
        return _Damaged(ErrorCode.SHARD_TRUNCATED, 0, "the archive is empty (0 bytes)")
    if cut_off:
        return _Damaged(
            ErrorCode.SHARD_TRUNCATED,
            position,
            f"the archive ends at byte {size:,} without its end mark",
        )
    return _Damaged(
        ErrorCode.SHARD_CORRUPT, position, f"cannot be read past byte {position:,} ({reason})"
    )


def _problem(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return "links inside an archive are not followed"
    if not info.isreg():
        return "not a plain file"
    if info.issparse():
        return "sparse members are not supported"
    if info.name.startswith("/") or ".." in info.name.split("/"):
        return "absolute paths and '..' are not allowed inside an archive"
    return ""


def _shown(name: str) -> str:
    while name.startswith("./"):
        name = name[2:]
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


class _Bounded:
    """File handed to tarfile: refuses the huge or negative reads that bad headers ask for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.name = ""
        self.tell, self.seek = file.tell, file.seek

    def read(self, length: int = -1) -> bytes:
        if not 0 <= length <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {length:,} bytes")
        return self._file.read(length)
