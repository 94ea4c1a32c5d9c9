"""Loose images: cutting a listing into units, and reading the images of a unit."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from segcore.errors import ErrorCode, ImageError, ObjectChanged, StorageError
from segcore.sources.base import (
    BAD_BACKSLASH,
    REFUSALS,
    Entries,
    Sample,
    Source,
    SourceOptions,
    as_image_error,
)
from segcore.sources.outages import (
    OutageDetector,
    ReadResult,
    may_be_outage,
)
from segcore.sources.packed_members import MemberColumns, pack_members
from segcore.sources.parallel import map_in_order
from segcore.sources.unit_tables import UnitTableBuilder, units_from_table
from segcore.sources.units import Member, Unit, UnitLimits, describe_objects_unit
from segcore.sources.versions import with_versions
from segcore.storage import Storage, is_remote
from segcore.storage.listing import Listing
from segcore.text import plural, redact

_READ_THREADS = 16  # enough for a CPU; for a GPU, the options ask for more
_MAX_PREFETCH_BYTES = 64 << 20  # of encoded images read ahead; a larger image is read alone
_ASSUMED_IMAGE_BYTES = 1 << 20  # for an image whose size is unknown


@dataclass(kw_only=True)
class ObjectsSource(Source):
    """Images that are objects of their own: of a prefix, a manifest or a COCO data set.

    Attributes:
        listing: Rows uri, size, etag; a uri may occur more than once.
        storage: Where unknown versions of remote images are looked up; None: they stay unknown.
    """

    listing: Listing = field(repr=False)
    storage: Storage | None = field(default=None, repr=False)

    def entries(self) -> Listing:
        """Each image once, sorted by uri; `notes` says how many entries were duplicates.

        Raises:
            StorageError: See `with_versions`.
        """
        unique, n_duplicates = self.listing.unique()
        if n_duplicates:
            duplicates = plural(n_duplicates, "duplicate entry", "duplicate entries")
            self.notes.append(f"Ignored {duplicates} of {redact(self.input)}.")
        return with_versions(unique, self.storage) if self.storage else unique

    def cut(self, entries: Entries, limits: UnitLimits) -> Iterator[Unit]:
        """Consecutive images, as many as the limits allow."""
        return units_from_table(self.cut_table(entries, limits))

    def cut_table(self, entries: Entries, limits: UnitLimits) -> pa.Table:
        """As `cut`; a hundred million images are cut column by column."""
        builder = UnitTableBuilder()
        for unit, packed in map_in_order(pack_objects_unit, _cut_images(entries, limits)):
            builder.add_packed(unit, packed)
        return builder.finish()


def _cut_images(entries: Entries, limits: UnitLimits) -> Iterator[MemberColumns]:
    """The images of each unit."""
    rest = MemberColumns.concat([])
    for batch in entries.to_batches():
        columns = (batch.column(name) for name in ("uri", "etag", "size"))
        images = MemberColumns.concat([rest, MemberColumns.of_images(*columns)])
        start = 0
        for stop in _find_cuts(images.sizes, limits):
            yield images.slice(start, stop - start)
            start = stop
        rest = images.slice(start, len(images) - start)
    if len(rest):
        yield rest


def _find_cuts(sizes: pa.Array, limits: UnitLimits) -> Iterator[int]:
    """Ends of the units of images of these sizes, without that of the last, which may grow."""
    ends = np.cumsum(np.maximum(sizes.to_numpy(), 0))
    stop, n_bytes = 0, 0  # of all units so far
    while True:
        full = int(np.searchsorted(ends, n_bytes + limits.bytes, side="right"))
        stop = min(stop + limits.images, max(full, stop + 1))
        if stop >= len(ends):
            return
        yield stop
        n_bytes = int(ends[stop - 1])


def pack_objects_unit(images: MemberColumns) -> tuple[Unit, bytes]:
    """The unit of these loose images without its members, and these packed."""
    versions = list(zip(images.uris.to_pylist(), images.etags.to_pylist(), strict=True))
    n_bytes = int(np.maximum(images.sizes.to_numpy(), 0).sum())
    return describe_objects_unit(versions, n_bytes), pack_members(images)


def read_objects(
    unit: Unit, storage: Storage, options: SourceOptions, exclude: Collection[str] = ()
) -> Iterator[Sample]:
    """The images of a unit in its order, except those in `exclude`; remote ones are read ahead.

    An image that cannot be read becomes a sample with an error. An outage does not: it must not
    turn good images into failed rows. So an image whose request failed is requested once more after
    another image was read, and fails only if that request fails, too. And no image fails by a
    request unless one that was read well can be read still.

    Raises:
        StorageError: Three requests failed after their retries, and none succeeded in between; or
            what could be read before cannot be read now; or the credentials are not accepted.
        AccessDenied: None of the images may be read.
        ObjectChanged: An image is no longer the version that was planned.
    """
    members = [member for member in unit.members if member.image_id not in exclude]
    readable = (member.uri for member in unit.members if member.image_id in exclude)
    detector = OutageDetector(storage, list(readable))

    def samples_of(results: Iterable[tuple[Member, ReadResult]]) -> Iterator[Sample]:
        for member, first_result in results:
            result = first_result
            if may_be_outage(first_result):
                result = _read(member, storage, options)
                detector.check_second_result(member, result)
            yield _to_sample(member, result)

    for member, result in _read_ahead(members, storage, options):
        detector.add(member, result)
        yield from samples_of(detector.take())
    yield from samples_of(detector.finish())


def _read_ahead(
    members: Iterable[Member], storage: Storage, options: SourceOptions
) -> Iterator[tuple[Member, ReadResult]]:
    """Each member with the result of reading it, in order; remote ones are read concurrently."""
    if not any(is_remote(member.uri) for member in members):
        yield from ((member, _read(member, storage, options)) for member in members)
        return
    threads = options.read_threads or _READ_THREADS
    pending: deque[tuple[Member, Future[ReadResult]]] = deque()
    pending_bytes = 0
    with ThreadPoolExecutor(threads, "segcore-read") as pool:

        def take_first() -> tuple[Member, ReadResult]:
            nonlocal pending_bytes
            member, future = pending.popleft()
            pending_bytes -= _estimated_bytes(member)
            return member, future.result()

        try:
            for member in members:
                while pending and (
                    len(pending) >= 2 * threads
                    or pending_bytes + _estimated_bytes(member) > _MAX_PREFETCH_BYTES
                ):
                    yield take_first()
                pending.append((member, pool.submit(_read, member, storage, options)))
                pending_bytes += _estimated_bytes(member)
            while pending:
                yield take_first()
        finally:  # also when the consumer stops early, so that nothing is read in vain
            for _, future in pending:
                future.cancel()


def _estimated_bytes(member: Member) -> int:
    return member.size if member.size >= 0 else _ASSUMED_IMAGE_BYTES


def _read(member: Member, storage: Storage, options: SourceOptions) -> ReadResult:
    if member.etag.startswith("!"):
        reason = REFUSALS.get(member.etag, "may not be read")
        is_missing = member.etag == BAD_BACKSLASH
        code = ErrorCode.NOT_FOUND if is_missing else ErrorCode.UNSAFE_URI
        return ImageError(code, f"{member.uri}: {reason}.")
    try:
        data, etag = storage.read_version(member.uri, options.max_image_bytes)
        if _is_planned_version(member, etag, storage):
            return data
        return ObjectChanged(f"{member.uri} changed while the run was in progress.")
    except StorageError as error:
        return error


def _is_planned_version(member: Member, etag: str, storage: Storage) -> bool:
    """Whether the version that was read is the one that was planned, as far as that is known."""
    if not etag or not member.etag or etag == member.etag:
        return True
    # Some servers list objects by other etags than they send them with.
    return storage.listed_etag(member.uri) == member.etag


def _to_sample(member: Member, result: ReadResult) -> Sample:
    if isinstance(result, StorageError):
        result = as_image_error(result)
    data, error = (None, result) if isinstance(result, ImageError) else (result, None)
    return Sample(member.image_id, member.uri, member.etag, data, error)
