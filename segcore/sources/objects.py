"""Loose images: cutting a listing into units, and reading the images of a unit."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from segcore.errors import AccessDenied, ErrorCode, ImageError, StorageError
from segcore.listing import Listing
from segcore.sources.base import (
    REFUSALS,
    Entries,
    Sample,
    Source,
    SourceOptions,
    as_image_error,
)
from segcore.storage import ObjectNotFound, ObjectTooLarge, Storage, is_remote
from segcore.units import Member, Unit, UnitLimits, objects_unit

# So many failed requests in a row mean that the storage is down, not that the images are bad.
_OUTAGE = 3


@dataclass(kw_only=True)
class ObjectsSource(Source):
    """Images that are objects of their own: of a prefix, a manifest or a COCO data set.

    Attributes:
        table: Rows uri, size, etag; the same uri may stand there twice.
    """

    table: Listing = field(repr=False)

    def entries(self) -> Listing:
        """Each image once, sorted by uri; says in `notes` how many were named twice."""
        found, repeated = self.table.unique()
        if repeated:
            self.notes.append(f"{repeated:,} repeated entries are read once.")
        return found

    def cut(self, entries: Entries, limits: UnitLimits) -> Iterator[Unit]:
        """Consecutive images, as many as the limits allow."""
        group: list[Member] = []
        total = 0
        for member in members_of(entries):
            size = max(member.size, 0)
            if group and (len(group) == limits.images or total + size > limits.bytes):
                yield objects_unit(group)
                group, total = [], 0
            group.append(member)
            total += size
        if group:
            yield objects_unit(group)


def members_of(entries: Entries) -> Iterator[Member]:
    """The rows of a table of entries."""
    for batch in entries.to_batches(10_000):
        columns = (batch.column(name).to_pylist() for name in ("uri", "size", "etag"))
        for uri, size, etag in zip(*columns, strict=True):
            yield Member(uri, uri, etag, size)


def read_objects(
    unit: Unit, storage: Storage, options: SourceOptions, without: Collection[str] = ()
) -> Iterator[Sample]:
    """The images of a unit in its order, but those in `without`; remote ones read ahead.

    One image that cannot be read is a sample with an error. An outage is not: it must not turn
    a million good images into failed rows.

    Raises:
        StorageError: Three requests in a row failed after their retries.
        AccessDenied: Not one of the images of the unit may be read.
    """
    failed_in_a_row = denied = 0
    wanted = [member for member in unit.members if member.image_id not in without]
    for member, outcome in _outcomes(wanted, storage, options):
        if not isinstance(outcome, StorageError):
            failed_in_a_row = 0
            yield _sample(member, outcome)
            continue
        denied += isinstance(outcome, AccessDenied)
        expected = isinstance(outcome, AccessDenied | ObjectNotFound | ObjectTooLarge)
        failed_in_a_row = 0 if expected else failed_in_a_row + 1
        if failed_in_a_row == _OUTAGE or denied == len(unit.members):
            raise outcome
        yield _sample(member, as_image_error(outcome))


Outcome = bytes | ImageError | StorageError


def _outcomes(
    members: Iterable[Member], storage: Storage, options: SourceOptions
) -> Iterator[tuple[Member, Outcome]]:
    def read(member: Member) -> Outcome:
        if member.etag.startswith("!"):
            reason = REFUSALS.get(member.etag, "may not be read")
            return ImageError(ErrorCode.UNSAFE_URI, f"{member.uri}: {reason}.")
        try:
            return storage.read(member.uri, options.max_image_bytes)
        except StorageError as error:
            return error

    if not any(is_remote(member.uri) for member in members):
        yield from ((member, read(member)) for member in members)
        return
    waiting: deque[tuple[Member, Future[Outcome]]] = deque()
    with ThreadPoolExecutor(options.read_threads, "segcore-read") as pool:
        try:
            for member in members:
                waiting.append((member, pool.submit(read, member)))
                if len(waiting) >= 2 * options.read_threads:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:  # also when the consumer stops early: do not read what nobody wants
            for _, future in waiting:
                future.cancel()


def _sample(member: Member, outcome: bytes | ImageError) -> Sample:
    data, error = (None, outcome) if isinstance(outcome, ImageError) else (outcome, None)
    return Sample(member.image_id, member.uri, member.etag, data, error)
