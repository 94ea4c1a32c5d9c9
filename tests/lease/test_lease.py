"""The lease: one run at a time, whoever races, dies, sleeps or has the wrong time."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.errors import AccessDenied, StorageError
from segcore.lease.holder import MAX_BYTES, Holder
from segcore.lease.lease import FOLDER, Clock, Lease, LeaseHeld, LeaseLost, acquire, hold_lease
from segcore.lease.observation import EXPIRED, HELD, RELEASED, read_lease
from segcore.storage import Storage, StorageOptions, join
from tests.support import lease_world
from tests.support.lease_files import at_once, elsewhere, put, storage, take


class Hands:
    """A clock that is moved by hand; waiting moves it, too."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.clock = Clock(lambda: self.now, self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds


# --- every order of events


@given(st.integers(0, 2**32), st.integers(2, 4), st.sampled_from([0.0, 0.03, 0.1]))
@settings(max_examples=150)
def test_never_are_two_let_pass(seed: int, contenders: int, faults: float) -> None:
    world = lease_world.World(seed, contenders, faults=faults)
    world.run(800)
    assert world.failure == ""


def test_in_these_worlds_the_lease_is_taken_again_and_again() -> None:
    worlds = [lease_world.World(seed, deaths=False) for seed in range(20)]
    for world in worlds:
        world.run(600)
    assert all(world.wins for world in worlds)
    assert sum(world.wins for world in worlds) > 100


def _blind(lease: Lease) -> None:
    """A holder that does not look for others."""


def _hurried(lease: Lease, *args: object) -> bool:
    """One who takes over and does not look back."""
    return True


def _generous(lease: Lease) -> None:
    """A holder that counts its time from the end of a heartbeat."""
    with lease._lock:
        if not (lease._ended or lease.lost):
            beats = lease._holder.beats + 1
            lease._holder = lease._holder.model_copy(update={"beats": beats})
            lease.storage.write(lease._uri(), lease._holder.to_json())
            lease._look_up()
            lease._until = lease._clock.now() + lease.ttl_s


@pytest.mark.parametrize(
    ("method", "wrong"), [("_look_up", _blind), ("_outlast", _hurried), ("beat", _generous)]
)
def test_these_worlds_find_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, method: str, wrong: Callable[..., object]
) -> None:
    monkeypatch.setattr(Lease, method, wrong)
    for seed in range(400):
        world = lease_world.World(seed, 2 + seed % 3, faults=(0.0, 0.03, 0.1)[seed % 3])
        world.run(800)
        if "believe to hold it" in world.failure:
            return
    pytest.fail("400 worlds found nothing")


# --- real storage


def test_of_32_racers_one_wins(folder: str) -> None:
    start = threading.Barrier(32)

    def race(number: int) -> Lease | str:
        start.wait()
        try:
            return take(folder, 60)
        except LeaseHeld as error:
            return error.message

    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(race, range(32)))
    winners = [one for one in found if isinstance(one, Lease)]
    assert len(winners) == 1
    winners[0].check()
    reasons = {one for one in found if isinstance(one, str)}
    assert all(f"process {os.getpid()}" in reason for reason in reasons)


def test_of_8_racers_for_a_dead_ones_lease_one_wins(folder: str) -> None:
    put(folder, elsewhere(ttl_s=1.0))
    start = threading.Barrier(8)

    def race(number: int) -> Lease | None:
        start.wait()
        try:
            return take(folder, 60)
        except LeaseHeld:
            return None

    with ThreadPoolExecutor(8) as pool:
        winners = [one for one in pool.map(race, range(8)) if one is not None]
    assert len(winners) == 1
    winners[0].check()


def test_released_it_is_free_at_once_and_its_file_stays_the_only_one(folder: str) -> None:
    for generation in range(1, 4):
        lease = take(folder, 60, at_once())
        lease.check()
        lease.release()
        uris = [info.uri for info in storage.list(folder)]
        assert uris == [join(folder, FOLDER, f"{generation:08d}.json")]
        assert read_lease(join(folder, FOLDER), storage, 60).state == RELEASED


