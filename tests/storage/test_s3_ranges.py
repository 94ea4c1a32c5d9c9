"""A flat folder is listed from several places at once, and every key comes exactly once."""

from __future__ import annotations

import random
import threading
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.storage import Storage, s3_listing
from segcore.storage.s3_client import S3Client
from segcore.storage.s3_listing import NotInOrder, walk
from segcore.storage.s3_ranges import guess_between


class Pages:
    """The listings of a bucket, as `list_objects_v2` gives them.

    Args:
        keys: All keys.
        order: The order of the server: that of S3 by default.
        page_keys: Keys on a page.
    """

    def __init__(
        self,
        keys: Iterable[str],
        page_keys: int = 3,
        order: Callable[[str], Any] = lambda key: key,
    ) -> None:
        self.keys = sorted(keys, key=order)
        self.page_keys = page_keys
        self._order = order
        self.requests = 0
        self.before_page: Callable[[], None] = lambda: None
        self._lock = threading.Lock()

    def list_objects_v2(self, **request: Any) -> dict[str, Any]:
        with self._lock:
            self.requests += 1
            self.before_page()
            return self._list(**request)

    def _list(
        self,
        Prefix: str,
        Bucket: str = "",
        Delimiter: str = "",
        StartAfter: str = "",
        ContinuationToken: str = "",
        MaxKeys: int = 1000,
    ) -> dict[str, Any]:
        start = ContinuationToken or StartAfter
        first = bisect_right(self.keys, self._order(start), key=self._order) if start else 0
        keys: list[str] = []
        folders: list[str] = []
        last_folder = self._folder(Prefix, ContinuationToken, Delimiter)
        token = ""
        for key in self.keys[first:]:
            if not key.startswith(Prefix):
                continue
            folder = self._folder(Prefix, key, Delimiter)
            if not folder or folder != last_folder:
                if len(keys) + len(folders) == min(self.page_keys, MaxKeys):
                    break
                folders += [folder] * bool(folder)
                keys += [key] * (not folder)
            last_folder, token = folder, key
        else:
            token = ""
        entry = {"Size": 1, "ETag": '"e"', "LastModified": "2024-01-01T00:00:00.000Z"}
        return {
            "Contents": [{"Key": key, **entry} for key in keys],
            "CommonPrefixes": [{"Prefix": folder} for folder in folders],
            "IsTruncated": bool(token),
            "NextContinuationToken": token,
        }

    def _folder(self, prefix: str, key: str, delimiter: str) -> str:
        """The folder below `prefix` that stands for this key; "" if there is none."""
        folder, slash, _ = key[len(prefix) :].partition("/")
        return f"{prefix}{folder}/" if delimiter and slash else ""

    def walk(self, *, cut: bool = True) -> list[str]:
        """The keys below `p/`, as the listing under test has them."""
        client = S3Client(self, retries=0, payer={})
        rows = walk(client, "s3://bucket/p", cut=cut)
        return [uri.removeprefix("s3://bucket/") for uri, _, _ in rows]


@pytest.fixture(autouse=True)
def eager_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_listing, "_PAGES_PER_CUT", 1)


names = st.text("ab/-.é\U0001f600", min_size=1, max_size=5) | st.integers(0, 999).map(str)
flat_names = st.integers(0, 9999).map(str)


@pytest.mark.slow
@settings(max_examples=30)
@given(st.sets(names, max_size=50), st.integers(1, 4), st.integers(0, 3), st.booleans())
def test_every_key_comes_exactly_once(
    keys: set[str], page_keys: int, many_folders: int, by_segments: bool
) -> None:
    # SeaweedFS orders by the segments of a key.
    order = (lambda key: key.split("/")) if by_segments else (lambda key: key)
    pages = Pages({f"p/{key}" for key in keys} | {"p", "p-", "q/1"}, page_keys, order)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3_listing, "_MANY_FOLDERS", many_folders)
        assert _walk_as_storage_does(pages) == sorted(f"p/{key}" for key in keys)


def _walk_as_storage_does(pages: Pages) -> list[str]:
    try:
        return sorted(pages.walk())
    except NotInOrder:
        return sorted(pages.walk(cut=False))


