"""A lease as storage shows it: which generation, whose, how old, and whether it is free.

Files of a lease lie in ``<edition>/lease/``: ``<generation>.json``, the highest of which counts.
Everything in them is untrusted.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

from segcore.errors import ObjectNotFound, StorageError
from segcore.lease.holder import MAX_BYTES, Holder
from segcore.storage import ObjectTooLarge, Storage, join
from segcore.storage.uris import basename

DEFAULT_TTL_S = 60.0
HELD, RELEASED, GONE, EXPIRED = "held", "released", "gone", "expired"
TICK_S = 1.0  # object stores date to the second: an age may be this much too large

_NAME = re.compile(r"(\d{8,18})\.json")
_PROBE = re.compile(r"now-[0-9a-f]{16}")
_SKEW_S = 900.0  # S3 refuses requests from clocks that are further off
_TURNS = 50

Version = tuple[str, float]  # etag, and time of the last change by the clock of the storage


@dataclass(frozen=True)
class LeaseObservation:
    """The lease of an edition at one moment.

    Attributes:
        version: Changes with each heartbeat.
        holder: None when the file is none of ours: then nothing is known of whoever wrote it.
        ttl_s: How long a silence frees the lease.
        age_s: Seconds since the last heartbeat by the clock of the storage; None when unknown.
    """

    generation: int
    version: Version
    holder: Holder | None
    ttl_s: float
    age_s: float | None = None

    @property
    def state(self) -> str:
        """``held``, or why it is free: ``released``, ``gone`` (its process), or ``expired``."""
        if self.holder is not None and self.holder.released:
            return RELEASED
        if self.holder is not None and self.holder.exists() is False:
            return GONE
        if self.age_s is not None and self.age_s >= self.ttl_s + TICK_S:
            return EXPIRED
        return HELD

    def summary(self) -> str:
        """The holder, for people."""
        return "an unknown holder" if self.holder is None else self.holder.summary()


def read_lease(
    folder: str, storage: Storage, ttl_s: float, *, exact: bool = True
) -> LeaseObservation | None:
    """The lease in this folder with its age; None when there is none.

    To learn what time it is for the storage, an object is written beside the lease and deleted,
    unless the lease is free anyway.

    Args:
        ttl_s: For a lease whose file does not say it.
        exact: Raise where that object may not be written. Otherwise this machine's clock must
            do, and is given 15 minutes of error.

    Raises:
        StorageError: The lease cannot be read, or dated.
    """
    for _ in range(_TURNS):
        seen = peek_lease(folder, storage, ttl_s)
        if seen is None or seen.state != HELD:
            return seen
        # Dated after it was read, so that the age is of what was read or of something newer.
        found, now = _dated(folder, storage, exact)
        version = found.get(generation_file_name(seen.generation))
        if version is None or highest_generation(found) != seen.generation:
            continue
        if now is not None:
            return replace(seen, version=version, age_s=max(0.0, now - version[1]))
        guess = time.time() - version[1] - _SKEW_S
        return replace(seen, version=version, age_s=guess if guess > 0 else None)
    raise _restless(folder)


def peek_lease(folder: str, storage: Storage, ttl_s: float) -> LeaseObservation | None:
    """The same without an age; writes nothing."""
    for _ in range(_TURNS):
        found = list_lease_files(folder, storage)
        generation = highest_generation(found)
        if not generation:
            return None
        name = generation_file_name(generation)
        try:
            holder = Holder.parse(storage.read(join(folder, name), MAX_BYTES))
        except ObjectNotFound:
            continue  # the next holder has cleaned up
        except ObjectTooLarge:
            holder = None
        return LeaseObservation(generation, found[name], holder, holder.ttl_s if holder else ttl_s)
    raise _restless(folder)


def list_lease_files(folder: str, storage: Storage) -> dict[str, Version]:
    """All files of the lease, by name."""
    return {
        basename(info.uri): (info.etag, changed)
        for info, changed in storage.list_dated(folder)
        if info.uri == join(folder, basename(info.uri))
    }


def _dated(folder: str, storage: Storage, exact: bool) -> tuple[dict[str, Version], float | None]:
    """A listing, and what time it was for the storage just before; None when it does not say."""
    for _ in range(_TURNS):
        name = f"now-{secrets.token_hex(8)}"
        try:
            storage.write(join(folder, name), b"now\n")
        except StorageError:
            if exact:
                raise
            return list_lease_files(folder, storage), None
        try:
            found = list_lease_files(folder, storage)
        finally:
            with suppress(StorageError):
                storage.delete(join(folder, name))
        if name in found:  # else a new holder has cleaned up
            return found, found[name][1]
    raise _restless(folder)


def generation_file_name(generation: int) -> str:
    """Name of the file of a generation."""
    return f"{generation:08d}.json"


def highest_generation(names: Iterable[str]) -> int:
    """The highest generation among file names; 0 for none."""
    return max((_generation(name) for name in names), default=0)


def is_lease_file(name: str) -> bool:
    """Whether a file of this name belongs to a lease."""
    return bool(_generation(name) or _PROBE.fullmatch(name))


def _generation(name: str) -> int:
    match = _NAME.fullmatch(name)
    number = int(match.group(1)) if match else 0
    return number if generation_file_name(number) == name else 0


def _restless(folder: str) -> StorageError:
    return StorageError(f"{folder} changes faster than it can be read.")
