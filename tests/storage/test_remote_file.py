"""Reading remote objects: the bytes are right, and several requests are under way at once."""

from __future__ import annotations

import io
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcore.errors import StorageError
from segcore.storage import remote_file
from segcore.storage.remote_file import FastRemoteFile, RemoteFile

DATA = bytes(range(251)) * 40
WAIT_S = 10.0


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_file, "_PIECE_BYTES", 100)


class Store:
    """Ranges of `DATA`, and what was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def fetch(self, start: int, length: int) -> bytes:
        self.asked.append((start, length))
        return DATA[start : start + length]


steps = st.lists(st.tuples(st.integers(0, len(DATA) + 50), st.integers(0, 1500)), max_size=12)


@given(steps, st.integers(1, 700), st.integers(0, len(DATA) + 100), st.booleans())
def test_it_reads_like_a_file(
    steps: list[tuple[int, int]], buffer: int, until: int, fast: bool
) -> None:
    store = Store()
    raw = FastRemoteFile(store.fetch, len(DATA), until) if fast else None
    file = io.BufferedReader(raw or RemoteFile(store.fetch, len(DATA)), buffer)
    plain = io.BytesIO(DATA)
    with file:
        for place, length in steps:
            if place % 3:  # else it goes on where it is
                file.seek(place)
                plain.seek(place)
            assert file.read(length) == plain.read(length)
        assert file.read() == plain.read()


def test_a_long_read_is_several_requests_at_once() -> None:
    together = threading.Barrier(12)

    def fetch(start: int, length: int) -> bytes:
        together.wait(WAIT_S)  # breaks unless twelve are under way
        return DATA[start : start + length]

    with io.BufferedReader(FastRemoteFile(fetch, len(DATA)), 50) as file:
        assert file.read(1200) == DATA[:1200]


def test_it_reads_ahead_up_to_the_byte_it_was_told_and_no_further() -> None:
    store = Store()
    file = FastRemoteFile(store.fetch, len(DATA), until=750)
    with io.BufferedReader(file, 64) as reader:
        reader.seek(310)
        assert reader.read(5) == DATA[310:315]
        file._pool.shutdown(wait=True)  # all that was asked for has come
    assert sorted(store.asked) == [(310, 100), (410, 100), (510, 100), (610, 100), (710, 40)]


def test_nothing_is_fetched_twice_and_little_is_held_when_it_is_read_through() -> None:
    store = Store()
    file = FastRemoteFile(store.fetch, len(DATA), until=len(DATA))
    most = 0
    with io.BufferedReader(file, 64) as reader:
        for _ in range(0, len(DATA), 37):
            reader.read(37)
            most = max(most, len(file._pieces))
    assert most == 12
    assert sorted(store.asked) == [
        (at, min(100, len(DATA) - at)) for at in range(0, len(DATA), 100)
    ]


def test_without_a_place_to_read_up_to_only_what_is_wanted_is_fetched() -> None:
    store = Store()
    with io.BufferedReader(FastRemoteFile(store.fetch, len(DATA)), 64) as reader:
        reader.seek(5000)
        reader.read(10)
        reader.seek(100)
        reader.read(10)
    assert store.asked == [(5000, 64), (100, 64)]


def test_a_failed_request_is_told_where_it_is_met_and_asked_for_again() -> None:
    store, broken = Store(), True

    def fetch(start: int, length: int) -> bytes:
        if broken and start == 200:
            raise StorageError("s3://bucket/key: InternalError")
        return store.fetch(start, length)

    with io.BufferedReader(FastRemoteFile(fetch, len(DATA), until=1000), 64) as reader:
        assert reader.read(192) == DATA[:192]
        with pytest.raises(StorageError, match="InternalError"):
            reader.read(64)
        broken = False
        reader.seek(192)
        assert reader.read(500) == DATA[192:692]


def test_an_object_that_has_shrunk_ends_early() -> None:
    with io.BufferedReader(FastRemoteFile(lambda a, n: DATA[a : min(a + n, 150)], 400)) as reader:
        assert reader.read(400) == DATA[:150]


def test_closing_gives_up_what_was_not_yet_asked_for() -> None:
    gate, store = threading.Event(), Store()

    def fetch(start: int, length: int) -> bytes:
        if start:
            gate.wait(WAIT_S)
        return store.fetch(start, length)

    file = FastRemoteFile(fetch, len(DATA), until=len(DATA))
    reader = io.BufferedReader(file, 64)
    reader.read(10)
    reader.close()
    gate.set()
    file._pool.shutdown(wait=True)
    assert len(store.asked) <= 12
    with pytest.raises(ValueError, match="closed"):
        reader.read(1)
