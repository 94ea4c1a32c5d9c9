"""Checkpoints in object stores; `segcore.models` knows no storage."""

from __future__ import annotations

from segcore.errors import CheckpointError, ObjectNotFound
from segcore.models.downloads import MAX_BYTES
from segcore.storage import Storage
from segcore.storage.uris import is_remote


def read_object_weights(name: str, storage: Storage) -> bytes | None:
    """The bytes of the checkpoint at s3://, gs:// or az://; None for names of any other kind.

    Raises:
        CheckpointError: There is no such object.
        StorageError: It cannot be read.
    """
    if not is_remote(name) or name.lower().startswith(("http://", "https://")):
        return None
    try:
        return storage.read(name, MAX_BYTES)
    except ObjectNotFound:
        raise CheckpointError(f"There is no model at {name}.") from None
