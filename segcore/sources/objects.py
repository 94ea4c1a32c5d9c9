"""Loose images: cutting a listing into units, and reading the images of a unit."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from segcore.errors import AccessDenied, ErrorCode, ImageError, ObjectNotFound, StorageError
from segcore.sources.base import (
    REFUSALS,
    Entries,
    Sample,
    Source,
    SourceOptions,
    as_image_error,
)
from segcore.sources.units import Member, Unit, UnitLimits, objects_unit
from segcore.storage import ObjectTooLarge, Storage, is_remote
from segcore.storage.listing import Listing

# So many failed requests in a row mean that the storage is down, not that the images are bad.
_OUTAGE = 3
_READ_THREADS = 16  # a CPU asks for no more; where there is a GPU, the options name more
_HELD_BYTES = 64 << 20  # encoded images read ahead, at most; one larger image is read alone
_UNKNOWN_BYTES = 1 << 20  # taken for the size of an image whose size is not known

Outcome = bytes | ImageError | StorageError


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
    good images into failed rows. So an image whose request failed is asked for once more when
    another one came, and only then has failed.

    Raises:
        StorageError: Three requests failed after their retries, and none succeeded in between.
        AccessDenied: Not one of the images of the unit may be read.
    """
    held: list[tuple[Member, Outcome]] = []  # from the first image in doubt on
    doubts = denied = 0
    good: Member | None = None
    wanted = [member for member in unit.members if member.image_id not in without]
    for member, outcome in _outcomes(wanted, storage, options):
        denied += isinstance(outcome, AccessDenied)
        doubts += _in_doubt(outcome)
        gone = doubts == _OUTAGE or denied == len(unit.members)
        if gone and isinstance(outcome, StorageError):
            raise outcome
        held.append((member, outcome))
        if isinstance(outcome, bytes):
            good, doubts = member, 0
        if not doubts:
            yield from _settled(held, storage, options)
            held.clear()
    if doubts and good is not None:
        storage.read(good.uri, options.max_image_bytes)  # raises where the storage is gone
    yield from _settled(held, storage, options)


def _in_doubt(outcome: Outcome) -> bool:
    """Whether it may be the storage that failed, not the image."""
    final = AccessDenied | ObjectNotFound | ObjectTooLarge
    return isinstance(outcome, StorageError) and not isinstance(outcome, final)


def _settled(
    held: Iterable[tuple[Member, Outcome]], storage: Storage, options: SourceOptions
) -> Iterator[Sample]:
    """Samples of outcomes; where it is in doubt the image is asked for once more."""
    for member, first in held:
        outcome = _read(member, storage, options) if _in_doubt(first) else first
        yield _sample(member, outcome)


def _outcomes(
    members: Iterable[Member], storage: Storage, options: SourceOptions
) -> Iterator[tuple[Member, Outcome]]:
    """What reading each of them came to, in order; remote ones are read ahead, several at once."""
    if not any(is_remote(member.uri) for member in members):
        yield from ((member, _read(member, storage, options)) for member in members)
        return
    threads = options.read_threads or _READ_THREADS
    waiting: deque[tuple[Member, Future[Outcome]]] = deque()
    held = 0
    with ThreadPoolExecutor(threads, "segcore-read") as pool:

        def first() -> tuple[Member, Outcome]:
            nonlocal held
            member, future = waiting.popleft()
            held -= _weight(member)
            return member, future.result()

        try:
            for member in members:
                while waiting and (
                    len(waiting) >= 2 * threads or held + _weight(member) > _HELD_BYTES
                ):
                    yield first()
                waiting.append((member, pool.submit(_read, member, storage, options)))
                held += _weight(member)
            while waiting:
                yield first()
        finally:  # also when the consumer stops early: do not read what nobody wants
            for _, future in waiting:
                future.cancel()


def _weight(member: Member) -> int:
    return member.size if member.size >= 0 else _UNKNOWN_BYTES


def _read(member: Member, storage: Storage, options: SourceOptions) -> Outcome:
    if member.etag.startswith("!"):
        reason = REFUSALS.get(member.etag, "may not be read")
        return ImageError(ErrorCode.UNSAFE_URI, f"{member.uri}: {reason}.")
    try:
        return storage.read(member.uri, options.max_image_bytes)
    except StorageError as error:
        return error


def _sample(member: Member, outcome: Outcome) -> Sample:
    if isinstance(outcome, StorageError):
        outcome = as_image_error(outcome)
    data, error = (None, outcome) if isinstance(outcome, ImageError) else (outcome, None)
    return Sample(member.image_id, member.uri, member.etag, data, error)
