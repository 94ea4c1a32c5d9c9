"""Holding a lease for a block of code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from segcore.lease.acquire import Notify, acquire
from segcore.lease.heartbeat import HeartbeatThread
from segcore.lease.lease import Lease, LeaseLost
from segcore.storage import Storage, StorageOptions


@contextmanager
def hold_lease(
    storage: Storage,
    folder: str,
    ttl_s: float,
    notify: Notify = lambda text: None,
    heartbeat_storage: Storage | None = None,
    what: str = "edition",
) -> Iterator[Lease]:
    """Hold the lease in a folder while the block runs; see `acquire` for what can go wrong.

    A thread writes the heartbeats. If the lease is lost while the block runs in the main thread,
    the block is interrupted as by Ctrl-C, and `LeaseLost` is raised. In another thread, only
    `Lease.check` tells.

    Args:
        storage: Where the lease is.
        folder: URI of the folder of the lease.
        ttl_s: Seconds without a heartbeat after which others may take over.
        notify: Takes sentences for people while waiting.
        heartbeat_storage: The storage with the limits for heartbeats; see `heartbeat_options`.
        what: What the lease is of, in messages.

    Raises:
        LeaseLost: The block was ended because the lease was lost.
    """
    lease = acquire(storage, folder, ttl_s, notify, what=what)
    lease.storage = heartbeat_storage or storage
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


def heartbeat_options(options: StorageOptions, ttl_s: float) -> StorageOptions:
    """Limits that let several heartbeats fail before a time to live is over."""
    timeout_s = min(options.timeout_s, ttl_s / 8)
    return options.model_copy(update={"retries": min(options.retries, 1), "timeout_s": timeout_s})
