"""Listing S3: all objects below a prefix, large folders at the same time.

A listing is a chain of pages; each request needs the token of the answer before it, so one chain of
1,000 keys a page takes hours for a hundred million keys. The folders of a prefix are chains of
their own, and several are followed at once. While there are few chains, a long one is cut in two:
a request that starts behind some guessed text begins another chain, and the first one ends at the
key at which that begins.

Not all servers list in the order that S3 documents. A chain that is cut must therefore meet the
very key at which the next one begins: then both together are what one chain would have been,
whatever the order is. Where it does not meet it, the prefix is listed again without cuts.
"""

from __future__ import annotations

import queue
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any, TypeAlias

from segcore.errors import StorageError
from segcore.storage.s3_client import S3Client, clean_etag, translate_errors, with_retries
from segcore.storage.s3_ranges import KeyRange, is_ascending
from segcore.storage.uris import split

Row: TypeAlias = tuple[str, int, str, str]  # uri, size, etag, time of the last change as ISO 8601

_WORKERS = 16
_ENOUGH_CHAINS = 64  # chains in progress or waiting; with so many, no more folders are opened
# A page with more folders than this shows a prefix of many folders; whether each is worth a request
# of its own is then found out by looking into some of them.
_MANY_FOLDERS = 100
_SAMPLED_FOLDERS = 3
_PAGES_AHEAD = 64
_PAGES_PER_CUT = 20  # a cut costs at most one request more: 5 % in all


class NotInOrder(Exception):
    """The server does not list keys in the order in which it was asked for them."""


def walk(client: S3Client, uri: str, *, cut: bool = True) -> Iterator[tuple[str, int, str]]:
    """(uri, size, etag) of all objects below the prefix, in no particular order.

    Empty objects whose key ends with a slash are left out: programs that show folders write them as
    marks of empty ones.

    Args:
        cut: Follow a long chain from several places at once.

    Raises:
        NotInOrder: With `cut`: the server does not allow that; to be listed again without.
    """
    for page in _walk_pages(client, uri, cut=cut):
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


def _walk_pages(client: S3Client, uri: str, *, cut: bool = False) -> Iterator[list[Row]]:
    _, bucket, key = split(uri)
    return _Walk(client, bucket, may_cut=cut).pages(f"{key}/" if key else "")


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
    return page.first_etag if page.keys[:1] == [key] else ""


@dataclass(frozen=True)
class _Page:
    """One answer to a listing request.

    Attributes:
        rows: Its objects, without the marks of empty folders.
        folders: Prefixes of the folders that were not entered; each ends with a slash.
        is_last: Whether the chain ends here.
        keys: Of all its objects, the marks included.
        first_etag: Of its first object, mark or not; "" if there is none.
    """

    rows: list[Row]
    folders: list[str]
    is_last: bool
    keys: list[str]
    first_etag: str

    def before(self, bucket: str, n_keys: int) -> _Page:
        """Its first objects, as the last page of a chain; all of its folders.

        A folder that comes later is in a page of the next chain, too, and entered once.
        """
        keys = self.keys[:n_keys]
        uris = {f"s3://{bucket}/{key}" for key in keys}
        rows = [row for row in self.rows if row[0] in uris]
        return _Page(rows, self.folders, True, keys, self.first_etag)


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
        keys=[item["Key"] for item in items],
        first_etag=clean_etag(items[0]) if items else "",
    )


@dataclass(frozen=True)
class _ChainEnd:
    """A chain has ended, or broken off with an error."""

    error: BaseException | None


@dataclass(frozen=True)
class _NewChain:
    """A chain was cut: the pages of its second half."""

    pages: Iterator[_Page]


_Result: TypeAlias = _Page | _ChainEnd | _NewChain


