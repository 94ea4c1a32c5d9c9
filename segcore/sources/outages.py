"""Telling an outage from bad images: an outage must not turn good images into failed rows.

One request that fails says little. So results that may be due to an outage are held back until it
is known: by the next success, or by asking again for objects that could be read before
(*witnesses*). If none of them can be read any more, the unit ends with that error, undone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from segcore.errors import (
    AccessDenied,
    CredentialsRejected,
    ImageError,
    ObjectChanged,
    ObjectNotFound,
    StorageError,
    TooManyRequests,
)
from segcore.sources.units import Member
from segcore.storage import ObjectTooLarge, Storage, is_remote
from segcore.storage.local_disk import SpecialFile
from segcore.storage.uris import split

ReadResult = bytes | ImageError | StorageError

# This many failed requests in a row mean that the storage is down, not that the images are bad.
_OUTAGE_FAILURES = 3
# So many results are held back at most before the witness is asked, and so many bytes.
_MAX_HELD_RESULTS = 64
_MAX_HELD_BYTES = 16 << 20


@dataclass
class OutageDetector:
    """Holds back the results of a unit's images, in order, until they can be trusted.

    Attributes:
        readable: Objects that were read well in an earlier run, for a retry of failed images.
    """

    storage: Storage
    readable: Iterable[str] = ()
    _held: list[tuple[Member, ReadResult]] = field(default_factory=list)
    _held_bytes: int = 0
    _consecutive_failures: int = 0
    _has_read: bool = False  # anything of this unit
    _refused: set[str] = field(default_factory=set)  # buckets of held results that were refused

    def add(self, member: Member, result: ReadResult) -> None:
        """Take the next result.

        Raises:
            StorageError: It shows that the storage is down.
            ObjectChanged: The image is not the planned version.
        """
        _raise_if_about_unit(result)
        self._held.append((member, result))
        if isinstance(result, bytes):
            self._held_bytes += len(result)
            self._consecutive_failures = 0
            self._has_read = True
            witnesses = self.storage.witnesses.setdefault(_bucket(member.uri), deque(maxlen=3))
            witnesses.append(member.uri)
        elif isinstance(result, AccessDenied | ObjectNotFound):
            self._refused.add(_bucket(member.uri))
        elif may_be_outage(result):
            self._consecutive_failures += 1
            if self._consecutive_failures == _OUTAGE_FAILURES and isinstance(result, StorageError):
                raise result

    def check_second_result(self, member: Member, result: ReadResult) -> None:
        """Check what came of reading an image once more that was released as a failure.

        Raises:
            StorageError: As for `add`. Images are read concurrently, so the success that released
                the failure may be older than the outage.
        """
        _raise_if_about_unit(result)
        if isinstance(result, StorageError):
            self._ask_witness(_bucket(member.uri))

    def take(self) -> list[tuple[Member, ReadResult]]:
        """The results that can be trusted now; none while they are held back.

        Raises:
            StorageError: The witness shows that the storage is down.
        """
        is_full = len(self._held) >= _MAX_HELD_RESULTS or self._held_bytes >= _MAX_HELD_BYTES
        if self._consecutive_failures or (self._refused and not (self._has_read and is_full)):
            return []
        return self._release()

    def finish(self) -> list[tuple[Member, ReadResult]]:
        """The remaining results of the unit.

        Raises:
            StorageError: The witness shows that the storage is down.
            AccessDenied: None of the images may be read, and there is no witness.
        """
        if self._consecutive_failures:
            self._ask_witness(_bucket(self._held[-1][0].uri))
        return self._release()

    def _release(self) -> list[tuple[Member, ReadResult]]:
        """All held results, after the witnesses of refused ones were asked."""
        has_witness = [self._ask_witness(bucket) for bucket in self._refused]
        if not self._has_read and self._refused and not any(has_witness):
            errors = [result for _, result in self._held if isinstance(result, AccessDenied)]
            if len(errors) == len(self._held):
                raise errors[0]
        released, self._held, self._held_bytes = self._held, [], 0
        self._refused = set()
        return released

    def _ask_witness(self, bucket: str) -> bool:
        """Whether there is a witness; returns only if one can be read.

        Raises:
            StorageError: All could be read before, and none can be read now.
        """
        error: StorageError | None = None
        for uri in reversed(self.storage.witnesses.get(bucket, ())):
            error = self._read_again(uri)
            if error is None:
                return True
        if error is not None:
            kind = type(error) if isinstance(error, AccessDenied | ObjectNotFound) else StorageError
            message = f"{error.message} It could be read before, so this is an outage."
            raise kind(message, error.hint) from error
        for uri in self.readable:
            if _bucket(uri) == bucket:
                error = self._read_again(uri)
                if error is None:
                    return True
                if not isinstance(error, ObjectNotFound):  # which may be deleted since that run
                    raise error
        return False

    def _read_again(self, uri: str) -> StorageError | None:
        try:
            self.storage.read_range(uri, 0, 1)
        except StorageError as error:
            return error
        return None


def may_be_outage(result: ReadResult) -> bool:
    """Whether the storage may have failed rather than the image."""
    about_image = AccessDenied | ObjectNotFound | ObjectTooLarge | SpecialFile
    return isinstance(result, StorageError) and not isinstance(result, about_image)


def _raise_if_about_unit(result: ReadResult) -> None:
    """Raise a result that no image is to blame for.

    Raises:
        CredentialsRejected: The credentials have expired or are wrong.
        ObjectChanged: The image is not the planned version.
        TooManyRequests: Images of another prefix could be read perhaps, but these will be, too.
    """
    if isinstance(result, CredentialsRejected | ObjectChanged | TooManyRequests):
        raise result


def _bucket(uri: str) -> str:
    """What an outage concerns: a bucket, or "" for the local disk."""
    return "//".join(split(uri)[:2]) if is_remote(uri) else ""
