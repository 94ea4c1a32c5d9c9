"""All access to bytes: list, read, read a range, write atomically; on disk or in object stores.

A URI is an absolute local path, `s3://bucket/key`, `gs://…` or `az://…` (the last two share the
code, but the tests of this project do not cover them). Errors are `ObjectNotFound`, `AccessDenied`
and `StorageError`, each one sentence; none of them shows a secret.
"""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field

from segcore.errors import ObjectNotFound, StorageError
from segcore.storage import local_disk, object_store, s3_client, s3_listing
from segcore.storage.listing import Listing
from segcore.storage.remote_file import PrefetchingRemoteFile, RemoteFile
from segcore.storage.uris import (
    is_remote,
    normalize,
    normalize_input,
    normalize_object,
    scheme_of,
    split,
)

_LISTING_BATCH_ROWS = 10_000
_DELETES_AT_ONCE = 1000
_STREAM_BUFFER_BYTES = 1 << 20


class ObjectTooLarge(StorageError):
    """The object is larger than the caller is willing to hold in memory."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object or file.

    Attributes:
        uri: Canonical URI.
        size: Bytes; -1 if it cannot be known (a broken or refused link).
        etag: Version; for a file `<mtime in ns, hex>-<size, hex>`. An etag that starts with "!"
            marks an entry that is listed but must not be read (`OUTSIDE_LINK` and the other markers
            in `local_disk`).
    """

    uri: str
    size: int
    etag: str