@pytest.mark.slow
@settings(max_examples=30)
@given(st.sets(flat_names, min_size=20, max_size=50), st.integers(0, 99), st.integers(0, 50))
def test_a_server_with_an_order_of_its_own_loses_nothing(
    keys: set[str], seed: int, n_displaced: int
) -> None:
    def order(key: str) -> Any:  # of some texts, keys or not, anywhere
        number = zlib.crc32(f"{seed} {key}".encode())
        is_displaced = number % 50 < n_displaced
        return (f"p/{number % 10_000}", key) if is_displaced else (key, key)

    pages = Pages({f"p/{key}" for key in keys}, 2, order)
    assert _walk_as_storage_does(pages) == sorted(f"p/{key}" for key in keys)


@pytest.mark.slow
@settings(max_examples=30)
@given(st.sets(names, min_size=20, max_size=50), st.integers(0, 99))
def test_keys_that_are_deleted_meanwhile_cost_no_others(keys: set[str], seed: int) -> None:
    pages = Pages({f"p/{key}" for key in keys}, 2)
    rng = random.Random(seed)
    gone: set[str] = set()

    def delete_one() -> None:
        if pages.keys and rng.random() < 0.5:
            gone.add(pages.keys.pop(rng.randrange(len(pages.keys))))

    pages.before_page = delete_one
    found = Counter(pages.walk())
    assert max(found.values(), default=1) == 1
    assert {f"p/{key}" for key in keys} - gone <= found.keys()


def _numbered() -> list[str]:
    return [f"image-{i:09}.jpg" for i in range(10_000)]


def _random_hex() -> list[str]:
    rng = random.Random(1)
    return [f"{rng.getrandbits(64):016x}.png" for _ in range(10_000)]


def _dated() -> list[str]:
    return [f"cam{i % 7}-2024{i // 1000 + 1:02}{i % 28 + 1:02}-{i}.jpg" for i in range(10_000)]


@pytest.mark.slow
@pytest.mark.parametrize("make_keys", [_numbered, _random_hex, _dated])
def test_many_chains_cost_few_requests_more(
    make_keys: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_listing, "_PAGES_PER_CUT", 20)
    keys = [f"p/{name}" for name in make_keys()]
    chains = 0
    cut = s3_listing._Walk._cut

    def counted(*args: Any) -> Any:
        nonlocal chains
        rest = cut(*args)
        chains += rest is not None
        return rest

    monkeypatch.setattr(s3_listing._Walk, "_cut", counted)
    pages = Pages(keys, 20)
    assert sorted(pages.walk()) == sorted(keys)
    assert pages.requests <= 1.05 * len(keys) / 20 + 2
    assert chains >= 5


@settings(max_examples=30)
@given(st.text("abc", max_size=4), st.text("abc", max_size=4), st.sets(st.sampled_from("abz")))
def test_a_guess_lies_between(low: str, high: str, letters: set[str]) -> None:
    low, high = sorted(["p/" + low, "p/" + high])
    seen = dict.fromkeys(range(9), letters)
    for place in range(2, len(low) + 1):
        guess = guess_between(low, high, place, seen)
        assert guess is None or low < guess < high
        open_guess = guess_between(low, None, place, seen)
        assert open_guess is not None
        assert low < open_guess
        assert open_guess.startswith(low[:place])


@pytest.mark.slow
def test_a_flat_folder_of_a_server(s3_prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage()
    names = [f"{i:04}" for i in range(150)] + ["a b", "é", "z/1"]
    for name in names:
        storage.write(f"{s3_prefix}/{name}", b"1")
    list_pages = s3_listing._list_pages
    cuts: list[str] = []

    def small_pages(client: S3Client, bucket: str, arguments: dict[str, Any]) -> Any:
        cuts.extend([arguments["StartAfter"]] if "StartAfter" in arguments else [])
        return list_pages(client, bucket, {"MaxKeys": 5, **arguments})

    monkeypatch.setattr(s3_listing, "_list_pages", small_pages)
    found = [info.uri.removeprefix(f"{s3_prefix}/") for info in storage.list(s3_prefix)]
    assert found == sorted(names)
    assert len(cuts) >= 3