def test_who_finds_it_held_is_told_by_whom(folder: str) -> None:
    with hold_lease(storage, folder, 60):
        with pytest.raises(LeaseHeld) as caught:
            take(folder, 60, at_once())
        before = {info.uri for info in storage.list(folder)}
    message = caught.value.message
    assert socket.gethostname() in message
    assert f"process {os.getpid()}, user " in message
    assert "last sign of life" in message
    assert "run the same command again" in caught.value.hint
    assert before == {join(folder, FOLDER, "00000001.json")}  # no traces of looking


def test_a_live_one_elsewhere_is_recognized_by_its_heartbeat(folder: str) -> None:
    alive, over = elsewhere(ttl_s=600.0), threading.Event()
    put(folder, alive)

    def beat() -> None:
        beats = 0
        while not over.wait(0.05):
            beats += 1
            put(folder, alive.model_copy(update={"beats": beats}))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(LeaseHeld, match="host far-away, process 4711"):
            take(folder)
    finally:
        over.set()
        thread.join()


def test_a_silent_one_elsewhere_is_waited_for_by_its_own_ttl(folder: str) -> None:
    put(folder, elsewhere(ttl_s=40.0))
    hands, said = Hands(), []
    acquire(storage, join(folder, FOLDER), 5.0, said.append, hands.clock)
    assert 1038 < hands.now < 1044
    assert "host far-away" in said[0]
    assert "its lease has ended" in said[1]


def test_one_that_is_old_by_the_storage_is_not_waited_for(tmp_path: Path) -> None:
    uri = put(str(tmp_path), elsewhere(ttl_s=40.0))
    for ago, state in ((30, HELD), (50, EXPIRED)):
        os.utime(uri, (time.time() - ago,) * 2)
        assert read_lease(join(str(tmp_path), FOLDER), storage, 60).state == state
    take(str(tmp_path), 60, at_once())


def test_nothing_asks_what_time_it_is_here(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong() -> float:
        raise AssertionError("looked at the wall clock")

    put(folder, elsewhere(ttl_s=2.0, since="2199-01-01T00:00:00+00:00"))
    storage.stat(put(folder, elsewhere(ttl_s=2.0)))  # connected, which may take the time
    monkeypatch.setattr("segcore.lease.observation.time.time", wrong)
    hands = Hands()
    lease = acquire(storage, join(folder, FOLDER), 2.0, lambda text: None, hands.clock)
    lease.check()
    with pytest.raises(LeaseHeld):
        take(folder)
    lease.release()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\x00" * 20,
        b"[" * 4000,
        b" " * (MAX_BYTES + 1),
        b"null",
        elsewhere().model_copy(update={"pid": -1}).to_json(),
        elsewhere().model_copy(update={"pid": 2**70}).to_json(),
        elsewhere().model_copy(update={"ttl_s": 1e300}).to_json(),
        elsewhere().model_copy(update={"host": "h" * 300}).to_json(),
        elsewhere().to_json().replace(b"false", b'"yes"'),
    ],
)
def test_a_file_that_is_none_of_ours_is_waited_for(tmp_path: Path, data: bytes) -> None:
    storage.write(str(tmp_path / FOLDER / "00000003.json"), data)
    hands, said = Hands(), []
    lease = acquire(storage, str(tmp_path / FOLDER), 20.0, said.append, hands.clock)
    assert 1019 < hands.now < 1023
    assert "an unknown holder" in said[0]
    lease.check()


def test_other_files_do_not_count(tmp_path: Path) -> None:
    lease = tmp_path / FOLDER
    for name in (
        "1.json",
        "0000000000009.json",
        "99999999.txt",
        "00000099.json.bak",
        "x/00000099.json",
    ):
        (lease / name).parent.mkdir(parents=True, exist_ok=True)
        (lease / name).write_bytes(elsewhere().to_json())
    (lease / "now-0123456789abcdef").write_bytes(b"left by one that died")
    take(str(tmp_path), 60, at_once()).check()
    names = {path.name for path in lease.iterdir()}
    assert "00000001.json" in names
    assert "99999999.txt" in names
    assert "now-0123456789abcdef" not in names


