"""Tar shards (WebDataset layout): cutting large ones, and reading members in their order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from segcore.errors import ErrorCode, ImageError, StorageError
from segcore.sources.base import (
    Entries,
    Sample,
    Source,
    SourceOptions,
    UniqueImageIds,
    stat_unchanged_shard,
)
from segcore.sources.tar_index import (
    MIN_KEPT_BYTES,
    IndexShards,
    IndexTask,
    build_index,
    has_index,
    read_index,
)
from segcore.sources.tar_members import (
    DamagedArchive,
    InnerTar,
    TarMember,
    iter_tar_members,
)
from segcore.sources.units import Member, Unit, UnitLimits, make_unit
from segcore.storage import Storage
from segcore.text import format_bytes, parse_json, plural

_INDEX_BUFFER_BYTES = 1 << 20  # smaller members are read through, larger ones are skipped
_INDEX_THREADS = 8
_MAX_INDEXED_BYTES = 16 << 30  # some minutes of reading
_MAX_EXTENSIONS = 32  # counted by name in one unit; the names come from the archive


@dataclass(kw_only=True)
class TarSource(Source):
    """Tar shards.

    Attributes:
        shards: Their uri, size and etag.
        index_uri: Gives the place of an index by its key; None: none are kept.
        index_shards: Builds and keeps indexes; None: they are only read.
    """

    shards: pa.Table = field(repr=False)
    storage: Storage
    options: SourceOptions
    index_uri: Callable[[str], str] | None = None
    index_shards: IndexShards | None = None

    @property
    def fingerprint(self) -> str:
        """What makes a member an image: its extension, or its whole suffix."""
        return "tar:" + _reader_of(self.options)

    def entries(self) -> pa.Table:
        """The shards."""
        return self.shards

    def cut(self, entries: Entries, limits: UnitLimits) -> Iterator[Unit]:
        """One unit for each shard up to a size; larger shards are indexed and cut.

        To index a shard is to read most of it. Shards that become one unit are not opened.
        """
        reader = _reader_of(self.options)
        max_unit_bytes = _choose_max_unit_bytes(entries, limits)
        self._index_first(entries, max_unit_bytes)

        def units_of(shard: dict[str, Any]) -> list[Unit]:
            size = shard["size"]
            if size > max_unit_bytes:
                return _cut_shard(self._index_task(shard), limits)
            return [make_unit("tar", shard=shard["uri"], etag=shard["etag"], stop=size,
                              n_images=None, n_bytes=size, reader=reader)]  # fmt: skip

        with ThreadPoolExecutor(_INDEX_THREADS, "segcore-index") as pool:
            for batch in entries.to_batches(1000):
                for units in pool.map(units_of, batch.to_pylist()):
                    yield from units

    def _index_first(self, entries: Entries, max_unit_bytes: int) -> None:
        """Have the indexes built that are not kept yet, or say what reading takes their place."""
        min_bytes = max(max_unit_bytes, MIN_KEPT_BYTES - 1)
        tasks = [
            self._index_task(shard)
            for batch in entries.to_batches(1000)
            for shard in batch.filter(pc.greater(batch.column("size"), min_bytes)).to_pylist()
        ]
        with ThreadPoolExecutor(_INDEX_THREADS, "segcore-index") as pool:
            kept = list(pool.map(has_index, tasks))
        missing = [task for task, is_kept in zip(tasks, kept, strict=True) if not is_kept]
        if not missing:
            return
        if self.index_shards is not None:
            self.index_shards(missing)
            return
        total = format_bytes(sum(task.size for task in missing))
        self.notes.append(
            f"{plural(len(missing), 'tar shard')} of {total} had to be read for the most part, to "
            "find where to cut; a run keeps what it finds."
        )

    def _index_task(self, shard: dict[str, Any]) -> IndexTask:
        uri, etag, size = shard["uri"], shard["etag"], shard["size"]
        task = IndexTask(uri, etag, size, _reader_of(self.options), self.storage, self.options)
        if self.index_uri is None or size < MIN_KEPT_BYTES:
            return task
        return replace(task, index_uri=self.index_uri(task.key))


def _choose_max_unit_bytes(entries: Entries, limits: UnitLimits) -> int:
    """Size up to which a shard is one unit.

    A small archive is cut finely, so that all workers have something to do. A large one has units
    enough, and nobody wants to wait until the driver has read it.
    """
    sizes = (batch.column("size") for batch in entries.to_batches())
    n_bytes = sum(
        pc.sum(column.filter(pc.greater(column, limits.bytes))).as_py() or 0 for column in sizes
    )
    if n_bytes <= _MAX_INDEXED_BYTES:
        return limits.bytes
    return max(limits.bytes, limits.shard_bytes)


def _reader_of(options: SourceOptions) -> str:
    """What makes a member an image, as stored in `Unit.reader`."""
    extensions = ",".join(sorted(options.extensions))
    return f"{extensions};{','.join(sorted(options.suffixes))}" if options.suffixes else extensions


def tar_options(reader: str) -> SourceOptions:
    """The options by which the members of a unit were told to be images, from its `reader`."""
    extensions, _, suffixes = reader.partition("\n")[0].partition(";")
    return SourceOptions(
        extensions=tuple(extensions.split(",")),
        suffixes=tuple(suffix for suffix in suffixes.split(",") if suffix),
    )


def _add_enclosing(reader: str, enclosing: tuple[InnerTar, ...]) -> str:
    """The reader of a unit that begins inside inner archives."""
    inner = [[tar.name, tar.end] for tar in enclosing]
    return f"{reader}\n{json.dumps(inner)}" if inner else reader


def _enclosing_of(reader: str) -> tuple[InnerTar, ...]:
    """The inner archives in which a unit with this reader begins."""
    inner = reader.partition("\n")[2]
    return tuple(InnerTar(name, end) for name, end in parse_json(inner)) if inner else ()


@dataclass
class _Piece:
    """What becomes one unit of a large shard."""

    start: int
    enclosing: tuple[InnerTar, ...] = ()
    n_images: int = 0
    duplicates: list[Member] = field(default_factory=list)  # renamed ones


def _cut_shard(task: IndexTask, limits: UnitLimits) -> list[Unit]:
    index = read_index(task) or build_index(task)
    pieces = [_Piece(0)]
    for row in index.rows():
        piece = pieces[-1]
        n_bytes = row["end"] - piece.start
        if piece.n_images and (piece.n_images == limits.images or n_bytes > limits.bytes):
            piece = _Piece(row["start"], row["enclosing"])
            pieces.append(piece)
        piece.n_images += 1
        if row["duplicate_id"] is not None:
            duplicate = Member(row["duplicate_id"], row["duplicate_name"], "", row["start"])
            piece.duplicates.append(duplicate)
    units = []
    for number, piece in enumerate(pieces):
        is_last = number == len(pieces) - 1
        stop = task.size if is_last else pieces[number + 1].start
        n_images = None if index.is_damaged and is_last else piece.n_images
        units.append(
            make_unit("tar", shard=task.uri, etag=task.etag, start=piece.start, stop=stop,
                      n_images=n_images, n_bytes=stop - piece.start, members=piece.duplicates,
                      reader=_add_enclosing(task.reader, piece.enclosing))
        )  # fmt: skip
    return units


def read_tar(
    unit: Unit, storage: Storage, options: SourceOptions, notes: Counter[str]
) -> Iterator[Sample]:
    """The image members of a unit in the order of the archive.

    Counts in `notes`: "ignored_members" (not images by their names) and how many of them have which
    extension ("ignored_members.json"), "duplicate_names", "samples_with_several_images" (such as
    `1.jpg` and `1.seg.png`; see `source.suffixes`), "inner_archives" that were read, and
    "bytes_behind_end_mark" that are not another archive.

    Raises:
        StorageError: The shard is gone, must not be read, or has changed since planning.
    """
    info = stat_unchanged_shard(unit, storage)
    is_whole_shard = unit.start == 0 and unit.stop == info.size
    image_ids = UniqueImageIds(unit.shard) if is_whole_shard else None
    duplicate_ids = {member.size: member.image_id for member in unit.members}  # by header offset
    enclosing = _enclosing_of(unit.reader)
    last_sample: tuple[str, int] = ("", 0)  # key, number of images
    with storage.stream(info, prefetch_until=unit.stop) as file:
        try:
            members = iter_tar_members(file, unit.start, unit.stop, info.size, notes, enclosing)
            for member in members:
                if member.damage:
                    yield _damage_sample(
                        unit, member.damage, member.header_offset, member.unreadable_reason
                    )
                    continue
                if not options.is_image_name(member.name):
                    _count_ignored(member.name, notes)
                    continue
                key = _sample_key(member.name)
                last_sample = (key, last_sample[1] + 1 if key == last_sample[0] else 1)
                notes["samples_with_several_images"] += last_sample[1] == 2
                if image_ids is not None:
                    image_id, is_duplicate = image_ids.assign(member.name)
                else:
                    offset = member.header_offset
                    is_duplicate = offset in duplicate_ids
                    image_id = duplicate_ids.get(offset, f"{unit.shard}#{member.name}")
                notes["duplicate_names"] += is_duplicate
                yield _read_member(unit, image_id, is_duplicate, file, member, options)
        except DamagedArchive as damage:
            yield _damage_sample(unit, damage.code, damage.position, damage.reason)


def count_tar_images(unit: Unit, storage: Storage) -> int:
    """How many rows reading a unit gives, from the headers of its members alone.

    Raises:
        StorageError: The shard is gone, must not be read, or has changed since planning.
    """
    info = stat_unchanged_shard(unit, storage)
    options = tar_options(unit.reader)
    n_rows = 0
    with storage.open(unit.shard, _INDEX_BUFFER_BYTES) as file:
        try:
            members = iter_tar_members(
                file, unit.start, unit.stop, info.size, Counter(), _enclosing_of(unit.reader)
            )
            for member in members:
                n_rows += bool(member.damage) or options.is_image_name(member.name)
        except DamagedArchive:
            n_rows += 1
    return n_rows


def _damage_sample(unit: Unit, code: ErrorCode, position: int, reason: str) -> Sample:
    """The failed row of a place where a shard, or an archive inside it, cannot be read."""
    error = ImageError(code, f"{unit.shard}: {reason}.")
    return Sample(f"{unit.shard}#{position}", unit.shard, unit.etag, None, error)


def _sample_key(name: str) -> str:
    """What the files of one WebDataset sample have in common: all before the first dot."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _count_ignored(name: str, notes: Counter[str]) -> None:
    notes["ignored_members"] += 1
    base = name.rpartition("/")[2]
    extension = base.rpartition(".")[2].lower() if "." in base else "none"
    if base.startswith("."):
        extension = "hidden"
    note = f"ignored_members.{extension}"
    is_known = note in notes or sum(key.startswith("ignored_members.") for key in notes) < (
        _MAX_EXTENSIONS
    )
    if not (is_known and extension.isascii() and extension.isalnum() and len(extension) <= 10):
        note = "ignored_members.other"
    notes[note] += 1


def _read_member(
    unit: Unit,
    image_id: str,
    is_duplicate: bool,
    file: BinaryIO,
    member: TarMember,
    options: SourceOptions,
) -> Sample:
    data: bytes | None = None
    error: ImageError | None = None
    if member.unreadable_reason:
        error = ImageError(ErrorCode.UNSAFE_MEMBER, f"{image_id}: {member.unreadable_reason}.")
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
