"""One run at a time on an edition: a lease in storage that names its holder and ends by itself.

``<edition>/lease/<generation>.json`` is created by put-if-absent and rewritten as a heartbeat.
The highest generation is the lease. Who finds it free (released, its process gone, or silent for
its whole time to live) creates the next one: of many, exactly one succeeds. Generations only
grow, so a late write of an old holder changes nothing.

A holder writes its heartbeat first and then looks for a higher generation; who takes over creates
the higher generation first and then looks at the heartbeat again. So an old holder that wakes up
just then either sees that it lost, or is seen and waited for.

No two clocks are compared: ages are differences of times that the storage gave, and waiting is
measured by this machine's own steady clock. Two things are asked of the storage: that of many
put-if-absent one succeeds, and that a listing shows what was written before it. What no lease can
rule out: a process that is stopped between `Lease.check` and the act it was called for, for
longer than half a time to live.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from segcore.errors import ObjectNotFound, SegcoreError, StorageError
from segcore.lease.heartbeat import HeartbeatThread
from segcore.lease.holder import MAX_BYTES, Holder
from segcore.lease.observation import (
    DEFAULT_TTL_S,
    HELD,
    TICK_S,
    LeaseObservation,
    Version,
    generation_file_name,
    highest_generation,
    is_lease_file,
    list_lease_files,
    peek_lease,
    read_lease,
)
from segcore.storage import ObjectTooLarge, Storage, StorageOptions, join

FOLDER = "lease"
_LONGEST_POLL_S = 2.0
_TURNS = 20

Notify = Callable[[str], None]


class LeaseHeld(SegcoreError):
    """Another run is at work on this edition."""


class LeaseLost(SegcoreError):
    """This run may no longer delete or publish anything."""


@dataclass(frozen=True)
class Clock:
    """A steady clock, seconds, and a way to wait."""

    now: Callable[[], float]
    sleep: Callable[[float], None] = time.sleep


def _steady() -> float:
    boottime = getattr(time, "CLOCK_BOOTTIME", None)  # goes on while the machine sleeps
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


STEADY_CLOCK = Clock(_steady)


def observe_lease(storage: Storage, prefix: str) -> LeaseObservation | None:
    """The lease of an edition, for people; None when there is none. See `sighting.look`."""
    return read_lease(join(prefix, FOLDER), storage, DEFAULT_TTL_S, exact=False)


def heartbeat_options(options: StorageOptions, ttl_s: float) -> StorageOptions:
    """Limits with which several heartbeats can fail before a time to live is over."""
    timeout_s = min(options.timeout_s, ttl_s / 8)
    return options.model_copy(update={"retries": min(options.retries, 1), "timeout_s": timeout_s})


class Lease:
    """A lease that was held when it was made. Methods may be called from any thread.

    Attributes:
        storage: Where it lies, and how patiently that is asked.
        ttl_s: Silence after which others may take over.
        lost: Why it is not held any more; None while it is, as far as is known.
        told: Whether the holder knows that.
    """

    def __init__(
        self,
        storage: Storage,
        folder: str,
        generation: int,
        ttl_s: float,
        clock: Clock = STEADY_CLOCK,
    ) -> None:
        self.ttl_s = ttl_s
        self.lost: LeaseLost | None = None
        self.loss_reported = False
        self.storage, self._folder, self._clock = storage, folder, clock
        self._generation = generation
        self._holder = Holder.here(ttl_s)
        self._until = clock.now()  # others wait at least until then
        self._lock = threading.Lock()
        self._ended = False
        self._trouble = ""

    @property
    def is_stale(self) -> bool:
        """Whether others may have taken over by now."""
        return self._clock.now() >= self._until

    def beat(self) -> None:
        """Write a heartbeat, and look whether somebody has taken over; then `lost` is set.

        Raises:
            StorageError: It cannot be told; try again.
        """
        with self._lock:
            if self._ended or self.lost:
                return
            began = self._clock.now()
            self._holder = self._holder.model_copy(update={"beats": self._holder.beats + 1})
            try:
                self.storage.write(self._uri(), self._holder.to_json())
                self._look_up()
            except StorageError as error:
                self._trouble = error.message
                raise
            self._until = began + self.ttl_s

    def check(self) -> None:
        """To be called before something is deleted or published.

        Returns only while the lease is held, and for at least half a time to live from now.

        Raises:
            LeaseLost: Somebody has taken over, or the storage does not answer.
        """
        for _ in range(_TURNS):
            try:
                self.beat()
            except StorageError:
                if self.is_stale:
                    break
                self._clock.sleep(self.ttl_s / 16)
                continue
            if self.lost:
                break
            if self._clock.now() <= self._until - self.ttl_s / 2:
                return
        self.loss_reported = True
        raise self.lose()

    def lose(self) -> LeaseLost:
        """Give it up, for the reason that is known, or because no heartbeat succeeds any more."""
        reason = f": {self._trouble}" if self._trouble else "."
        self.lost = self.lost or LeaseLost(
            f"No heartbeat could be written to {self._folder} for {self.ttl_s:g} s, so another "
            f"run may have taken over{reason}",
            hint="Finished units are kept. Run the same command again when the storage answers.",
        )
        return self.lost

    def release(self) -> None:
        """Let others have it at once. Never raises: it would end by itself."""
        if not self._lock.acquire(timeout=self.ttl_s / 4):
            return  # a heartbeat hangs in the storage
        try:
            self._ended = True
            taken = (
                highest_generation(list_lease_files(self._folder, self.storage)) > self._generation
            )
            if taken:
                self.storage.delete(self._uri())
            else:
                freed = self._holder.model_copy(update={"released": True})
                self.storage.write(self._uri(), freed.to_json())
        except (StorageError, OSError):
            pass
        finally:
            self._lock.release()

    def _uri(self) -> str:
        return join(self._folder, generation_file_name(self._generation))

    def _look_up(self) -> None:
        """Set `lost` if there is a higher generation."""
        if highest_generation(list_lease_files(self._folder, self.storage)) <= self._generation:
            return
        try:
            taker = peek_lease(self._folder, self.storage, self.ttl_s)
        except StorageError:
            taker = None
        words = "" if taker is None else f": {taker.summary()}"
        self.lost = self.lost or LeaseLost(
            f"Another run took over while this one gave no sign of life{words}.",
            hint="Finished units are kept. Let the other run end, or stop it and run the same "
            "command again.",
        )

    def claim(self, seen: LeaseObservation | None) -> bool:
        """Create the file of this generation; `seen` is the free lease it follows.

        Returns:
            Whether this is the lease now. False when somebody else was faster.
        """
        began = self._clock.now()
        if not self.storage.write_if_absent(self._uri(), self._holder.to_json()):
            return False
        self._until = began + self.ttl_s
        try:
            found = list_lease_files(self._folder, self.storage)
            # A higher one: this number was used and cleaned up before.
            if highest_generation(found) != self._generation or not self._outlast(seen, found):
                self.release()
                return False
            with suppress(StorageError):
                for name in found:
                    if is_lease_file(name) and name != generation_file_name(self._generation):
                        self.storage.delete(join(self._folder, name))
        except BaseException:
            self.release()
            raise
        return True

    def _outlast(self, seen: LeaseObservation | None, found: dict[str, Version]) -> bool:
        """Wait for earlier holders that woke up just now; False if this lease is lost meanwhile.

        They notice, or are silent in the end. There are several when one that took over before
        did not get to the end of this either.
        """
        waits: dict[str, tuple[Version, float, float]] = {}  # version, silent since, ttl
        created = found[generation_file_name(self._generation)][1]
        for name, version in found.items():
            if not 0 < highest_generation([name]) < self._generation:
                continue
            if seen and (name, version) == (generation_file_name(seen.generation), seen.version):
                continue
            ttl_s = self._ttl_of(name)
            if ttl_s:
                silent_s = max(0.0, created - version[1] - TICK_S)
                waits[name] = version, self._clock.now() - silent_s, ttl_s
        while waits and self.lost is None:
            asked = self._clock.now()
            found = list_lease_files(self._folder, self.storage)
            for name, (version, since, ttl_s) in list(waits.items()):
                if name not in found or (found[name] == version and asked - since >= ttl_s):
                    del waits[name]
                elif found[name] != version:
                    waits[name] = found[name], self._clock.now(), ttl_s
            if waits:
                self._clock.sleep(_poll(self.ttl_s))
                with suppress(StorageError):
                    self.beat()
        return self.lost is None

    def _ttl_of(self, name: str) -> float:
        """How long an earlier holder may rely on a heartbeat; 0 if it is gone."""
        try:
            holder = Holder.parse(self.storage.read(join(self._folder, name), MAX_BYTES))
        except ObjectNotFound:
            return 0.0
        except ObjectTooLarge:
            holder = None
        if holder is None:
            return self.ttl_s
        return 0.0 if holder.released or holder.exists() is False else holder.ttl_s


def acquire(
    storage: Storage, folder: str, ttl_s: float, notify: Notify, clock: Clock = STEADY_CLOCK
) -> Lease:
    """Wait until the lease is free, which a dead holder's is after its time to live, and take it.

    Raises:
        LeaseHeld: Somebody holds it and is alive.
        StorageError: The lease cannot be read or written.
    """
    for _ in range(_TURNS):
        seen = _wait(storage, folder, ttl_s, notify, clock)
        lease = Lease(storage, folder, (seen.generation if seen else 0) + 1, ttl_s, clock)
        if lease.claim(seen):
            return lease
    raise StorageError(f"{folder} changes hands faster than it can be read.")


def _wait(
    storage: Storage, folder: str, ttl_s: float, notify: Notify, clock: Clock
) -> LeaseObservation | None:
    """The lease once it is free; None when there is none.

    Raises:
        LeaseHeld: It is not, and its holder is alive.
    """
    seen = read_lease(folder, storage, ttl_s)
    if seen is None or seen.state != HELD:
        return seen
    if seen.holder is not None and seen.holder.exists():
        raise _held_by(seen, folder)
    began = clock.now()
    left = seen.ttl_s + TICK_S - (seen.age_s or 0.0)
    notify(
        f"Another run holds this edition ({seen.summary()}). Waiting for a sign of life, at most "
        f"{left:.0f} s."
    )
    while True:
        clock.sleep(min(_poll(seen.ttl_s), left))
        asked = clock.now()
        again = peek_lease(folder, storage, ttl_s)
        if again is None or again.state != HELD:
            return again
        if (again.generation, again.version) != (seen.generation, seen.version):
            raise _held_by(again, folder)
        if asked - began >= left:
            notify("It gave none; its lease has ended.")
            return again


def _poll(ttl_s: float) -> float:
    return min(ttl_s / 20, _LONGEST_POLL_S)


def _held_by(seen: LeaseObservation, folder: str) -> LeaseHeld:
    ago = "just now" if not seen.age_s else f"{seen.age_s:.0f} s ago"
    return LeaseHeld(
        f"Another run is at work on this edition: {seen.summary()}; last sign of life {ago} "
        f"({folder}).",
        hint="Let it end, or stop it and run the same command again: that goes on from what is "
        f"done. If it is dead, its lease ends within {seen.ttl_s:.0f} s.",
    )


@contextmanager
def hold_lease(
    storage: Storage,
    prefix: str,
    ttl_s: float,
    notify: Notify = lambda text: None,
    heartbeats: Storage | None = None,
) -> Iterator[Lease]:
    """Hold the lease of an edition for the block; see `acquire` for what can go wrong.

    Heartbeats are written by a thread. When the lease is lost, the block is interrupted as Ctrl-C
    would, if it runs in the main thread, and `LeaseLost` comes out; elsewhere `Lease.check` tells.

    Args:
        prefix: URI of the edition.
        ttl_s: Seconds of silence after which others may take over.
        say: Takes sentences for people while there is waiting.
        heartbeats: The storage with limits that heartbeats should have; see `heartbeat_options`.

    Raises:
        LeaseLost: The block broke off after the lease was lost.
    """
    lease = acquire(storage, join(prefix, FOLDER), ttl_s, notify)
    lease.storage = heartbeats or storage
    try:
        with HeartbeatThread(lease):
            yield lease
    except LeaseLost:
        raise
    except BaseException as error:
        if lease.lost is not None:
            raise lease.lost from error
        raise
    finally:
        lease.release()
