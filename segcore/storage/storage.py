"""The only door to bytes: list, read, read a range, write atomically; on disk or object stores.

A URI is an absolute local path, `s3://bucket/key`, `gs://…` or `az://…` (the last two share the
code but are not exercised by the tests of this project). Errors are `ObjectNotFound`,
`AccessDenied` and `StorageError`, each one sentence; none of them shows a secret.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field

from segcore.errors import ObjectNotFound, StorageError
from segcore.storage import local_disk, object_store
from segcore.storage.listing import Listing
from segcore.storage.remote_file import FastRemoteFile, RemoteFile
from segcore.storage.uris import is_remote, normalize, split

_LISTING_BATCH = 10_000
_STREAM_BUFFER = 1 << 20


class ObjectTooLarge(StorageError):
    """The object is larger than the caller is ready to hold in memory."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object or file.

    Attributes:
        uri: Canonical URI.
        size: Bytes; -1 when it cannot be known (a broken or refused link).
        etag: Version; of a file `<mtime ns, hex>-<size, hex>`. One that starts with "!" marks
            what is listed but may not be read (`OUTSIDE_LINK` and others of `local_disk`).
    """

    uri: str
    size: int
    etag: str


class StorageOptions(BaseModel):
    """How object stores are reached (configuration section `storage`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint_url: str | None = Field(
        default=None, description="S3 endpoint; default AWS_ENDPOINT_URL, then AWS itself."
    )
    region: str | None = Field(
        default=None, description="Default AWS_REGION, the profile, us-east-1."
    )
    anonymous: bool = Field(default=False, description="Do not sign requests (public buckets).")
    retries: int = Field(default=8, ge=0, le=50, description="Retries of one request.")
    timeout_s: float = Field(default=60.0, gt=0, description="Time limit of one request, seconds.")


class Storage:
    """Local disk and object stores behind the same few methods.

    May be pickled (clients are made again, lazily, in each process) and used from many threads.
    """

    def __init__(self, options: StorageOptions | None = None) -> None:
        self.options = options or StorageOptions()
        self._stores: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"options": self.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["options"])  # type: ignore[misc]

    def _store(self, uri: str) -> Any:
        scheme, bucket, _ = split(uri)
        name = f"{scheme}://{bucket}"
        with self._lock:
            if name not in self._stores:
                self._stores[name] = object_store.connect(uri, self.options)
            return self._stores[name]

    def stat(self, uri: str) -> ObjectInfo:
        """Size and version of one object; a folder counts as absent."""
        uri = normalize(uri)
        if is_remote(uri):
            size, etag = object_store.stat(self._store(uri), uri)
        else:
            size, etag = local_disk.stat(uri)
        return ObjectInfo(uri, size, etag)

    def exists(self, uri: str) -> bool:
        """Whether an object (not a folder) of this name exists."""
        try:
            self.stat(uri)
        except ObjectNotFound:
            return False
        return True

    def listing(self, prefix: str, follow_links: bool = False) -> Listing:
        """All objects below the folder `prefix`, recursively; compact, sorted by uri.

        An absent folder gives no rows. On disk, names that start with a dot are skipped, and
        links are handled as `local_disk.walk` says.
        """
        prefix = normalize(prefix)
        if is_remote(prefix):
            return Listing.from_rows(object_store.walk(self._store(prefix), prefix))
        return Listing.from_rows(local_disk.walk(prefix, follow_links))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The rows of `listing`, one by one."""
        for batch in self.listing(prefix).to_batches(_LISTING_BATCH):
            columns = (batch.column(name).to_pylist() for name in Listing.schema.names)
            for uri, size, etag in zip(*columns, strict=True):
                yield ObjectInfo(uri, size, etag)

    def list_dated(self, prefix: str) -> Iterator[tuple[ObjectInfo, float]]:
        """All objects below the folder `prefix` and when each was last changed.

        Seconds since 1970 by the clock of the store (local files: of the file system).
        """
        prefix = normalize(prefix)
        if is_remote(prefix):
            for uri, size, etag, changed in object_store.walk_dated(self._store(prefix), prefix):
                yield ObjectInfo(uri, size, etag), changed
            return
        for uri, size, etag in local_disk.walk(prefix, False):
            changed_ns = etag.partition("-")[0]
            if etag and not etag.startswith("!"):
                yield ObjectInfo(uri, size, etag), int(changed_ns, 16) / 1e9

    def read(self, uri: str, max_bytes: int | None = None) -> bytes:
        """The whole object.

        Raises:
            ObjectTooLarge: It has more than `max_bytes`; nothing of it was read.
        """
        uri = normalize(uri)

        def check_size(size: int) -> None:
            if max_bytes is not None and size > max_bytes:
                raise ObjectTooLarge(f"{uri} has {size:,} bytes; the limit is {max_bytes:,}.")

        if is_remote(uri):
            return object_store.read(self._store(uri), uri, check_size)
        check_size(local_disk.stat(uri)[0])
        with local_disk.open_file(uri) as file, local_disk.translated(uri):
            # bounded again: a pipe or a growing file has no size worth trusting
            data = file.read() if max_bytes is None else file.read(max_bytes + 1)
        check_size(len(data))
        return data

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        """`length` bytes from byte `start` on; fewer where the object ends."""
        uri = normalize(uri)
        if is_remote(uri):
            return object_store.read_range(self._store(uri), uri, start, length)
        with local_disk.open_file(uri) as file, local_disk.translated(uri):
            file.seek(start)
            return file.read(length)

    def open(self, uri: str, buffer_bytes: int = 4 << 20) -> BinaryIO:
        """The object as a seekable file; remote ones are read by `buffer_bytes` at a time."""
        uri = normalize(uri)
        if not is_remote(uri):
            return local_disk.open_file(uri)
        file = RemoteFile(self._fetcher(uri), self.stat(uri).size)
        return io.BufferedReader(file, buffer_bytes)

    def stream(self, info: ObjectInfo, until: int = 0) -> BinaryIO:
        """An object as a seekable file for those who read much of it.

        Of a remote one, long reads are several requests at once, and the bytes before `until` are
        fetched before they are asked for.
        """
        if not is_remote(info.uri):
            return local_disk.open_file(info.uri)
        file = FastRemoteFile(self._fetcher(info.uri), info.size, until)
        return io.BufferedReader(file, _STREAM_BUFFER)

    def _fetcher(self, uri: str) -> Callable[[int, int], bytes]:
        return partial(object_store.read_range, self._store(uri), uri)

    def write(self, uri: str, data: bytes) -> None:
        """Replace the object at once: readers see the old or the whole new content."""
        uri = normalize(uri)
        if is_remote(uri):
            object_store.write(self._store(uri), uri, data)
        else:
            local_disk.write(uri, data)

    def write_if_absent(self, uri: str, data: bytes) -> bool:
        """Create the object unless it exists; of many racers exactly one gets True."""
        uri = normalize(uri)
        if is_remote(uri):
            return object_store.write_if_absent(self._store(uri), uri, data)
        return local_disk.write_if_absent(uri, data)

    def delete(self, uri: str) -> None:
        """Remove the object; absent is fine."""
        uri = normalize(uri)
        if is_remote(uri):
            object_store.delete(self._store(uri), uri)
        else:
            local_disk.delete(uri)
