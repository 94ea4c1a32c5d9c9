"""Folders of a bucket are listed at the same time, and every key comes exactly once."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.errors import AccessDenied
from segcore.storage import Storage, StorageOptions, s3_listing
from segcore.storage.s3_pages import read_entries
from tests.support.fake_s3 import FakeS3

_NAMES = st.text(alphabet="ab/-.", min_size=1, max_size=8)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")


def _storage(fake: FakeS3) -> Storage:
    return Storage(StorageOptions(endpoint_url=fake.endpoint, retries=0))


@pytest.mark.slow
def test_every_key_comes_exactly_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_listing, "_SAMPLED_FOLDERS", 1)
    with FakeS3({}, page_keys=3) as fake:
        storage = _storage(fake)

        @settings(max_examples=20)
        @given(names=st.sets(_NAMES, max_size=40), many_folders=st.sampled_from([0, 2, 100]))
        def check(names: set[str], many_folders: int) -> None:
            monkeypatch.setattr(s3_listing, "_MANY_FOLDERS", many_folders)
            objects = {f"p/{name}": b"1" for name in names}
            fake.objects = {**objects, "p": b"1", "p-/a": b"1", "q/a": b"1"}
            uris = [info.uri for info in storage.list("s3://bucket/p")]
            assert uris == sorted(f"s3://bucket/{key}" for key in objects)

        check()


def test_large_folders_are_listed_at_the_same_time() -> None:
    objects = {f"p/{folder:02d}/{i}.png": b"1" for folder in range(8) for i in range(10)}
    in_progress, most = 0, 0
    lock = threading.Lock()

    def refuse(method: str, key: str | None) -> None:
        nonlocal in_progress, most
        with lock:
            in_progress += 1
            most = max(most, in_progress)
        time.sleep(0.05)
        with lock:
            in_progress -= 1

    with FakeS3(objects, page_keys=9) as fake:
        fake.refuse = refuse
        assert len(list(_storage(fake).list("s3://bucket/p"))) == 80
    assert most >= 4


def test_many_small_folders_are_one_chain() -> None:
    objects = {f"p/{folder:04d}/1.png": b"1" for folder in range(1200)}
    with FakeS3(objects, page_keys=1000) as fake:
        assert len(list(_storage(fake).list("s3://bucket/p"))) == 1200
        assert len(fake.requests) == 2 + 1 + 3  # the pages, the folders once, three of them


def test_an_error_in_one_folder_ends_the_listing() -> None:
    objects = {f"p/{folder}/{i}": b"1" for folder in range(5) for i in range(5)}
    with FakeS3(objects, page_keys=4) as fake:
        fake.refuse = lambda *_: (403, "AccessDenied") if len(fake.requests) > 5 else None
        with pytest.raises(AccessDenied):
            list(_storage(fake).list("s3://bucket/p"))


def test_a_listing_that_is_given_up_leaves_no_threads() -> None:
    objects = {f"p/{folder}/{i}": b"1" for folder in range(5) for i in range(50)}
    with FakeS3(objects, page_keys=2) as fake:
        rows = _storage(fake).list_with_times("s3://bucket/p")
        info, changed_s = next(rows)
        assert info.size == 1
        assert changed_s == 1704067200.0  # 2024-01-01
        del rows
    threads = [t for t in threading.enumerate() if t.name.startswith("segcore-list")]
    for thread in threads:
        thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("namespace", ["", ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'])
def test_entries_are_read_as_botocore_reads_them(namespace: str) -> None:
    import botocore.parsers
    import botocore.session

    body = (
        f"<ListBucketResult{namespace}><IsTruncated>true</IsTruncated><Name>b</Name>"
        "<Contents><Key>a &amp; b</Key><Size>12</Size><ETag>&quot;x&quot;</ETag>"
        "<LastModified>2024-01-01T00:00:00.000Z</LastModified><Owner><ID>o</ID></Owner></Contents>"
        "<Contents><Key> </Key><Size>0</Size><ETag/></Contents>"
        "<CommonPrefixes><Prefix>c/</Prefix></CommonPrefixes></ListBucketResult>"
    ).encode()
    service = botocore.session.get_session().get_service_model("s3")
    shape = service.operation_model("ListObjectsV2").output_shape
    parser = botocore.parsers.create_parser("rest-xml")
    expected = parser.parse({"headers": {}, "body": body, "status_code": 200}, shape)
    response = {"headers": {}, "body": body, "status_code": 200}
    entries: dict = {}
    read_entries(response, entries)
    parsed = parser.parse(response, shape) | entries
    assert parsed["Contents"][0].pop("LastModified") == "2024-01-01T00:00:00.000Z"
    del expected["Contents"][0]["LastModified"], expected["Contents"][0]["Owner"]
    assert parsed == expected


@pytest.mark.parametrize("body", [b"", b"<html>", b"<Error><Code>SlowDown</Code></Error>"])
def test_an_answer_that_is_no_listing_is_left_to_botocore(body: bytes) -> None:
    response, entries = {"body": body, "status_code": 200}, {}
    read_entries(response, entries)
    assert response["body"] == body
    assert entries == {}
