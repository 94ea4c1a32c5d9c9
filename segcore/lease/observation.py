"""A lease as seen in storage: its generation, its holder, its age, and whether it is free.

The files of a lease are named ``<generation>.json``; the one with the highest generation is the
lease. Their content is untrusted.
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
TIMESTAMP_RESOLUTION_S = 1.0  # object stores date to the second: an age may be this much too large

_GENERATION_FILE = re.compile(r"(\d{8,18})\.json")
_TIME_PROBE = re.compile(r"now-[0-9a-f]{16}")
_MAX_CLOCK_SKEW_S = 900.0  # S3 refuses requests from clocks that are further off
_MAX_ATTEMPTS = 50

FileVersion = tuple[str, float]  # etag, and time of the last change by the clock of the storage


@dataclass(frozen=True)
class LeaseObservation:
    """A lease at one moment.

    Attributes:
        generation: Its number; each new holder has a higher one.
        version: Changes with each heartbeat.
        holder: None if segcore did not write the file: then nothing is known about the writer.
        ttl_s: Seconds without a heartbeat after which the lease is free.
        age_s: Seconds since the last heartbeat by the clock of the storage; None if unknown.
    """

    generation: int
    version: FileVersion
    holder: Holder | None
    ttl_s: float
    age_s: float | None = None

    @property
    def state(self) -> str:
        """``held``, or why it is free: ``released``, ``gone`` (its process) or ``expired``."""
        if self.holder is not None and self.holder.released:
            return RELEASED
        if self.holder is not None and self.holder.exists() is False:
            return GONE
        if self.age_s is not None and self.age_s >= self.ttl_s + TIMESTAMP_RESOLUTION_S:
            return EXPIRED
        return HELD

    def summary(self) -> str:
        """The holder, for people."""
        return "an unknown holder" if self.holder is None else self.holder.summary()


def observe_lease(storage: Storage, folder: str) -> LeaseObservation | None:
    """The lease in this folder; None if there is none.

    For people, who may not be allowed to write there: the age may be missing or too small.
    """
    return read_lease(storage, folder, DEFAULT_TTL_S, allow_local_clock=True)


def read_lease(
    storage: Storage, folder: str, ttl_s: float, *, allow_local_clock: bool = False
) -> LeaseObservation | None:
    """The lease in this folder with its age; None if there is none.

    To learn the time of the storage's clock, an object is written beside the lease and deleted,
    unless the lease is free regardless of its age.

    Args:
        storage: Where the lease is.
        folder: URI of the folder of the lease.
        ttl_s: Used for a lease whose file does not say it.
        allow_local_clock: If that object cannot be written, use this machine's clock, which is
            assumed to be wrong by up to 15 minutes, instead of raising.

    Raises:
        StorageError: The lease cannot be read, or its age cannot be determined.
    """
    for _ in range(_MAX_ATTEMPTS):
        observation = peek_lease(storage, folder, ttl_s)
        if observation is None or observation.state != HELD:
            return observation
        # Dated after it was read, so that the age is that of what was read or of something newer.
        versions, storage_time = _list_with_storage_time(storage, folder, allow_local_clock)
        version = versions.get(generation_file_name(observation.generation))
        if version is None or highest_generation(versions) != observation.generation:
            continue
        if storage_time is not None:
            age_s = max(0.0, storage_time - version[1])
            return replace(observation, version=version, age_s=age_s)
        min_age_s = time.time() - version[1] - _MAX_CLOCK_SKEW_S
        return replace(observation, version=version, age_s=min_age_s if min_age_s > 0 else None)
    raise _changes_too_fast(folder)


def peek_lease(storage: Storage, folder: str, ttl_s: float) -> LeaseObservation | None:
    """Like `read_lease`, but without the age; writes nothing."""
    for _ in range(_MAX_ATTEMPTS):
        versions = list_lease_files(storage, folder)
        generation = highest_generation(versions)
        if not generation:
            return None
        name = generation_file_name(generation)
        try:
            holder = Holder.parse(storage.read(join(folder, name), MAX_BYTES))
        except ObjectNotFound:
            continue  # deleted by the next holder
        except ObjectTooLarge:
            holder = None
        ttl_s = holder.ttl_s if holder else ttl_s
        return LeaseObservation(generation, versions[name], holder, ttl_s)
    raise _changes_too_fast(folder)


def list_lease_files(storage: Storage, folder: str) -> dict[str, FileVersion]:
    """The versions of all files directly in the folder of a lease, by name."""
    return {
        basename(info.uri): (info.etag, changed_s)
        for info, changed_s in storage.list_with_times(folder)
        if info.uri == join(folder, basename(info.uri))
    }


def _list_with_storage_time(
    storage: Storage, folder: str, allow_local_clock: bool
) -> tuple[dict[str, FileVersion], float | None]:
    """A listing, and the time of the storage's clock just before it; None if it is unknown."""
    for _ in range(_MAX_ATTEMPTS):
        name = f"now-{secrets.token_hex(8)}"
        try:
            storage.write(join(folder, name), b"now\n")
        except StorageError:
            if not allow_local_clock:
                raise
            return list_lease_files(storage, folder), None
        try:
            versions = list_lease_files(storage, folder)
        finally:
            with suppress(StorageError):
                storage.delete(join(folder, name))
        if name in versions:  # otherwise a new holder has deleted it
            return versions, versions[name][1]
    raise _changes_too_fast(folder)


def generation_file_name(generation: int) -> str:
    """The name of the file of a generation."""
    return f"{generation:08d}.json"


def highest_generation(names: Iterable[str]) -> int:
    """The highest generation among file names; 0 if there is none."""
    return max((_generation_of(name) for name in names), default=0)


def is_lease_file(name: str) -> bool:
    """Whether a file of this name belongs to a lease."""
    return bool(_generation_of(name) or _TIME_PROBE.fullmatch(name))


def _generation_of(name: str) -> int:
    """The generation of a file name; 0 if it is not the name of a generation."""
    match = _GENERATION_FILE.fullmatch(name)
    generation = int(match.group(1)) if match else 0
    return generation if generation_file_name(generation) == name else 0


def _changes_too_fast(folder: str) -> StorageError:
    return StorageError(f"{folder} changes faster than it can be read.")
