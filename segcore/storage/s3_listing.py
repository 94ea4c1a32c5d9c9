"""Listing S3: all objects below a prefix, large folders at the same time.

A listing is a chain of pages; each request needs the token of the answer before it, so one chain of
1,000 keys a page takes hours for a hundred million keys. The folders of a prefix are chains of
their own, and several are followed at once. Nothing here relies on the order in which a server
lists, which not all servers keep as S3 documents it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from segcore.storage.s3_client import S3Client, clean_etag, translate_errors, with_retries
from segcore.storage.uris import split

Row: TypeAlias = tuple[str, int, str, str]  # uri, size, etag, time of the last change as ISO 8601

_WORKERS = 16
_ENOUGH_CHAINS = 64  # chains in progress or waiting; with so many, no more folders are opened
# A page with more folders than this shows a prefix of many folders; whether each is worth a request
# of its own is then found out by looking into some of them.
_MANY_FOLDERS = 100
_SAMPLED_FOLDERS = 3
_PAGES_AHEAD = 64


def walk(client: S3Client, uri: str) -> Iterator[tuple[str, int, str]]:
    """(uri, size, etag) of all objects below the prefix, in no particular order.

    Empty objects whose key ends with a slash are left out: programs that show folders write them as
    marks of empty ones.
    """
    for page in _walk_pages(client, uri):
        for row in page:
            yield row[:3]


def walk_with_times(client: S3Client, uri: str) -> Iterator[tuple[str, int, str, float]]:
    """The rows of `walk` with the time of the last change.

    Times are in seconds since 1970 by the clock of the store.
    """
    for page in _walk_pages(client, uri):
        for object_uri, size, etag, changed in page:
            yield object_uri, size, etag, datetime.fromisoformat(changed).timestamp()


def files(client: S3Client, uri: str) -> Iterator[tuple[str, int, str, float]]:
    """The rows of `walk_with_times` for the objects directly below the prefix."""
    for page in _list_folder(client, uri):
        for object_uri, size, etag, changed in page.rows:
            yield object_uri, size, etag, datetime.fromisoformat(changed).timestamp()


def _list_folder(client: S3Client, uri: str) -> Iterator[_Page]:
    """The pages of a prefix; folders below it are not entered."""
    _, bucket, key = split(uri)
    return _list_pages(client, bucket, {"Prefix": f"{key}/" if key else "", "Delimiter": "/"})


def _walk_pages(client: S3Client, uri: str) -> Iterator[list[Row]]:
    _, bucket, key = split(uri)
    return _Walk(client, bucket).pages(f"{key}/" if key else "")


def walk_folder_from(client: S3Client, uri: str) -> Iterator[list[Row]]:
    """The objects in the folder of this object, from this object on, page by page.

    In the order of the server. Folders inside it are not entered.
    """
    _, bucket, key = split(uri)
    folder = key[: key.rfind("/") + 1]
    # A page starts after a key; the longest text before this key is shorter by one letter.
    arguments = {"Prefix": folder, "Delimiter": "/", "StartAfter": key[:-1]}
    for page in _list_pages(client, bucket, arguments):
        yield page.rows


def folders(client: S3Client, uri: str) -> list[str]:
    """URIs of the folders directly below the prefix, sorted; those without a name are left out."""
    _, bucket, key = split(uri)
    start = f"{key}/" if key else ""
    prefixes = [
        prefix.removesuffix("/") for page in _list_folder(client, uri) for prefix in page.folders
    ]
    return sorted(f"s3://{bucket}/{prefix}" for prefix in prefixes if prefix.removeprefix(start))


def listed_etag(client: S3Client, uri: str) -> str:
    """The etag that a listing shows for an object now; "" if it shows none."""
    _, bucket, key = split(uri)
    page = next(_list_pages(client, bucket, {"Prefix": key, "MaxKeys": 1}))
    return page.first_etag if page.first_key == key else ""


@dataclass(frozen=True)
class _Page:
    """One answer to a listing request.

    Attributes:
        rows: Its objects, without the marks of empty folders.
        folders: Prefixes of the folders that were not entered; each ends with a slash.
        is_last: Whether the chain ends here.
        first_key, first_etag: Of its first object, mark or not; "" if there is none.
    """

    rows: list[Row]
    folders: list[str]
    is_last: bool
    first_key: str
    first_etag: str


def _list_pages(client: S3Client, bucket: str, arguments: dict[str, Any]) -> Iterator[_Page]:
    """The pages of one chain."""
    request = {"Bucket": bucket, **arguments, **client.payer}
    with translate_errors(f"s3://{bucket}/{arguments['Prefix']}"):
        while True:
            answer = with_retries(client, lambda: client.client.list_objects_v2(**request))
            page = _parse_page(bucket, answer)
            yield page
            if page.is_last:
                return
            request["ContinuationToken"] = answer["NextContinuationToken"]


def _parse_page(bucket: str, answer: dict[str, Any]) -> _Page:
    items = answer.get("Contents", ())
    rows = [
        (f"s3://{bucket}/{item['Key']}", item["Size"], clean_etag(item), item["LastModified"])
        for item in items
        if item["Size"] or not item["Key"].endswith("/")
    ]
    return _Page(
        rows=rows,
        folders=[folder["Prefix"] for folder in answer.get("CommonPrefixes", ())],
        is_last=not answer.get("IsTruncated"),
        first_key=items[0]["Key"] if items else "",
        first_etag=clean_etag(items[0]) if items else "",
    )


@dataclass(frozen=True)
class _ChainEnd:
    """A chain has ended, or broken off with an error."""

    error: BaseException | None


class _Walk:
    """One listing in progress: threads follow chains, the caller takes pages."""

    def __init__(self, client: S3Client, bucket: str) -> None:
        self._client = client
        self._bucket = bucket
        self._results: queue.Queue[_Page | _ChainEnd] = queue.Queue(_PAGES_AHEAD)
        self._stopped = threading.Event()
        self._open_chains = 0

    def pages(self, prefix: str) -> Iterator[list[Row]]:
        """The rows of all chains below `prefix`, page by page, as they come."""
        executor = ThreadPoolExecutor(_WORKERS, thread_name_prefix="segcore-list")
        try:
            self._submit(executor, prefix)
            while self._open_chains:
                result = self._results.get()
                if isinstance(result, _ChainEnd):
                    if result.error is not None:
                        raise result.error
                    self._open_chains -= 1
                    continue
                for folder in result.folders:
                    self._submit(executor, folder)
                if result.rows:
                    yield result.rows
        finally:
            self._stopped.set()
            executor.shutdown(wait=False, cancel_futures=True)

    def _submit(self, executor: ThreadPoolExecutor, prefix: str) -> None:
        self._open_chains += 1
        executor.submit(self._follow, prefix)

    def _follow(self, prefix: str) -> None:
        """Put the pages of a prefix, and then a `_ChainEnd`."""
        error: BaseException | None = None
        try:
            for page in self._chain(prefix):
                self._put(page)
                if self._stopped.is_set():
                    return
        except BaseException as raised:  # belongs to the thread that takes the pages
            error = raised
        self._put(_ChainEnd(error))

    def _put(self, result: _Page | _ChainEnd) -> None:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._results.put(result, timeout=1)
                return

    def _chain(self, prefix: str) -> Iterator[_Page]:
        """The pages of `prefix`, with its folders left for other chains where that is faster."""
        pages = self._list(prefix)
        first = next(pages)
        if not first.is_last and self._open_chains < _ENOUGH_CHAINS:
            unentered = self._list(prefix, Delimiter="/")
            first_unentered = next(unentered)
            if self._are_worth_a_chain(first_unentered):
                first, pages = first_unentered, unentered
        yield first
        yield from pages

    def _are_worth_a_chain(self, page: _Page) -> bool:
        """Whether the folders of the first page of a prefix are large, or few."""
        if len(page.folders) <= _MANY_FOLDERS:
            return True
        step = len(page.folders) // _SAMPLED_FOLDERS
        sampled = (page.folders[i * step] for i in range(_SAMPLED_FOLDERS))
        n_large = sum(not next(self._list(folder)).is_last for folder in sampled)
        return n_large > _SAMPLED_FOLDERS / 2

    def _list(self, prefix: str, **arguments: str) -> Iterator[_Page]:
        return _list_pages(self._client, self._bucket, {"Prefix": prefix, **arguments})
