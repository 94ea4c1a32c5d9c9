"""The `storage` argument of the public functions."""

from __future__ import annotations

from segcore.storage import Storage, StorageOptions

AnyStorage = Storage | StorageOptions | None


def open_storage(storage: AnyStorage) -> Storage:
    """The storage that was given, or one with the options that were given."""
    return storage if isinstance(storage, Storage) else Storage(storage)
