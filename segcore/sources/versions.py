"""Versions of the remote images that a manifest names, so that changed ones are noticed.

A manifest gives URIs alone. Each version costs one HEAD request, or a share of a listing: where a
manifest names many objects of one folder, the folder is listed, 1,000 objects a request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby

import pyarrow.compute as pc

from segcore.errors import AccessDenied, CredentialsRejected, ObjectNotFound
from segcore.storage import Storage
from segcore.storage.listing import Listing
from segcore.storage.remote_errors import WrongRegion
from segcore.storage.uris import parent, scheme_of

_BATCH_ROWS = 10_000
_THREADS = 64
# Listing a page takes as long as some ten HEAD requests. So a folder is listed if many of its
# objects are named, and only as long as the pages hold so many of them on average.
_MIN_NAMED_PER_PAGE = 10

_Version = tuple[int, str]  # size, etag


def with_versions(listing: Listing, storage: Storage) -> Listing:
    """The same rows with the size and etag of remote objects where they are unknown.

    What is missing or may not be looked at stays unknown; reading it tells what is wrong with it.
    Only `s3://` is looked up.

    Raises:
        StorageError: The storage cannot be reached or does not accept the credentials.
    """
    is_known = all(
        pc.all(pc.not_equal(etags, "")).as_py() is not False
        for etags in listing.column_batches("etag")
    )
    return listing if is_known else Listing.from_rows(_rows_with_versions(listing, storage))


def _rows_with_versions(listing: Listing, storage: Storage) -> Iterator[tuple[str, int, str]]:
    with ThreadPoolExecutor(_THREADS, "segcore-versions") as pool:
        for batch in listing.to_batches(_BATCH_ROWS):
            uris, sizes, etags = (batch[name].to_pylist() for name in ("uri", "size", "etag"))
            unknown = [
                uri
                for uri, etag in zip(uris, etags, strict=True)
                if not etag and scheme_of(uri) == "s3"
            ]
            versions = _look_up(unknown, storage, pool)
            for uri, size, etag in zip(uris, sizes, etags, strict=True):
                yield uri, *versions.get(uri, (size, etag))


def _look_up(
    uris: Iterable[str], storage: Storage, pool: ThreadPoolExecutor
) -> dict[str, _Version]:
    """Versions of objects that are sorted by URI, as far as they can be known."""
    groups = [list(group) for _, group in groupby(uris, parent)]
    listings = {
        pool.submit(_list_versions, group, storage): group
        for group in groups
        if len(group) >= _MIN_NAMED_PER_PAGE
    }
    versions: dict[str, _Version] = {}
    singles = [uri for group in groups if len(group) < _MIN_NAMED_PER_PAGE for uri in group]
    for listing_future, group in listings.items():
        listed, covered_until = listing_future.result()
        versions |= listed
        singles += [uri for uri in group if uri > covered_until]
    stats: dict[str, Future[_Version | None]] = {
        uri: pool.submit(_stat_version, uri, storage) for uri in singles
    }
    for uri, stat_future in stats.items():
        version = stat_future.result()
        if version is not None:
            versions[uri] = version
    return versions


def _list_versions(uris: list[str], storage: Storage) -> tuple[dict[str, _Version], str]:
    """(versions of objects of one folder, the URI until which the folder was listed)."""
    wanted, versions, covered_until = set(uris), {}, ""
    max_pages = max(1, len(uris) // _MIN_NAMED_PER_PAGE)
    try:
        for page, infos in enumerate(storage.list_pages_from(uris[0]), start=1):
            for info in infos:
                if info.uri in wanted:
                    versions[info.uri] = (info.size, info.etag)
                covered_until = max(covered_until, info.uri)
            if page == max_pages or covered_until >= uris[-1]:
                return versions, covered_until
    except CredentialsRejected:
        raise
    except (AccessDenied, ObjectNotFound, WrongRegion):  # objects may be readable all the same
        return versions, covered_until
    return versions, uris[-1]


def _stat_version(uri: str, storage: Storage) -> _Version | None:
    try:
        info = storage.stat(uri)
    except CredentialsRejected:
        raise
    except (AccessDenied, ObjectNotFound, WrongRegion):
        return None
    return info.size, info.etag