class StorageOptions(BaseModel):
    """How object stores are accessed (configuration section `storage`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint_url: str | None = Field(
        default=None, description="S3 endpoint; by default AWS_ENDPOINT_URL, then AWS itself."
    )
    region: str | None = Field(
        default=None,
        description="S3 region; by default AWS_REGION, then the profile's, then us-east-1.",
    )
    anonymous: bool = Field(default=False, description="Do not sign requests (public buckets).")
    requester_pays: bool = Field(
        default=False,
        description="Pay for the requests to S3 buckets whose owners ask for that.",
    )
    retries: int = Field(default=8, ge=0, le=50, description="How often one request is retried.")
    timeout_s: float = Field(
        default=60.0, gt=0, description="Time limit of one request in seconds."
    )


class Storage:
    """Local disk and object stores behind the same few methods.

    Can be pickled (each process creates its own clients when it first needs them) and used from
    many threads.

    Attributes:
        witnesses: Bucket -> objects in it that this process could read lately; see
            `segcore.sources.outages`.
    """

    def __init__(self, options: StorageOptions | None = None) -> None:
        self.options = options or StorageOptions()
        self.witnesses: dict[str, deque[str]] = {}
        self._stores: dict[str, Any] = {}
        self._s3_client: s3_client.S3Client | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"options": self.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["options"])  # type: ignore[misc]

    def _store(self, uri: str) -> Any:
        scheme, bucket, _ = split(uri)
        bucket_uri = f"{scheme}://{bucket}"
        with self._lock:
            if bucket_uri not in self._stores:
                self._stores[bucket_uri] = object_store.connect(uri, self.options)
            return self._stores[bucket_uri]

    def _client(self, uri: str) -> s3_client.S3Client:
        with self._lock:
            if self._s3_client is None:
                self._s3_client = s3_client.connect(uri, self.options)
            return self._s3_client

    def stat(self, uri: str) -> ObjectInfo:
        """Size and version of one object; a folder counts as missing."""
        uri = normalize_object(uri)
        if not is_remote(uri):
            size, etag = local_disk.stat(uri)
        elif s3_client.is_needed(uri):
            size, etag = s3_client.stat(self._client(uri), uri)
        else:
            size, etag = object_store.stat(self._store(uri), uri)
        return ObjectInfo(uri, size, etag)

    def exists(self, uri: str) -> bool:
        """Whether an object (not a folder) with this URI exists."""
        try:
            self.stat(uri)
        except ObjectNotFound:
            return False
        return True

    def listing(
        self, prefix: str, follow_links: bool = False, *, show_hidden: bool = False
    ) -> Listing:
        """All objects below the folder `prefix`, recursively; compact, sorted by URI.

        A missing folder has no rows. On disk, names that start with a dot and links are handled as
        described at `local_disk.walk`.
        """
        prefix = normalize_input(prefix)
        if scheme_of(prefix) == "s3":
            client = self._client(prefix)
            try:
                return Listing.from_rows(s3_listing.walk(client, prefix))
            except s3_listing.NotInOrder:
                return Listing.from_rows(s3_listing.walk(client, prefix, cut=False))
        if is_remote(prefix):
            rows = (row[:3] for row in object_store.walk(self._store(prefix), prefix))
            return Listing.from_rows(rows)
        return Listing.from_rows(local_disk.walk(prefix, follow_links, show_hidden=show_hidden))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The rows of `listing`, one by one."""
        for batch in self.listing(prefix).to_batches(_LISTING_BATCH_ROWS):
            columns = (batch.column(name).to_pylist() for name in Listing.schema.names)
            for uri, size, etag in zip(*columns, strict=True):
                yield ObjectInfo(uri, size, etag)

    def list_pages_from(self, uri: str) -> Iterator[Sequence[ObjectInfo]]:
        """The objects in the folder of an object of S3, from that object on, page by page.

        In the order of the server. Folders inside it are not entered.
        """
        uri = normalize_object(uri)
        for rows in s3_listing.walk_folder_from(self._client(uri), uri):
            yield [ObjectInfo(*row[:3]) for row in rows]

    def list_with_times(self, prefix: str) -> Iterator[tuple[ObjectInfo, float]]:
        """All objects below the folder `prefix`, each with the time of its last change.

        Times are in seconds since 1970 by the clock of the store (local files: of the file system).
        """
        prefix = normalize_input(prefix)
        if is_remote(prefix):
            if scheme_of(prefix) == "s3":
                walk = s3_listing.walk_with_times(self._client(prefix), prefix)
            else:
                walk = object_store.walk(self._store(prefix), prefix)
            for uri, size, etag, changed_s in walk:
                yield ObjectInfo(uri, size, etag), changed_s
            return
        for uri, size, etag in local_disk.walk(prefix, False):
            if etag and not etag.startswith("!"):
                yield ObjectInfo(uri, size, etag), _changed_s(etag)

    def list_folder(self, prefix: str) -> Iterator[tuple[ObjectInfo, float]]:
        """As `list_with_times`, but only the objects directly in the folder `prefix`.

        Folders in it cost nothing, whatever they hold. On disk, links are left out.
        """
        prefix = normalize(prefix)
        rows: Iterable[tuple[str, int, str, float]]
        if not is_remote(prefix):
            rows = ((*row, _changed_s(row[2])) for row in local_disk.files(prefix))
        elif scheme_of(prefix) == "s3":
            rows = s3_listing.files(self._client(prefix), prefix)
        else:
            rows = object_store.files(self._store(prefix), prefix)
        for uri, size, etag, changed_s in rows:
            yield ObjectInfo(uri, size, etag), changed_s

    def folders(self, prefix: str) -> Sequence[str]:
        """URIs of the folders directly in the folder `prefix`, sorted; nothing else is listed.

        On disk, names that start with a dot are skipped. A missing folder has none.
        """
        prefix = normalize(prefix)
        if not is_remote(prefix):
            return local_disk.folders(prefix)
        if scheme_of(prefix) == "s3":
            return s3_listing.folders(self._client(prefix), prefix)
        return object_store.folders(self._store(prefix), prefix)

    def read(self, uri: str, max_bytes: int | None = None) -> bytes:
        """The whole object.

        Raises:
            ObjectTooLarge: It has more than `max_bytes` bytes; none of them were read.
        """
        return self.read_version(uri, max_bytes)[0]

    def read_version(self, uri: str, max_bytes: int | None = None) -> tuple[bytes, str]:
        """(the whole object, its etag): both of the same version.

        Raises:
            ObjectTooLarge: See `read`.
        """
        uri = normalize_object(uri)

        def check_size(size: int) -> None:
            if max_bytes is not None and size > max_bytes:
                raise ObjectTooLarge(f"{uri} has {size:,} bytes; the limit is {max_bytes:,}.")

        if not is_remote(uri):
            return local_disk.read(uri, check_size, max_bytes)
        if s3_client.is_needed(uri):
            return s3_client.read(self._client(uri), uri, check_size)
        return object_store.read(self._store(uri), uri, check_size)

    def listed_etag(self, uri: str) -> str:
        """The etag that a listing shows for this object now; "" if it shows none."""
        uri = normalize_object(uri)
        if scheme_of(uri) == "s3":
            return s3_listing.listed_etag(self._client(uri), uri)
        return self.stat(uri).etag

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        """`length` bytes from byte `start` on; fewer at the end of the object."""
        uri = normalize_object(uri)
        if is_remote(uri):
            return self._range_reader(uri)(start, length)
        with local_disk.open_file(uri) as file, local_disk.translate_errors(uri):
            file.seek(start)
            return file.read(length)

    def open(self, uri: str, buffer_bytes: int = 4 << 20) -> BinaryIO:
        """The object as a seekable file; a remote one is read `buffer_bytes` at a time."""
        uri = normalize_object(uri)
        if not is_remote(uri):
            return local_disk.open_file(uri)
        file = RemoteFile(self._range_reader(uri), self.stat(uri).size)
        return io.BufferedReader(file, buffer_bytes)

    def stream(self, info: ObjectInfo, prefetch_until: int = 0) -> BinaryIO:
        """An object as a seekable file for callers that read much of it.

        For a remote object, a long read is split into concurrent requests, and the bytes before
        position `prefetch_until` are fetched before they are read.
        """
        if not is_remote(info.uri):
            return local_disk.open_file(info.uri)
        file = PrefetchingRemoteFile(self._range_reader(info.uri), info.size, prefetch_until)
        return io.BufferedReader(file, _STREAM_BUFFER_BYTES)

    def _range_reader(self, uri: str) -> Callable[[int, int], bytes]:
        if s3_client.is_needed(uri):
            return partial(s3_client.read_range, self._client(uri), uri)
        return partial(object_store.read_range, self._store(uri), uri)

    def write(self, uri: str, data: bytes | memoryview) -> ObjectInfo:
        """Replace the object atomically: readers see either the old or all of the new content.

        Returns:
            What was written, as a listing shows it; with an empty etag where the store gives none.
        """
        uri = normalize(uri)
        if is_remote(uri):
            etag = object_store.write(self._store(uri), uri, data)
        else:
            etag = local_disk.write(uri, data)
        return ObjectInfo(uri, len(data), etag)

    def write_with(self, uri: str, write: Callable[[BinaryIO], None]) -> None:
        """As `write`, for content that need not fit into memory: `write` puts it into a file."""
        uri = normalize(uri)
        if is_remote(uri):
            object_store.write_with(self._store(uri), uri, write)
        else:
            local_disk.write_with(uri, write)

    def write_if_absent(self, uri: str, data: bytes) -> bool:
        """Create the object unless it exists; of concurrent callers exactly one gets True."""
        uri = normalize(uri)
        if is_remote(uri):
            return object_store.write_if_absent(self._store(uri), uri, data)
        return local_disk.write_if_absent(uri, data)

    def link_or_copy(self, source: str, target: str) -> None:
        """Give an object that is never changed in place a second name, in the same bucket or disk.

        On disk it is a hard link where that is possible, and nothing is done if the name exists.
        Object stores copy it themselves.
        """
        source, target = normalize_object(source), normalize(target)
        if is_remote(source):
            object_store.copy(self._store(source), source, target)
        else:
            local_disk.link_or_copy(source, target)

    def delete(self, uri: str) -> None:
        """Delete the object if it exists."""
        uri = normalize(uri)
        if is_remote(uri):
            object_store.delete(self._store(uri), uri)
        else:
            local_disk.delete(uri)

    def delete_all(self, uris: Iterable[str]) -> None:
        """Delete these objects, those that exist; in object stores many with one request."""
        by_bucket: dict[tuple[str, str], list[str]] = {}
        for uri in map(normalize, uris):
            if is_remote(uri):
                by_bucket.setdefault(split(uri)[:2], []).append(uri)
            else:
                local_disk.delete(uri)
        for group in by_bucket.values():
            for start in range(0, len(group), _DELETES_AT_ONCE):
                batch = group[start : start + _DELETES_AT_ONCE]
                object_store.delete_all(self._store(batch[0]), batch)


def _changed_s(file_etag: str) -> float:
    """When a file changed last, from its etag: seconds since 1970."""
    return int(file_etag.partition("-")[0], 16) / 1e9
