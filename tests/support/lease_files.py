"""Leases for tests: files of holders that do not exist, and leases acquired without a run."""

from __future__ import annotations

import time

import pytest

from segcore.lease.acquire import acquire
from segcore.lease.clock import SteadyClock
from segcore.lease.holder import Holder
from segcore.lease.lease import Lease
from segcore.storage import Storage, join

storage = Storage()


def lease_folder(prefix: str) -> str:
    """URI of the folder of the lease of an edition."""
    return join(prefix, "lease")


def foreign_holder(ttl_s: float = 1.0, **changes: object) -> Holder:
    """A holder on another machine, of which nothing is known here."""
    foreign = {"machine": "f" * 16, "host": "far-away", "pid": 4711, **changes}
    return Holder.of_current_process(ttl_s).model_copy(update=foreign)


def write_lease_file(prefix: str, holder: Holder, generation: int = 3) -> str:
    """Write the file of a generation as its holder would; returns its URI."""
    uri = join(lease_folder(prefix), f"{generation:08d}.json")
    storage.write(uri, holder.to_json())
    return uri


def acquire_lease(prefix: str, ttl_s: float = 1.0, clock: SteadyClock | None = None) -> Lease:
    """The lease of an edition, without heartbeats."""
    args = (storage, lease_folder(prefix), ttl_s, lambda text: None)
    return acquire(*args) if clock is None else acquire(*args, clock)


def no_wait_clock() -> SteadyClock:
    """A clock that fails the test when something waits."""
    return SteadyClock(time.monotonic, lambda seconds: pytest.fail("it waited"))