def test_what_a_file_says_cannot_move_the_cursor() -> None:
    assert "\x1b" not in elsewhere(host="evil\x1b[2J\nhost").summary()
    assert "evil?[2J?host" in elsewhere(host="evil\x1b[2J\nhost").summary()


@pytest.mark.s3
def test_the_file_holds_no_secret(s3_prefix: str) -> None:
    with hold_lease(storage, s3_prefix, 60):
        data = storage.read(f"{s3_prefix}/{FOLDER}/00000001.json")
    assert set(json.loads(data)) == {
        field.alias or name for name, field in Holder.model_fields.items()
    }
    for name, value in os.environ.items():
        if "SECRET" in name or "ACCESS_KEY" in name:
            assert value.encode() not in data


# --- storage that fails for a while


class Frail(Storage):
    """Refuses while `broken`."""

    def __init__(self, options: StorageOptions | None = None) -> None:
        super().__init__(options)
        self.broken = False
        self.block: threading.Event | None = None

    def write(self, uri: str, data: bytes) -> None:
        if self.block is not None:
            self.block.wait()
        if self.broken:
            raise StorageError("SlowDown")
        super().write(uri, data)


def test_a_short_outage_is_survived_and_a_long_one_is_not(tmp_path: Path) -> None:
    hands, frail = Hands(), Frail()
    lease = take(str(tmp_path), 60.0, hands.clock)
    lease.storage = frail
    frail.broken = True
    hands.now += 50
    with pytest.raises(StorageError):
        lease.beat()
    assert not lease.is_stale
    frail.broken = False
    lease.check()

    frail.broken = True
    with pytest.raises(LeaseLost, match=r"for 60 s, .* taken over: SlowDown"):
        lease.check()
    assert hands.now >= 1110
    frail.broken = False
    with pytest.raises(LeaseLost):  # once lost, never again
        lease.check()


def test_one_that_slept_long_goes_on_if_nobody_wanted_it(tmp_path: Path) -> None:
    hands = Hands()
    lease = take(str(tmp_path), 60.0, hands.clock)
    hands.now += 10_000
    assert lease.is_stale
    lease.check()
    assert not lease.is_stale


def test_check_leaves_time_to_act(tmp_path: Path) -> None:
    hands = Hands()
    lease = take(str(tmp_path), 60.0, hands.clock)
    slow = iter([40.0, 40.0, 5.0])

    class Slow(Storage):
        def write(self, uri: str, data: bytes) -> None:
            super().write(uri, data)
            hands.now += next(slow)

    lease.storage = Slow()
    lease.check()
    assert list(slow) == []


@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_when_it_is_lost_the_block_is_interrupted(tmp_path: Path, how: str) -> None:
    frail = Frail()

    def work() -> None:
        with hold_lease(storage, str(tmp_path), 3.0, heartbeats=frail):
            if how == "fails":
                frail.broken = True
            else:
                frail.block = threading.Event()
            threading.Event().wait(120)
            pytest.fail("nobody interrupted")

    with pytest.raises(LeaseLost, match="No heartbeat could be written"):
        work()
    if frail.block:
        frail.block.set()


def test_an_interrupt_by_a_person_stays_one(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), hold_lease(storage, str(tmp_path), 60):
        signal.raise_signal(signal.SIGINT)
    take(str(tmp_path), 60, at_once())


def test_in_a_thread_check_tells(tmp_path: Path) -> None:
    def work() -> None:
        with hold_lease(storage, str(tmp_path), 60) as lease:
            put(str(tmp_path), elsewhere(), 2)
            lease.check()

    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(work).exception()
    assert isinstance(error, LeaseLost)
    assert "host far-away, process 4711" in error.message


def test_no_permission_is_said_and_nothing_is_held(tmp_path: Path) -> None:
    class ReadOnly(Storage):
        def write_if_absent(self, uri: str, data: bytes) -> bool:
            raise AccessDenied(f"No permission for {uri}.")

    with pytest.raises(AccessDenied), hold_lease(ReadOnly(), str(tmp_path), 60):
        pytest.fail("held")
