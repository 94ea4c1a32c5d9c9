"""Bytes anywhere: local disk and object stores behind one interface."""

from segcore.storage.storage import ObjectInfo, ObjectTooLarge, Storage, StorageOptions
from segcore.storage.uris import is_remote, join, normalize

__all__ = [
    "ObjectInfo",
    "ObjectTooLarge",
    "Storage",
    "StorageOptions",
    "is_remote",
    "join",
    "normalize",
]
