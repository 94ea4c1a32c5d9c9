"""The lease: one holder at a time, whoever races, dies, sleeps or has a wrong clock."""

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
from segcore.lease.acquire import acquire
from segcore.lease.clock import SteadyClock
from segcore.lease.hold import hold_lease
from segcore.lease.holder import MAX_BYTES, Holder
from segcore.lease.lease import Lease, LeaseHeld, LeaseLost
from segcore.lease.observation import EXPIRED, HELD, RELEASED, read_lease
from segcore.storage import Storage, StorageOptions, join
from tests.support.lease_files import (
    acquire_lease,
    foreign_holder,
    lease_folder,
    no_wait_clock,
    storage,
    write_lease_file,
)
from tests.support.lease_world import World


class ManualClock:
    """A clock that only tests and waiting move forward."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.clock = SteadyClock(lambda: self.now, self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds


# --- every order of events


@pytest.mark.slow
@given(st.integers(0, 2**32), st.integers(2, 4), st.sampled_from([0.0, 0.03, 0.1]))
@settings(max_examples=150)
def test_no_two_contenders_ever_pass_the_check(seed: int, contenders: int, faults: float) -> None:
    world = World(seed, contenders, faults=faults)
    world.run(800)
    assert world.failure == ""


@pytest.mark.slow
def test_in_simulated_worlds_the_lease_is_taken_again_and_again() -> None:
    worlds = [World(seed, deaths=False) for seed in range(20)]
    for world in worlds:
        world.run(600)
    assert all(world.checks_passed for world in worlds)
    assert sum(world.checks_passed for world in worlds) > 100


def _ignore_takeovers(lease: Lease) -> None:
    """A holder that does not look for others."""


def _wait_for_nobody(lease: Lease, *args: object) -> bool:
    """A process that takes over without looking at earlier holders again."""
    return True


def _count_from_end_of_heartbeat(lease: Lease) -> None:
    """A holder whose time to live starts at the end of a heartbeat."""
    with lease._lock:
        if not (lease._released or lease.lost):
            beats = lease._holder.beats + 1
            lease._holder = lease._holder.model_copy(update={"beats": beats})
            lease.storage.write(lease.uri, lease._holder.to_json())
            lease._detect_takeover()
            lease._expires_at = lease._clock.now() + lease.ttl_s


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "broken_method"),
    [
        ("_detect_takeover", _ignore_takeovers),
        ("_wait_for_earlier_holders", _wait_for_nobody),
        ("renew", _count_from_end_of_heartbeat),
    ],
)
def test_simulated_worlds_detect_a_broken_lease(
    monkeypatch: pytest.MonkeyPatch, method: str, broken_method: Callable[..., object]
) -> None:
    monkeypatch.setattr(Lease, method, broken_method)
    for seed in range(400):
        world = World(seed, 2 + seed % 3, faults=(0.0, 0.03, 0.1)[seed % 3])
        world.run(800)
        if "believe to hold it" in world.failure:
            return
    pytest.fail("400 worlds did not detect it")


# --- real storage


@pytest.mark.slow
def test_of_32_concurrent_processes_one_acquires_the_lease(folder: str) -> None:
    start = threading.Barrier(32)

    def try_to_acquire(number: int) -> Lease | str:
        start.wait()
        try:
            return acquire_lease(folder, 60)
        except LeaseHeld as error:
            return error.message

    with ThreadPoolExecutor(32) as pool:
        results = list(pool.map(try_to_acquire, range(32)))
    leases = [result for result in results if isinstance(result, Lease)]
    assert len(leases) == 1
    leases[0].check()
    reasons = {result for result in results if isinstance(result, str)}
    assert all(f"process {os.getpid()}" in reason for reason in reasons)


@pytest.mark.slow
def test_of_8_concurrent_processes_one_acquires_the_lease_of_a_dead_holder(folder: str) -> None:
    write_lease_file(folder, foreign_holder(ttl_s=1.0))
    start = threading.Barrier(8)

    def try_to_acquire(number: int) -> Lease | None:
        start.wait()
        try:
            return acquire_lease(folder, 60)
        except LeaseHeld:
            return None

    with ThreadPoolExecutor(8) as pool:
        leases = [lease for lease in pool.map(try_to_acquire, range(8)) if lease is not None]
    assert len(leases) == 1
    leases[0].check()


def test_a_released_lease_is_free_at_once_and_leaves_one_file(folder: str) -> None:
    for generation in range(1, 4):
        lease = acquire_lease(folder, 60, no_wait_clock())
        lease.check()
        lease.release()
        uris = [info.uri for info in storage.list(folder)]
        assert uris == [join(lease_folder(folder), f"{generation:08d}.json")]
        assert read_lease(storage, lease_folder(folder), 60).state == RELEASED


def test_the_error_about_a_held_lease_names_the_holder(folder: str) -> None:
    with hold_lease(storage, lease_folder(folder), 60):
        with pytest.raises(LeaseHeld) as caught:
            acquire_lease(folder, 60, no_wait_clock())
        uris = {info.uri for info in storage.list(folder)}
    message = caught.value.message
    assert socket.gethostname() in message
    assert f"process {os.getpid()}, user " in message
    assert "last heartbeat" in message
    assert "rerun the same command" in caught.value.hint
    assert uris == {join(lease_folder(folder), "00000001.json")}  # no traces of the attempt


@pytest.mark.slow
def test_a_live_holder_on_another_machine_is_recognized_by_its_heartbeat(folder: str) -> None:
    holder, stopped = foreign_holder(ttl_s=600.0), threading.Event()
    write_lease_file(folder, holder)

    def send_heartbeats() -> None:
        beats = 0
        while not stopped.wait(0.05):
            beats += 1
            write_lease_file(folder, holder.model_copy(update={"beats": beats}))

    thread = threading.Thread(target=send_heartbeats)
    thread.start()
    try:
        with pytest.raises(LeaseHeld, match="host far-away, process 4711"):
            acquire_lease(folder)
    finally:
        stopped.set()
        thread.join()


def test_a_silent_holder_on_another_machine_is_waited_for_by_its_own_ttl(folder: str) -> None:
    write_lease_file(folder, foreign_holder(ttl_s=40.0))
    manual, notices = ManualClock(), []
    acquire(storage, lease_folder(folder), 5.0, notices.append, manual.clock)
    assert 1038 < manual.now < 1044
    assert "host far-away" in notices[0]
    assert "has expired" in notices[1]


def test_a_lease_that_expired_by_the_storage_clock_is_not_waited_for(tmp_path: Path) -> None:
    uri = write_lease_file(str(tmp_path), foreign_holder(ttl_s=40.0))
    for age_s, state in ((30, HELD), (50, EXPIRED)):
        os.utime(uri, (time.time() - age_s,) * 2)
        assert read_lease(storage, lease_folder(str(tmp_path)), 60).state == state
    acquire_lease(str(tmp_path), 60, no_wait_clock())


def test_the_wall_clock_of_this_machine_is_never_read(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> float:
        raise AssertionError("read the wall clock")

    write_lease_file(folder, foreign_holder(ttl_s=2.0, since="2199-01-01T00:00:00+00:00"))
    storage.stat(
        write_lease_file(folder, foreign_holder(ttl_s=2.0))
    )  # connects, which may read the time
    monkeypatch.setattr("segcore.lease.observation.time.time", fail)
    manual = ManualClock()
    lease = acquire(storage, lease_folder(folder), 2.0, lambda text: None, manual.clock)
    lease.check()
    with pytest.raises(LeaseHeld):
        acquire_lease(folder)
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
        foreign_holder().model_copy(update={"pid": -1}).to_json(),
        foreign_holder().model_copy(update={"pid": 2**70}).to_json(),
        foreign_holder().model_copy(update={"ttl_s": 1e300}).to_json(),
        foreign_holder().model_copy(update={"host": "h" * 300}).to_json(),
        foreign_holder().to_json().replace(b"false", b'"yes"'),
    ],
)
def test_a_lease_file_of_unknown_origin_is_waited_for(tmp_path: Path, data: bytes) -> None:
    storage.write(str(tmp_path / "lease" / "00000003.json"), data)
    manual, notices = ManualClock(), []
    lease = acquire(storage, lease_folder(str(tmp_path)), 20.0, notices.append, manual.clock)
    assert 1019 < manual.now < 1023
    assert "an unknown holder" in notices[0]
    lease.check()


def test_other_files_in_the_folder_are_ignored(tmp_path: Path) -> None:
    lease_path = tmp_path / "lease"
    for name in (
        "1.json",
        "0000000000009.json",
        "99999999.txt",
        "00000099.json.bak",
        "x/00000099.json",
    ):
        (lease_path / name).parent.mkdir(parents=True, exist_ok=True)
        (lease_path / name).write_bytes(foreign_holder().to_json())
    (lease_path / "now-0123456789abcdef").write_bytes(b"left by a process that died")
    acquire_lease(str(tmp_path), 60, no_wait_clock()).check()
    names = {path.name for path in lease_path.iterdir()}
    assert "00000001.json" in names
    assert "99999999.txt" in names
    assert "now-0123456789abcdef" not in names


def test_the_summary_of_a_lease_file_has_no_control_characters() -> None:
    assert "\x1b" not in foreign_holder(host="evil\x1b[2J\nhost").summary()
    assert "evil?[2J?host" in foreign_holder(host="evil\x1b[2J\nhost").summary()


@pytest.mark.s3
def test_the_lease_file_contains_no_secret(s3_prefix: str) -> None:
    with hold_lease(storage, lease_folder(s3_prefix), 60):
        data = storage.read(f"{lease_folder(s3_prefix)}/00000001.json")
    assert set(json.loads(data)) == {
        field.alias or name for name, field in Holder.model_fields.items()
    }
    for name, value in os.environ.items():
        if "SECRET" in name or "ACCESS_KEY" in name:
            assert value.encode() not in data


# --- storage that fails for a while


class UnreliableStorage(Storage):
    """Its writes fail while `fails` is set, and hang until `may_proceed` is set."""

    def __init__(self, options: StorageOptions | None = None) -> None:
        super().__init__(options)
        self.fails = False
        self.may_proceed: threading.Event | None = None

    def write(self, uri: str, data: bytes) -> None:
        if self.may_proceed is not None:
            self.may_proceed.wait()
        if self.fails:
            raise StorageError("SlowDown")
        super().write(uri, data)


def test_a_short_outage_is_survived_and_a_long_one_is_not(tmp_path: Path) -> None:
    manual, unreliable = ManualClock(), UnreliableStorage()
    lease = acquire_lease(str(tmp_path), 60.0, manual.clock)
    lease.storage = unreliable
    unreliable.fails = True
    manual.now += 50
    with pytest.raises(StorageError):
        lease.renew()
    assert not lease.is_expired
    unreliable.fails = False
    lease.check()

    unreliable.fails = True
    with pytest.raises(LeaseLost, match=r"for 60 s, .* taken over: SlowDown"):
        lease.check()
    assert manual.now >= 1110
    unreliable.fails = False
    with pytest.raises(LeaseLost):  # once lost, never again
        lease.check()


def test_a_holder_that_slept_keeps_the_lease_if_nobody_else_wanted_it(tmp_path: Path) -> None:
    manual = ManualClock()
    lease = acquire_lease(str(tmp_path), 60.0, manual.clock)
    manual.now += 10_000
    assert lease.is_expired
    lease.check()
    assert not lease.is_expired


def test_check_returns_only_with_enough_time_to_act(tmp_path: Path) -> None:
    manual = ManualClock()
    lease = acquire_lease(str(tmp_path), 60.0, manual.clock)
    durations_s = iter([40.0, 40.0, 5.0])

    class SlowStorage(Storage):
        def write(self, uri: str, data: bytes) -> None:
            super().write(uri, data)
            manual.now += next(durations_s)

    lease.storage = SlowStorage()
    lease.check()
    assert list(durations_s) == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["fails", "hangs"])
def test_the_block_is_interrupted_when_the_lease_is_lost(tmp_path: Path, fault: str) -> None:
    unreliable = UnreliableStorage()

    def work() -> None:
        with hold_lease(storage, lease_folder(str(tmp_path)), 3.0, heartbeat_storage=unreliable):
            if fault == "fails":
                unreliable.fails = True
            else:
                unreliable.may_proceed = threading.Event()
            threading.Event().wait(120)
            pytest.fail("not interrupted")

    with pytest.raises(LeaseLost, match="No heartbeat could be written"):
        work()
    if unreliable.may_proceed:
        unreliable.may_proceed.set()


def test_an_interrupt_by_a_person_stays_a_keyboard_interrupt(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), hold_lease(storage, lease_folder(str(tmp_path)), 60):
        signal.raise_signal(signal.SIGINT)
    acquire_lease(str(tmp_path), 60, no_wait_clock())


def test_in_another_thread_check_raises_the_loss(tmp_path: Path) -> None:
    def work() -> None:
        with hold_lease(storage, lease_folder(str(tmp_path)), 60) as lease:
            write_lease_file(str(tmp_path), foreign_holder(), 2)
            lease.check()

    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(work).exception()
    assert isinstance(error, LeaseLost)
    assert "host far-away, process 4711" in error.message


def test_without_write_permission_the_lease_is_not_held(tmp_path: Path) -> None:
    class ReadOnlyStorage(Storage):
        def write_if_absent(self, uri: str, data: bytes) -> bool:
            raise AccessDenied(f"No permission for {uri}.")

    with (
        pytest.raises(AccessDenied),
        hold_lease(ReadOnlyStorage(), lease_folder(str(tmp_path)), 60),
    ):
        pytest.fail("the lease is held")
