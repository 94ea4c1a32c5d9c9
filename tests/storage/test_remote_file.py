"""Reading remote objects: the bytes are right, and several requests are in flight at once."""

from __future__ import annotations

import io
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcore.errors import StorageError
from segcore.storage import remote_file
from segcore.storage.remote_file import PrefetchingRemoteFile, RemoteFile

DATA = bytes(range(251)) * 40
WAIT_S = 10.0


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_file, "_RANGE_BYTES", 100)


class Store:
    """Serves ranges of `DATA` and records the requests."""

    def __init__(self) -> None:
        self.requests: list[tuple[int, int]] = []

    def fetch(self, start: int, length: int) -> bytes:
        self.requests.append((start, length))
        return DATA[start : start + length]


reads = st.lists(st.tuples(st.integers(0, len(DATA) + 50), st.integers(0, 1500)), max_size=12)


@given(reads, st.integers(1, 700), st.integers(0, len(DATA) + 100), st.booleans())
def test_a_remote_file_reads_like_a_local_one(
    reads: list[tuple[int, int]], buffer_bytes: int, prefetch_until: int, prefetches: bool
) -> None:
    store = Store()
    raw = (
        PrefetchingRemoteFile(store.fetch, len(DATA), prefetch_until)
        if prefetches
        else RemoteFile(store.fetch, len(DATA))
    )
    expected = io.BytesIO(DATA)
    with io.BufferedReader(raw, buffer_bytes) as file:
        for position, length in reads:
            if position % 3:  # otherwise it continues at the current position
                file.seek(position)
                expected.seek(position)
            assert file.read(length) == expected.read(length)
        assert file.read() == expected.read()


def test_a_long_read_is_split_into_concurrent_requests() -> None:
    in_flight = threading.Barrier(12)

    def fetch(start: int, length: int) -> bytes:
        in_flight.wait(WAIT_S)  # breaks unless twelve requests are in flight
        return DATA[start : start + length]

    with io.BufferedReader(PrefetchingRemoteFile(fetch, len(DATA)), 50) as file:
        assert file.read(1200) == DATA[:1200]


def test_it_prefetches_up_to_the_given_position_and_no_further() -> None:
    store = Store()
    file = PrefetchingRemoteFile(store.fetch, len(DATA), prefetch_until=750)
    with io.BufferedReader(file, 64) as reader:
        reader.seek(310)
        assert reader.read(5) == DATA[310:315]
        file._pool.shutdown(wait=True)  # all requests have been answered
    assert sorted(store.requests) == [(310, 100), (410, 100), (510, 100), (610, 100), (710, 40)]


def test_reading_a_file_through_fetches_nothing_twice_and_holds_few_ranges() -> None:
    store = Store()
    file = PrefetchingRemoteFile(store.fetch, len(DATA), prefetch_until=len(DATA))
    max_ranges = 0
    with io.BufferedReader(file, 64) as reader:
        for _ in range(0, len(DATA), 37):
            reader.read(37)
            max_ranges = max(max_ranges, len(file._ranges))
    assert max_ranges == 12
    assert sorted(store.requests) == [
        (start, min(100, len(DATA) - start)) for start in range(0, len(DATA), 100)
    ]


def test_without_prefetching_only_the_bytes_that_are_read_are_fetched() -> None:
    store = Store()
    with io.BufferedReader(PrefetchingRemoteFile(store.fetch, len(DATA)), 64) as reader:
        reader.seek(5000)
        reader.read(10)
        reader.seek(100)
        reader.read(10)
    assert store.requests == [(5000, 64), (100, 64)]


def test_a_failed_request_raises_where_its_bytes_are_read_and_is_repeated() -> None:
    store, is_broken = Store(), True

    def fetch(start: int, length: int) -> bytes:
        if is_broken and start == 200:
            raise StorageError("s3://bucket/key: InternalError")
        return store.fetch(start, length)

    with io.BufferedReader(
        PrefetchingRemoteFile(fetch, len(DATA), prefetch_until=1000), 64
    ) as reader:
        assert reader.read(192) == DATA[:192]
        with pytest.raises(StorageError, match="InternalError"):
            reader.read(64)
        is_broken = False
        reader.seek(192)
        assert reader.read(500) == DATA[192:692]


def test_an_object_that_has_shrunk_ends_early() -> None:
    def fetch(start: int, length: int) -> bytes:
        return DATA[start : min(start + length, 150)]

    with io.BufferedReader(PrefetchingRemoteFile(fetch, 400)) as reader:
        assert reader.read(400) == DATA[:150]


def test_closing_cancels_the_requests_that_were_not_sent_yet() -> None:
    may_answer, store = threading.Event(), Store()

    def fetch(start: int, length: int) -> bytes:
        if start:
            may_answer.wait(WAIT_S)
        return store.fetch(start, length)

    file = PrefetchingRemoteFile(fetch, len(DATA), prefetch_until=len(DATA))
    reader = io.BufferedReader(file, 64)
    reader.read(10)
    reader.close()
    may_answer.set()
    file._pool.shutdown(wait=True)
    assert len(store.requests) <= 12
    with pytest.raises(ValueError, match="closed"):
        reader.read(1)
