"""Leases for tests: written by hand, and taken without a run."""

from __future__ import annotations

import time

import pytest

from segcore.lease.holder import Holder
from segcore.lease.lease import FOLDER, Clock, Lease, acquire
from segcore.storage import Storage, join

storage = Storage()


def elsewhere(ttl_s: float = 1.0, **changes: object) -> Holder:
    """A holder on a machine of which nothing is known here."""
    there = {"machine": "f" * 16, "host": "far-away", "pid": 4711, **changes}
    return Holder.here(ttl_s).model_copy(update=there)


def put(folder: str, holder: Holder, generation: int = 3) -> str:
    uri = join(folder, FOLDER, f"{generation:08d}.json")
    storage.write(uri, holder.to_json())
    return uri


def take(folder: str, ttl_s: float = 1.0, clock: Clock | None = None) -> Lease:
    args = (storage, join(folder, FOLDER), ttl_s, lambda text: None)
    return acquire(*args) if clock is None else acquire(*args, clock)


def at_once() -> Clock:
    """A clock with which nobody can wait."""
    return Clock(time.monotonic, lambda seconds: pytest.fail("it waited"))
