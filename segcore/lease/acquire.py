"""Acquiring a lease: wait until it is free, then claim its next generation."""

from __future__ import annotations

from collections.abc import Callable

from segcore.errors import StorageError
from segcore.lease.clock import SYSTEM_CLOCK, SteadyClock
from segcore.lease.lease import Lease, LeaseHeld, poll_interval_s
from segcore.lease.observation import (
    HELD,
    TIMESTAMP_RESOLUTION_S,
    LeaseObservation,
    peek_lease,
    read_lease,
)
from segcore.storage import Storage

_MAX_ATTEMPTS = 20

Notify = Callable[[str], None]


def acquire(
    storage: Storage,
    folder: str,
    ttl_s: float,
    notify: Notify,
    clock: SteadyClock = SYSTEM_CLOCK,
    what: str = "edition",
) -> Lease:
    """Wait until the lease is free, which a dead holder's is after its time to live, and take it.

    Args:
        what: What the lease is of, in messages: ``edition`` or ``output``.

    Raises:
        LeaseHeld: Another process holds it and is alive.
        StorageError: The lease cannot be read or written.
    """
    for _ in range(_MAX_ATTEMPTS):
        free_lease = _wait_until_free(storage, folder, ttl_s, notify, clock, what)
        generation = (free_lease.generation if free_lease else 0) + 1
        lease = Lease(storage, folder, generation, ttl_s, clock)
        if lease.try_claim(free_lease):
            return lease
    raise StorageError(f"The lease in {folder} changes hands faster than it can be read.")


def refuse_if_held(storage: Storage, folder: str, ttl_s: float) -> None:
    """Refuse a lease whose holder is certainly alive, before time goes into what needs it.

    Writes nothing and does not wait; `acquire` decides.

    Raises:
        LeaseHeld: A process of this machine holds it.
        StorageError: The lease cannot be read.
    """
    lease = peek_lease(storage, folder, ttl_s)
    if lease is not None and lease.state == HELD and lease.holder and lease.holder.exists():
        raise _held_error(lease, folder, "edition")


def _wait_until_free(
    storage: Storage, folder: str, ttl_s: float, notify: Notify, clock: SteadyClock, what: str
) -> LeaseObservation | None:
    """The lease once it is free; None if there is none.

    Raises:
        LeaseHeld: It is held, and its holder is alive.
    """
    first = read_lease(storage, folder, ttl_s)
    if first is None or first.state != HELD:
        return first
    if first.holder is not None and first.holder.exists():
        raise _held_error(first, folder, what)
    started = clock.now()
    expires_in_s = first.ttl_s + TIMESTAMP_RESOLUTION_S - (first.age_s or 0.0)
    notify(
        f"Another run holds this {what} ({first.summary()}). Waiting for a heartbeat for up to "
        f"{expires_in_s:.0f} s."
    )
    while True:
        clock.sleep(min(poll_interval_s(first.ttl_s), expires_in_s))
        looked_at = clock.now()
        latest = peek_lease(storage, folder, ttl_s)
        if latest is None or latest.state != HELD:
            return latest
        if (latest.generation, latest.version) != (first.generation, first.version):
            raise _held_error(latest, folder, what)
        if looked_at - started >= expires_in_s:
            notify("There was no heartbeat; the lease of the other run has expired.")
            return latest


def _held_error(observation: LeaseObservation, folder: str, what: str) -> LeaseHeld:
    age = "just now" if not observation.age_s else f"{observation.age_s:.0f} s ago"
    return LeaseHeld(
        f"Another run is working on this {what}: {observation.summary()}; last heartbeat {age} "
        f"({folder}).",
        hint="Wait for it to end, or stop it and rerun the same command to resume. If it has died, "
        f"its lease expires within {observation.ttl_s:.0f} s.",
    )