class _Walk:
    """One listing in progress: threads follow chains, the caller takes pages."""

    def __init__(self, client: S3Client, bucket: str, *, may_cut: bool) -> None:
        self._client = client
        self._bucket = bucket
        self._results: queue.Queue[_Result] = queue.Queue(_PAGES_AHEAD)
        self._stopped = threading.Event()
        self._open_chains = 0
        self._entered: set[str] = set()
        self._n_pages = 0
        self._n_cuts = 0  # those included that came to nothing
        # Buckets of S3 Express list in no order, and from the start only.
        self._may_cut = may_cut and not bucket.endswith("--x-s3")

    def pages(self, prefix: str) -> Iterator[list[Row]]:
        """The rows of all chains below `prefix`, page by page, as they come."""
        executor = ThreadPoolExecutor(_WORKERS, thread_name_prefix="segcore-list")
        try:
            self._submit(executor, self._chain(prefix))
            while self._open_chains:
                result = self._results.get()
                if isinstance(result, _ChainEnd):
                    if result.error is not None:
                        raise result.error
                    self._open_chains -= 1
                    continue
                if isinstance(result, _NewChain):
                    self._submit(executor, result.pages)
                    continue
                self._n_pages += 1
                for folder in result.folders:
                    if folder not in self._entered:
                        self._entered.add(folder)
                        self._submit(executor, self._chain(folder))
                if result.rows:
                    yield result.rows
        finally:
            self._stopped.set()
            executor.shutdown(wait=False, cancel_futures=True)

    def _submit(self, executor: ThreadPoolExecutor, pages: Iterator[_Page]) -> None:
        self._open_chains += 1
        executor.submit(self._follow, pages)

    def _follow(self, pages: Iterator[_Page]) -> None:
        """Put the pages of a chain, and then a `_ChainEnd`."""
        error: BaseException | None = None
        try:
            for page in pages:
                self._put(page)
                if self._stopped.is_set():
                    return
        except BaseException as raised:  # belongs to the thread that takes the pages
            error = raised
        self._put(_ChainEnd(error))

    def _put(self, result: _Result) -> None:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._results.put(result, timeout=1)
                return

    def _chain(self, prefix: str) -> Iterator[_Page]:
        """The pages of `prefix`, with its folders left for other chains where that is faster."""
        pages = self._list(prefix)
        arguments: dict[str, str] = {}
        first = next(pages)
        if not first.is_last and self._open_chains < _ENOUGH_CHAINS:
            unentered = self._list(prefix, Delimiter="/")
            first_unentered = next(unentered)
            if self._are_worth_a_chain(first_unentered):
                first, pages, arguments = first_unentered, unentered, {"Delimiter": "/"}
        yield from self._follow_range(KeyRange(prefix), chain([first], pages), prefix, arguments)

    def _follow_range(
        self, keys: KeyRange, pages: Iterable[_Page], prefix: str, arguments: dict[str, str]
    ) -> Iterator[_Page]:
        """The pages of a chain up to the bound of `keys`; parts of it may become other chains."""
        for page in pages:
            n_keys = self._find_bound(keys.bound, page)
            if n_keys is not None:
                yield page.before(self._bucket, n_keys)
                return
            yield page
            if page.is_last:
                return
            keys.split_after -= 1
            if keys.split_after < 0 and page.keys and self._has_room():
                rest = self._cut(keys, page, prefix, arguments)
                if rest is not None:
                    self._put(rest)

    def _find_bound(self, bound: str | None, page: _Page) -> int | None:
        """How many objects of the page come before the bound of its chain; None for all.

        Raises:
            NotInOrder: The chain runs past its bound without having met it.
        """
        if bound is None:
            return None
        if bound in page.keys:
            return page.keys.index(bound)
        if not page.is_last and (not page.keys or page.keys[-1] < bound):
            return None
        is_deleted = next(self._list(bound, MaxKeys=1)).keys[:1] != [bound]
        if is_deleted and is_ascending(page.keys):
            return bisect_left(page.keys, bound)
        raise NotInOrder

    def _has_room(self) -> bool:
        return (
            self._may_cut
            and self._open_chains < _WORKERS
            and (self._n_cuts + 1) * _PAGES_PER_CUT <= self._n_pages
        )

    def _cut(
        self, keys: KeyRange, page: _Page, prefix: str, arguments: dict[str, str]
    ) -> _NewChain | None:
        """The chain behind a guessed text, if there is something; then `keys` ends there."""
        self._n_cuts += 1
        guess = keys.guess(page.keys)
        if guess is None:
            return None
        pages = self._list(prefix, StartAfter=guess, **arguments)
        try:
            first = next(pages)
        except StorageError:  # perhaps the server cannot do that; if it is down, others will say so
            self._may_cut = False
            return None
        if first.folders:
            return None
        if not first.keys or (keys.bound is not None and first.keys[0] >= keys.bound):
            keys.narrow(guess)
            return None
        if first.keys[0] <= guess or not is_ascending([*page.keys, *first.keys]):
            self._may_cut = False
            return None
        rest = keys.cut(first.keys[0])
        return _NewChain(self._follow_range(rest, chain([first], pages), prefix, arguments))

    def _are_worth_a_chain(self, page: _Page) -> bool:
        """Whether the folders of the first page of a prefix are large, or few."""
        if len(page.folders) <= _MANY_FOLDERS:
            return True
        step = len(page.folders) // _SAMPLED_FOLDERS
        sampled = (page.folders[i * step] for i in range(_SAMPLED_FOLDERS))
        n_large = sum(not next(self._list(folder)).is_last for folder in sampled)
        return n_large > _SAMPLED_FOLDERS / 2

    def _list(self, prefix: str, **arguments: Any) -> Iterator[_Page]:
        return _list_pages(self._client, self._bucket, {"Prefix": prefix, **arguments})
