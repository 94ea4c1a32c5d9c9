"""One run at a time: a lease in storage that names its holder and expires by itself.

In the folder of a lease, ``<generation>.json`` is created by put-if-absent and rewritten as a
heartbeat. The file with the highest generation is the lease. A process that finds it free
(released, its holder gone, or without a heartbeat for its whole time to live) creates the next
generation: of many such processes, exactly one succeeds. Generations only grow, so a late write of
an old holder changes nothing.

A holder writes its heartbeat first and then looks for a higher generation. A process that takes
over creates the higher generation first and then looks at the heartbeat again. So an old holder
that wakes up just then either sees that it has lost the lease, or is seen and waited for.

No two clocks are compared: ages are differences of times that the storage gave, and waiting is
measured by this machine's own steady clock. Two things are required of the storage: that of many
put-if-absent exactly one succeeds, and that a listing shows what was written before it. No lease
can rule out that a process is stopped, between `Lease.check` and the action that it guards, for
longer than half a time to live.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass

from segcore.errors import (
    AccessDenied,
    ObjectNotFound,
    SegcoreError,
    StorageError,
    StorageFull,
)
from segcore.lease.clock import SYSTEM_CLOCK, SteadyClock
from segcore.lease.holder import MAX_BYTES, Holder
from segcore.lease.observation import (
    TIMESTAMP_RESOLUTION_S,
    FileVersion,
    LeaseObservation,
    generation_file_name,
    highest_generation,
    is_lease_file,
    list_lease_files,
    peek_lease,
)
from segcore.storage import ObjectTooLarge, Storage, join

_MAX_POLL_INTERVAL_S = 2.0
_MAX_CHECK_ATTEMPTS = 20


class LeaseHeld(SegcoreError):
    """Another run is working on this edition."""


class LeaseLost(SegcoreError):
    """This run must not delete or publish anything any more.

    Attributes:
        is_taken: Another process has the lease now; False where no heartbeat could be written.
    """

    is_taken = False


@dataclass(frozen=True)
class _EarlierHolder:
    """The file of an earlier generation whose holder may still be running."""

    version: FileVersion
    unchanged_since: float  # by the clock of the lease, seconds
    ttl_s: float


class Lease:
    """A lease that was held when it was created. Its methods may be called from any thread.

    Attributes:
        storage: Where it is; the options say how long a request may take.
        ttl_s: Seconds without a heartbeat after which others may take over.
        lost: Why it is not held any more; None while it is, as far as is known.
        loss_reported: Whether `check` has raised the loss, so that the holder knows about it.
    """

    def __init__(
        self,
        storage: Storage,
        folder: str,
        generation: int,
        ttl_s: float,
        clock: SteadyClock = SYSTEM_CLOCK,
    ) -> None:
        self.ttl_s = ttl_s
        self.lost: LeaseLost | None = None
        self.loss_reported = False
        self.storage, self._folder, self._clock = storage, folder, clock
        self._generation = generation
        self._holder = Holder.of_current_process(ttl_s)
        self._expires_at = clock.now()  # others wait at least until then
        self._lock = threading.Lock()
        self._released = False
        self._last_error: StorageError | None = None

    @property
    def is_expired(self) -> bool:
        """Whether others may have taken over by now."""
        return self._clock.now() >= self._expires_at

    def renew(self) -> None:
        """Write a heartbeat, then check whether another process took over, which sets `lost`.

        Raises:
            StorageError: It is not known whether the lease is still held; try again.
        """
        with self._lock:
            if self._released or self.lost:
                return
            started = self._clock.now()
            self._holder = self._holder.model_copy(update={"beats": self._holder.beats + 1})
            try:
                self.storage.write(self.uri, self._holder.to_json())
                self._detect_takeover()
            except StorageError as error:
                self._last_error = error
                raise
            self._expires_at = started + self.ttl_s

    def check(self) -> None:
        """To be called before anything is deleted or published.

        Returns only if the lease is held, and will be for at least half a time to live from now.

        Raises:
            LeaseLost: Another process took over, or the storage does not respond.
            StorageFull: The disk has no room: waiting would not help.
        """
        for _ in range(_MAX_CHECK_ATTEMPTS):
            try:
                self.renew()
            except StorageFull:
                raise
            except StorageError:
                if self.is_expired:
                    break
                self._clock.sleep(self.ttl_s / 16)
                continue
            if self.lost:
                break
            if self._clock.now() <= self._expires_at - self.ttl_s / 2:
                return
        self.loss_reported = True
        raise self.mark_lost()

    def mark_lost(self) -> LeaseLost:
        """Give the lease up, for the known reason or because heartbeats keep failing."""
        error = self._last_error
        again = "Rerun the same command when the storage responds again."
        if isinstance(error, AccessDenied):  # it responds, and says what has to be done
            again = f"{error.hint} The same command resumes."
        self.lost = self.lost or LeaseLost(
            f"No heartbeat could be written to {self._folder} for {self.ttl_s:g} s, so another "
            f"run may have taken over{f': {error.message}' if error else '.'}",
            hint=f"Finished units are kept. {again}",
        )
        return self.lost

    def release(self) -> None:
        """Free the lease at once. Never raises: it would expire by itself."""
        if not self._lock.acquire(timeout=self.ttl_s / 4):
            return  # a heartbeat hangs in the storage
        try:
            self._released = True
            if self._is_superseded():
                self.storage.delete(self.uri)
            else:
                released = self._holder.model_copy(update={"released": True})
                self.storage.write(self.uri, released.to_json())
        except (StorageError, OSError):
            pass
        finally:
            self._lock.release()

    def try_claim(self, predecessor: LeaseObservation | None) -> bool:
        """Create the file of this generation; `predecessor` is the free lease that it follows.

        Returns:
            Whether this lease is held now; False if another process was faster.
        """
        started = self._clock.now()
        if not self.storage.write_if_absent(self.uri, self._holder.to_json()):
            return False
        self._expires_at = started + self.ttl_s
        try:
            versions = list_lease_files(self.storage, self._folder)
            # A higher generation means that this number was used and deleted before.
            is_highest = highest_generation(versions) == self._generation
            if not is_highest or not self._wait_for_earlier_holders(predecessor, versions):
                self.release()
                return False
            with suppress(StorageError):
                for name in versions:
                    if is_lease_file(name) and name != generation_file_name(self._generation):
                        self.storage.delete(join(self._folder, name))
        except BaseException:
            self.release()
            raise
        return True

    @property
    def uri(self) -> str:
        """The file of this generation."""
        return join(self._folder, generation_file_name(self._generation))

    def _is_superseded(self) -> bool:
        """Whether there is a higher generation."""
        return highest_generation(list_lease_files(self.storage, self._folder)) > self._generation

    def _detect_takeover(self) -> None:
        """Set `lost` if there is a higher generation."""
        if not self._is_superseded():
            return
        try:
            successor = peek_lease(self.storage, self._folder, self.ttl_s)
        except StorageError:
            successor = None
        holder = "" if successor is None else f": {successor.summary()}"
        if self.lost is None:
            self.lost = LeaseLost(
                f"Another run took over because this one sent no heartbeat in time{holder}.",
                hint="Finished units are kept. Wait for the other run to end, or stop it and rerun "
                "the same command to resume.",
            )
            self.lost.is_taken = True

    def _wait_for_earlier_holders(
        self, predecessor: LeaseObservation | None, versions: dict[str, FileVersion]
    ) -> bool:
        """Wait until no earlier holder can rely on its lease; False if this one is lost meanwhile.

        An earlier holder that woke up just now notices this lease, or its own expires. There are
        several if a process that took over before did not finish this step.
        """
        created_s = versions[generation_file_name(self._generation)][1]
        earlier_holders: dict[str, _EarlierHolder] = {}
        for name, version in versions.items():
            if not 0 < highest_generation([name]) < self._generation:
                continue
            if predecessor and (name, version) == (
                generation_file_name(predecessor.generation),
                predecessor.version,
            ):
                continue
            ttl_s = self._read_remaining_ttl(name)
            if ttl_s:
                silent_s = max(0.0, created_s - version[1] - TIMESTAMP_RESOLUTION_S)
                unchanged_since = self._clock.now() - silent_s
                earlier_holders[name] = _EarlierHolder(version, unchanged_since, ttl_s)
        while earlier_holders and self.lost is None:
            listed_at = self._clock.now()
            versions = list_lease_files(self.storage, self._folder)
            for name, holder in list(earlier_holders.items()):
                if name not in versions:
                    del earlier_holders[name]
                elif versions[name] != holder.version:
                    earlier_holders[name] = _EarlierHolder(
                        versions[name], self._clock.now(), holder.ttl_s
                    )
                elif listed_at - holder.unchanged_since >= holder.ttl_s:
                    del earlier_holders[name]
            if earlier_holders:
                self._clock.sleep(poll_interval_s(self.ttl_s))
                with suppress(StorageError):
                    self.renew()
        return self.lost is None

    def _read_remaining_ttl(self, name: str) -> float:
        """Seconds for which an earlier holder may rely on a heartbeat; 0 if it is gone."""
        try:
            holder = Holder.parse(self.storage.read(join(self._folder, name), MAX_BYTES))
        except ObjectNotFound:
            return 0.0
        except ObjectTooLarge:
            holder = None
        if holder is None:
            return self.ttl_s
        return 0.0 if holder.released or holder.exists() is False else holder.ttl_s


def poll_interval_s(ttl_s: float) -> float:
    """Seconds between two looks at a lease with this time to live."""
    return min(ttl_s / 20, _MAX_POLL_INTERVAL_S)
